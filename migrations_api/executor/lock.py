"""One migration at a time for a tenant: an advisory lock on the session that runs the DDL."""

import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import Error as DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from psycopg2 import sql

from migrations_api.exceptions import TenantLocked
from tenants.driver_errors import translated

HOLDER_SQL = """
    SELECT a.application_name, a.pid, a.backend_start
      FROM pg_locks l JOIN pg_stat_activity a USING (pid)
     WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND (l.classid::bigint << 32) | l.objid::bigint = %s
"""

# The oldest transaction that has a table of the schema: whoever waited for one in vain has most likely waited for that.
BLOCKER_SQL = """
    SELECT c.relname, a.application_name, a.pid, a.xact_start
      FROM pg_locks l JOIN pg_stat_activity a USING (pid) JOIN pg_class c ON c.oid = l.relation
     WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid() AND c.relkind IN ('r', 'p', 'm')
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s)
     ORDER BY a.xact_start, a.pid LIMIT 1
"""

# By a setting of the session, since the statement that asks for what is under the lock has to begin when it is held.
ATTEMPT = sql.SQL("SELECT set_config('tenant_migrations.locked', pg_try_advisory_lock({})::text, false); ")
ATTEMPTED = sql.SQL("current_setting('tenant_migrations.locked')")

END_HOLDER_SQL = f"SELECT pg_terminate_backend(pid) FROM ({HOLDER_SQL}) holder WHERE application_name = %s"  # noqa: S608


def lock_key(database: str, schema: str) -> int:
    """A signed 64-bit key; PostgreSQL's advisory locks are per database, the name in it guards against a reused OID."""
    digest = hashlib.sha256(f"tenant-migrations\0{database}\0{schema}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


def attempt(database: str, schema: str) -> sql.Composed:
    """A statement that tries to get the tenant's lock once; what has come of it is in ATTEMPTED."""
    return ATTEMPT.format(sql.Literal(lock_key(database, schema)))


@contextmanager
def tenant_lock(
    connection: BaseDatabaseWrapper, *, database: str, schema: str, wait: float, is_held: bool = False
) -> Iterator[None]:
    """Hold the tenant's lock, which the session may have by attempt(); raises TenantLocked after `wait` seconds.

    Polls: a session that waits in pg_advisory_lock() holds a snapshot, for which the holder's CREATE INDEX CONCURRENTLY
    waits in turn.
    """
    key = lock_key(database, schema)
    deadline = time.monotonic() + wait
    while not is_held and not _try_lock(connection, key):
        if time.monotonic() >= deadline:
            raise TenantLocked(
                f"Schema '{schema}' of database '{database}' is being migrated by {_holder(connection, key)}."
            )
        time.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - spreads waiters, keeps no secret
    try:
        yield
    finally:
        _unlock(connection, key)


def end_holder(connection: BaseDatabaseWrapper, *, database: str, schema: str, application_name: str) -> bool:
    """End the session that holds the tenant's lock if it is called that; whether there was one.

    Its transaction is rolled back, and whoever it belongs to can do nothing more, even if it was only paused.
    """
    with _as_connecting_user(connection) as cursor:
        cursor.execute(END_HOLDER_SQL, [lock_key(database, schema), application_name])
        return cursor.fetchone() is not None


def blocker(connection: BaseDatabaseWrapper, schema: str) -> str:
    """Which table of the schema somebody else has a lock on, and who; empty when nobody has any more."""
    with connection.cursor() as cursor:
        cursor.execute(BLOCKER_SQL, [schema])
        row = cursor.fetchone()
    if row is None:
        return ""
    table, name, pid, since = row
    began = f", in a transaction since {since:%Y-%m-%d %H:%M:%S} UTC" if since else ""
    return f"{table} is locked by '{name or 'an unnamed session'}' (server process {pid}{began})"


def _try_lock(connection: BaseDatabaseWrapper, key: int) -> bool:
    with translated(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [key])
        return bool(cursor.fetchone()[0])


def _unlock(connection: BaseDatabaseWrapper, key: int) -> None:
    # The lock dies with its session; one that is broken already has nothing to give back.
    if connection.connection is None or connection.connection.closed:
        return
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [key])
    except DatabaseError:
        connection.close()


def _holder(connection: BaseDatabaseWrapper, key: int) -> str:
    with _as_connecting_user(connection) as cursor:
        cursor.execute(HOLDER_SQL, [key])
        row = cursor.fetchone()
    if row is None:
        return "a session that has just ended"
    name, pid, since = row
    # The server keeps to itself since when another user's session is there.
    connected = f", connected since {since:%Y-%m-%d %H:%M:%S} UTC" if since else ""
    return f"'{name or 'an unnamed session'}' (server process {pid}{connected})"


@contextmanager
def _as_connecting_user(connection: BaseDatabaseWrapper) -> Iterator[CursorWrapper]:
    """A tenant's own role may neither see nor end the sessions of the user who has become it."""
    with translated(), connection.cursor() as cursor:
        cursor.execute("SET ROLE NONE")
        try:
            yield cursor
        finally:
            cursor.execute("RESET ROLE")
