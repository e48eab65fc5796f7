"""What lies on a server before anybody has registered it: schemas, databases, another tool's table of tenants."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from django.db.backends.utils import CursorWrapper
from psycopg2 import errorcodes, sql

from tenants.backends.base import server_cursor
from tenants.driver_errors import sqlstate
from tenants.exceptions import InvalidName, ServiceError
from tenants.servers import server_aliases, server_settings

SYSTEM_DATABASES: Final = ["postgres", "template0", "template1"]
# What the service makes for a moment, to see what a migration would do.
SHADOWS: Final = "^tenant_migrations_shadow_"
NOT_THERE: Final = {errorcodes.UNDEFINED_TABLE, errorcodes.UNDEFINED_COLUMN, errorcodes.INVALID_SCHEMA_NAME}


@dataclass(frozen=True, kw_only=True)
class TenantTable:
    """Where another tool keeps its tenants, `table` or `schema.table`; a column that is empty is not there."""

    table: str
    schema_column: str = "schema_name"
    name_column: str = ""
    id_column: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A schema or database by its name, and what the table says of it."""

    home: str
    tenant_id: str = ""
    name: str = ""


def schemas(alias: str) -> list[Found]:
    """Every schema of the server's database but PostgreSQL's own."""
    statement = (
        "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' ORDER BY 1"
    )
    with _reading(alias) as cursor:
        cursor.execute(statement)
        return [Found(home=name) for (name,) in cursor.fetchall()]


def databases(alias: str) -> list[Found]:
    """Every database of the server that takes connections, but templates, `postgres` and the service's own shadows."""
    with _reading(alias) as cursor:
        cursor.execute(
            "SELECT datname FROM pg_database"
            " WHERE datallowconn AND NOT datistemplate AND datname <> ALL(%s) AND datname !~ %s ORDER BY 1",
            [SYSTEM_DATABASES, SHADOWS],
        )
        return [Found(home=name) for (name,) in cursor.fetchall()]


def listed(alias: str, table: TenantTable) -> list[Found]:
    """The rows of the table, with an empty name where there is none; raises InvalidName without such a table."""
    columns = [sql.Identifier(name) if name else sql.Literal("") for name in _columns(table)]
    statement = sql.SQL("SELECT {} FROM {} ORDER BY 1").format(
        sql.SQL(", ").join(sql.SQL("coalesce({}::text, '')").format(column) for column in columns),
        sql.Identifier(*_qualified(table.table)),
    )
    try:
        with _reading(alias) as cursor:
            cursor.execute(statement)
            return [Found(home=home, name=name, tenant_id=tenant_id) for home, name, tenant_id in cursor.fetchall()]
    except ServiceError as error:
        if sqlstate(error) not in NOT_THERE:
            raise
        named = ", ".join(filter(None, _columns(table)))
        raise InvalidName(f"Server '{alias}' has no table '{table.table}' with the columns {named}.") from error


def _columns(table: TenantTable) -> tuple[str, str, str]:
    return table.schema_column, table.name_column, table.id_column


def _qualified(table: str) -> list[str]:
    parts = table.split(".")
    if len(parts) > 2 or not all(part and part.isprintable() for part in parts):
        raise InvalidName(f"{table[:63]!r} is not a table: give it as table, or as schema.table.")
    return parts if len(parts) == 2 else ["public", *parts]


@contextmanager
def _reading(alias: str) -> Iterator[CursorWrapper]:
    """A session that can write nothing, whatever a view of another tool's may call, and that waits for no lock."""
    with server_cursor(server_settings(alias)) as cursor:
        cursor.execute("SET default_transaction_read_only = on; SET lock_timeout = '1s'")
        yield cursor


def aliases_of(alias: str, *, whole_server: bool) -> list[str]:
    """The aliases whose settings lead to the same database, or with `whole_server` to any of the same server."""
    return [other for other in server_aliases() if _place(other, whole_server) == _place(alias, whole_server)]


def _place(alias: str, whole_server: bool) -> tuple[str, ...]:  # noqa: FBT001
    settings = server_settings(alias)
    server = str(settings.get("OPTIONS", {}).get("host") or settings.get("HOST") or ""), str(settings.get("PORT") or "")
    return server if whole_server else (*server, str(settings["NAME"]))
