"""Scratch databases: a place like a tenant's, where nothing is that anybody has, and which is dropped afterwards."""

import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from django.db import DatabaseError
from django.db.backends.utils import CursorWrapper
from psycopg2 import errorcodes, sql

from tenants.backends import backend_for
from tenants.backends.base import creating, resolved_server_settings, server_cursor
from tenants.conf import load_conf
from tenants.exceptions import ServiceError
from tenants.models import Tenant

logger = logging.getLogger(__name__)

NAME: Final = re.compile(r"tenant_migrations_shadow_(\d{10})_[0-9a-f]{8}")
# In seconds; no question takes that long, so whoever made an older one is gone.
LIFETIME: Final = 3600
EXTENSIONS_SQL: Final = """
    SELECT e.extname, n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
     WHERE e.extname <> 'plpgsql' ORDER BY e.oid
"""


@contextmanager
def shadow_of(tenant: Tenant) -> Iterator[Tenant]:
    """A tenant that is no row, with an empty schema of the same name in a database of its own.

    It is made on the tenant's server, or on that of the setting `shadow_server`, with the extensions that the tenant's
    database has. Raises PermissionDenied where the server's user has no CREATEDB, and what the server answers.
    """
    shadow = Tenant(
        tenant_id=tenant.tenant_id,
        isolation=tenant.isolation,
        name=tenant.name,
        database=load_conf().shadow_server or tenant.database,
        schema_name=tenant.schema_name,
    )
    server = resolved_server_settings(shadow)
    with server_cursor(server) as cursor:
        sweep(cursor)
        shadow.database_name = _new_name(cursor)
        with creating("scratch database", shadow, duplicate=errorcodes.DUPLICATE_DATABASE, right="CREATEDB"):
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(shadow.database_name)))
    try:
        _furnish(tenant, shadow)
        yield shadow
    finally:
        try:
            with server_cursor(server) as cursor:
                _drop(cursor, shadow.database_name)
        except ServiceError as error:
            logger.warning("the scratch database %s is left behind: %s", shadow.database_name, error.message)


def sweep(cursor: CursorWrapper) -> list[str]:
    """Drop what questions that were killed have left on the server; returns the names."""
    cursor.execute("SELECT datname, extract(epoch FROM now()) FROM pg_database WHERE datname LIKE 'tenant_migr%%'", [])
    found = [(NAME.fullmatch(name), now) for name, now in cursor.fetchall()]
    left = [name[0] for name, now in found if name and int(name[1]) < now - LIFETIME]
    for name in left:
        logger.warning("dropping the scratch database %s, which somebody left behind", name)
        # Somebody else may be about to drop it as well.
        with suppress(ServiceError, DatabaseError):
            _drop(cursor, name)
    return left


def _new_name(cursor: CursorWrapper) -> str:
    # By the server's clock, which is the one that ages are measured with.
    cursor.execute("SELECT extract(epoch FROM now())::bigint")
    return f"tenant_migrations_shadow_{cursor.fetchone()[0]}_{secrets.token_hex(4)}"


def _drop(cursor: CursorWrapper, name: str) -> None:
    cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _furnish(tenant: Tenant, shadow: Tenant) -> None:
    with server_cursor(backend_for(tenant).connection_settings(tenant)) as cursor:
        cursor.execute(EXTENSIONS_SQL)
        extensions = cursor.fetchall()
    schemas = {shadow.schema_name, *load_conf().extra_search_path, *(schema for _, schema in extensions)}
    with server_cursor(backend_for(shadow).connection_settings(shadow)) as cursor:
        for schema in sorted(schemas - {"pg_catalog"}):
            cursor.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
        for name, schema in extensions:
            statement = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} SCHEMA {}")
            cursor.execute(statement.format(sql.Identifier(name), sql.Identifier(schema)))
