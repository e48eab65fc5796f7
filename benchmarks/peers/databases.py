"""The benchmark's databases: made, filled, taken one step back, and asked what really stands in them."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import psycopg2
from psycopg2 import sql

from benchmarks.peers.app_set import LAST
from benchmarks.peers.replay import Home, replay
from service.embedded_postgres import EmbeddedPostgres

TOGETHER = 100  # schemas in one statement or transaction; each has many tables to lock
OF_MODELS = {"django_content_type", "auth_permission"}
OF_TABLE = r'(?:CREATE TABLE|ALTER TABLE|INSERT INTO) "(\w+)"'
NOISE = r"^(\\(un)?restrict .*|--.*|SET .*|SELECT pg_catalog.set_config.*|(CREATE|COMMENT ON) SCHEMA .*|)\n"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What stock Django has made of one schema, and the statements with which it did."""

    applied: int
    dump: str
    rows: Counter[str]
    statements: tuple[str, ...]

    @property
    def batches(self) -> list[str]:
        """The statements up to each migration's row, and those that follow the last one."""
        batches, batch = [], ""
        for statement in self.statements:
            batch += statement
            if statement.startswith('INSERT INTO "django_migrations"'):
                batches.append(batch)
                batch = ""
        return [*batches, batch] if batch else batches

    @property
    def records(self) -> str:
        """Only the statements of the tables that a run with nothing to do looks into."""
        of_tables = [(re.match(OF_TABLE, statement), statement) for statement in self.statements]
        return "".join(each for table, each in of_tables if table and table[1] in OF_MODELS | {"django_migrations"})


class NotMigrated(Exception):
    """A tool ended well, and its tenants do not stand where stock Django would have brought them."""


def homes(isolation: str, database: str, tenants: int) -> list[Home]:
    names = [f"t{number}" for number in range(1, tenants + 1)]
    if isolation == "schema":
        return [Home(database, name) for name in names]
    return [Home(f"{name}_db", "public") for name in names]


@contextmanager
def cursor_of(server: EmbeddedPostgres, database: str) -> Iterator[Any]:
    with closing(psycopg2.connect(server.url(database))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor


def recreate(server: EmbeddedPostgres, database: str, *, template: str = "template1") -> None:
    drop(server, database)
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(database), sql.Identifier(template))
    with cursor_of(server, "postgres") as cursor:
        cursor.execute(statement)


def drop(server: EmbeddedPostgres, database: str) -> None:
    with cursor_of(server, "postgres") as cursor:
        cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))


def make_empty(server: EmbeddedPostgres, tenants: Sequence[Home]) -> None:
    """The schema or the database of each; the database that schemas are in is there already."""
    for database, there in groupby(tenants, key=lambda home: home.database):
        schemas = [sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(home.schema)) for home in there]
        if tenants[0].schema == "public":
            recreate(server, database)
            continue
        with cursor_of(server, database) as cursor:
            for start in range(0, len(schemas), TOGETHER):
                cursor.execute(sql.SQL("; ").join(schemas[start : start + TOGETHER]))


def fill(server: EmbeddedPostgres, tenants: Sequence[Home], batches: Sequence[str]) -> None:
    replay(server.url(), tenants, batches)
    for database in {home.database for home in tenants}:
        with cursor_of(server, database) as cursor:
            # Otherwise autovacuum comes by in the middle of whichever tool is measured then.
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'pg_catalog'")
            catalog = sql.SQL(", ").join(sql.Identifier("pg_catalog", name) for (name,) in cursor.fetchall())
            cursor.execute(sql.SQL("VACUUM (ANALYZE) {}").format(catalog))


def take_back(server: EmbeddedPostgres, tenants: Sequence[Home]) -> None:
    """Undo the last migration, as if it had never been there."""
    app, name, table, column = LAST
    statement = sql.SQL(
        "ALTER TABLE {} DROP COLUMN {}; DELETE FROM django_migrations WHERE app = {} AND name = {}"
    ).format(sql.Identifier(table), sql.Identifier(column), sql.Literal(app), sql.Literal(name))
    with cursor_of(server, "postgres") as cursor:
        replay(server.url(), tenants, [statement.as_string(cursor)])


def prove(
    server: EmbeddedPostgres, tenants: Sequence[Home], truth: Truth, *, without: str = "", whole: bool = True
) -> None:
    """Raise NotMigrated unless each tenant has all rows of `django_migrations`, and the last one is stock Django's.

    `without` is an app that a tool has beside the tenants' ones: its migrations do not count, and Django gives its
    models content types and permissions, in tenants too. Without `whole`, they have no more than Truth.records.
    """
    for home, applied in zip(tenants, applied_counts(server, tenants, without=without), strict=True):
        if applied != truth.applied:
            raise NotMigrated(f"{home} has {applied} of {truth.applied} migrations.")
    if not (whole and tenants):
        return
    if dump(server, tenants[-1]) != truth.dump:
        raise NotMigrated(f"The dump of {tenants[-1]} is not that of stock Django.")
    found = row_counts(server, tenants[-1])
    more = {table for table in found if found[table] > truth.rows[table]}
    if truth.rows - found or more - (OF_MODELS if without else set()):
        raise NotMigrated(f"{tenants[-1]} lacks the rows {truth.rows - found} and has too many in {more}.")


def applied_counts(server: EmbeddedPostgres, tenants: Sequence[Home], *, without: str = "") -> list[int]:
    counts: list[int] = []
    for database, there in groupby(tenants, key=lambda home: home.database):
        selects = [
            sql.SQL("SELECT {} AS number, count(DISTINCT (app, name)) FROM {} WHERE app <> {}").format(
                sql.Literal(number), sql.Identifier(home.schema, "django_migrations"), sql.Literal(without)
            )
            for number, home in enumerate(there)
        ]
        with cursor_of(server, database) as cursor:
            for start in range(0, len(selects), TOGETHER):
                together = sql.SQL(" UNION ALL ").join(selects[start : start + TOGETHER])
                cursor.execute(together + sql.SQL(" ORDER BY number"))
                counts += [count for _, count in cursor.fetchall()]
    return counts


def dump(server: EmbeddedPostgres, home: Home) -> str:
    """Its schema without its name and without what pg_dump says of itself."""
    command = [server.bin / "pg_dump", "--schema-only", "--no-owner", f"--schema={home.schema}"]
    done = subprocess.run([*command, server.url(home.database)], check=True, capture_output=True, text=True)
    return re.sub(NOISE, "", re.sub(rf"\b{home.schema}\.", "", done.stdout), flags=re.M)


def row_counts(server: EmbeddedPostgres, home: Home) -> Counter[str]:
    """The rows of each table but `django_migrations`."""
    with cursor_of(server, home.database) as cursor:
        cursor.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename <> 'django_migrations'", [home.schema]
        )
        counts: Counter[str] = Counter()
        for (table,) in cursor.fetchall():
            cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(home.schema, table)))
            counts[table] = cursor.fetchone()[0]
    return counts


def sessions(server: EmbeddedPostgres) -> int:
    """How many have been opened so far, but for those with `postgres`, which are the benchmark's own."""
    with cursor_of(server, "postgres") as cursor:
        cursor.execute("SELECT coalesce(sum(sessions), 0)::int FROM pg_stat_database WHERE datname <> 'postgres'")
        return int(cursor.fetchone()[0])


@contextmanager
def logged(server: EmbeddedPostgres) -> Iterator[None]:
    """Have the server write each statement to its log."""
    _set_log(server, "all")
    try:
        yield
    finally:
        _set_log(server, "none")


def _set_log(server: EmbeddedPostgres, value: str) -> None:
    with cursor_of(server, "postgres") as cursor:
        cursor.execute(sql.SQL("ALTER SYSTEM SET log_statement = {}").format(sql.Literal(value)))
        cursor.execute("SELECT pg_reload_conf()")


def statements(server: EmbeddedPostgres, since: int) -> int:
    """Messages with statements in the log from that byte on; several in one message are one."""
    with (server.directory / "log").open("rb") as log:
        log.seek(since)
        return len(re.findall(rb"LOG:  (?:statement|execute)\b", log.read()))


def log_size(server: EmbeddedPostgres) -> int:
    return (server.directory / "log").stat().st_size
