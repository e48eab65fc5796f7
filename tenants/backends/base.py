from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Protocol

from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.utils.module_loading import import_string

from tenants.binding import open_connection
from tenants.conf import load_conf
from tenants.driver_errors import sqlstate, translated
from tenants.exceptions import (
    AlreadyProvisioned,
    IsControlPlane,
    PermissionDenied,
    PoolerInBetween,
    ServerError,
    ServiceError,
)
from tenants.models import Tenant
from tenants.servers import KEEPALIVES, DatabaseSettings, remember_secret, require_allowed, server_settings


class IsolationBackend(Protocol):
    """One way to keep tenants apart.

    Provisioning calls `provision` once, before anything else, and `drop` only for what `provision` made in the same
    call, or after an operator has named the tenant to be dropped. Sessions ask `connection_settings` for every
    connection. Each method raises ServerUnreachable, AuthenticationFailed or PermissionDenied when the server does;
    none of them reads or writes the control plane.
    """

    def connection_settings(self, tenant: Tenant) -> DatabaseSettings:
        """A fresh copy of the settings that reach the tenant's database, without a search_path."""

    def exists(self, tenant: Tenant) -> bool:
        """Whether the schema or database is there."""

    def is_empty(self, tenant: Tenant) -> bool:
        """Whether the schema or database, which is there, holds no table."""

    def provision(self, tenant: Tenant) -> None:
        """Create the schema or database, empty, and the role that owns it where the tenant has one.

        Raises AlreadyProvisioned, leaving it as it is, when it is there. Leaves nothing behind on any other error.
        """

    def drop(self, tenant: Tenant) -> str:
        """Drop the schema or database with all it holds; nothing happens when it is gone already.

        Then a role that the service made for the tenant; returns the name of one that has to stay.
        """


def resolved_server_settings(tenant: Tenant) -> DatabaseSettings:
    """The settings of the tenant's server, passed through the team's own `connection_resolver` where there is one.

    Raises IsControlPlane for settings that name no database: a driver would choose one.
    """
    settings = server_settings(tenant.database)
    if path := load_conf().connection_resolver:
        try:
            settings = import_string(path)(tenant, settings)
        except ServiceError:
            raise
        except Exception as error:
            raise ServerError(f"The connection_resolver failed: {type(error).__name__}.") from error
        remember_secret(settings)
        require_allowed(tenant.database, settings)
    if not settings.get("ENGINE") or not settings.get("NAME"):
        raise IsControlPlane(f"The connection settings of tenant '{tenant.tenant_id}' name no database of its own.")
    return settings


def in_its_database(tenant: Tenant) -> DatabaseSettings:
    """The settings of the tenant's server, for the database that is the tenant's own if it has one."""
    settings = resolved_server_settings(tenant)
    return {**settings, "NAME": tenant.database_name} if tenant.database_name else settings


@contextmanager
def server_cursor(settings: DatabaseSettings) -> Iterator[CursorWrapper]:
    """An autocommit cursor on a connection of its own, with the driver's errors translated."""
    given = {**KEEPALIVES, **settings.get("OPTIONS", {})}
    options = {**given, "connect_timeout": max(2, round(load_conf().connect_timeout))}
    connection = open_connection({**settings, "OPTIONS": options, "AUTOCOMMIT": True})
    with translated(), closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        require_direct(cursor.fetchone()[0], connection)
        yield cursor


def require_direct(pid: int, connection: DatabaseWrapper) -> None:
    """Raise PoolerInBetween when another process answers than the one that the connection was made with."""
    if pid != connection.connection.info.backend_pid:
        raise PoolerInBetween


@contextmanager
def creating(home: str, tenant: Tenant, *, duplicate: str, right: str) -> Iterator[None]:
    """Say what the server's refusal to create `home` means; `duplicate` is the SQLSTATE of one that is there."""
    try:
        with translated():
            yield
    except PermissionDenied as error:
        raise PermissionDenied(
            f"The user of server '{tenant.database}' may not create the {home}: grant it {right}."
        ) from error
    except ServiceError as error:
        if sqlstate(error) != duplicate:
            raise
        raise AlreadyProvisioned(
            f"The {home} exists already on server '{tenant.database}' and was left as it is."
        ) from error


def has_tables(cursor: CursorWrapper, schema: str) -> bool:
    cursor.execute(
        "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S'))",
        [schema],
    )
    return bool(cursor.fetchone()[0])
