"""One migration at a time for a tenant: an advisory lock on the session that runs the DDL."""

import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import Error as DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from migrations_api.exceptions import TenantLocked
from tenants.driver_errors import translated

HOLDER_SQL = """
    SELECT a.application_name, a.pid, a.backend_start
      FROM pg_locks l JOIN pg_stat_activity a USING (pid)
     WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND (l.classid::bigint << 32) | l.objid::bigint = %s
"""


def lock_key(database: str, schema: str) -> int:
    """A signed 64-bit key; PostgreSQL's advisory locks are per database, the name in it guards against a reused OID."""
    digest = hashlib.sha256(f"tenant-migrations\0{database}\0{schema}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


@contextmanager
def tenant_lock(connection: BaseDatabaseWrapper, *, database: str, schema: str, wait: float) -> Iterator[None]:
    """Hold the tenant's lock; raises TenantLocked, naming the holder, after `wait` seconds.

    Polls: a session that waits in pg_advisory_lock() holds a snapshot, for which the holder's CREATE INDEX CONCURRENTLY
    waits in turn.
    """
    key = lock_key(database, schema)
    deadline = time.monotonic() + wait
    while not _try_lock(connection, key):
        if time.monotonic() >= deadline:
            raise TenantLocked(
                f"Schema '{schema}' of database '{database}' is being migrated by {_holder(connection, key)}."
            )
        time.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - spreads waiters, keeps no secret
    try:
        yield
    finally:
        _unlock(connection, key)


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
    with translated(), connection.cursor() as cursor:
        cursor.execute(HOLDER_SQL, [key])
        row = cursor.fetchone()
    if row is None:
        return "a session that has just ended"
    name, pid, since = row
    return f"'{name or 'an unnamed session'}' (server process {pid}, connected since {since:%Y-%m-%d %H:%M:%S} UTC)"
