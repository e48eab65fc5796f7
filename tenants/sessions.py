"""A session that *is* the tenant: direct, fresh, checked before anything is done with it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NoReturn

from django.db import DEFAULT_DB_ALIAS
from django.db.backends.postgresql.base import DatabaseWrapper

from tenants.backends import backend_for
from tenants.binding import open_connection
from tenants.conf import load_conf
from tenants.driver_errors import translated
from tenants.exceptions import IsControlPlane, NotProvisioned, PermissionDenied, ServerError, ServerUnreachable
from tenants.models import Isolation, Tenant
from tenants.servers import DatabaseSettings, server_settings

MINIMUM_SERVER_VERSION = 140000


@dataclass(frozen=True, kw_only=True)
class SessionFacts:
    """What one round trip tells of a new session, before it is trusted."""

    database: str
    schema: str | None
    user: str
    backend_pid: int
    server_version: int
    read_only: bool
    may_create: bool | None
    is_control_plane: bool


FACTS_SQL = """
    SELECT current_database(), n.nspname, current_user, pg_backend_pid(),
           current_setting('server_version_num')::int,
           pg_is_in_recovery() OR current_setting('transaction_read_only')::bool,
           has_schema_privilege(n.oid, 'CREATE'),
           EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'tenants_tenant')
      FROM (SELECT 1) one LEFT JOIN pg_namespace n ON n.nspname = %s
"""


def session_settings(tenant: Tenant, *, application_name: str) -> DatabaseSettings:
    """Connection settings whose search_path and timeouts are startup options.

    Startup options survive ROLLBACK, RESET ALL and DISCARD ALL; a SET in a migration, or its undoing, does not reach
    the next one.
    """
    conf = load_conf()
    settings = backend_for(tenant).connection_settings(tenant)
    path = ",".join(_quoted(schema) for schema in (tenant.schema_name, *conf.extra_search_path))
    startup = {
        "search_path": path,
        "lock_timeout": f"{round(conf.lock_timeout * 1000)}",
        "statement_timeout": f"{round(conf.statement_timeout * 1000)}",
        # A worker that dies must not hold its locks until its statement ends.
        "client_connection_check_interval": "1000",
    }
    settings["OPTIONS"] = {
        **settings.get("OPTIONS", {}),
        "application_name": application_name[:63],
        "connect_timeout": max(2, round(conf.connect_timeout)),
        "options": " ".join(f"-c {name}={_escaped(value)}" for name, value in startup.items()),
    }
    return {**settings, "ATOMIC_REQUESTS": False, "AUTOCOMMIT": True, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False}


def _quoted(schema: str) -> str:
    return '"' + schema.replace('"', '""') + '"'


def _escaped(value: str) -> str:
    """libpq splits `options` at spaces and reads backslashes."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


@contextmanager
def tenant_session(tenant: Tenant, *, application_name: str, writable: bool = True) -> Iterator[DatabaseWrapper]:
    """A new connection to the tenant that has passed every check; closed afterwards.

    Raises NotProvisioned, IsControlPlane, PermissionDenied, ServerUnreachable, AuthenticationFailed or ServerError
    before anything was changed.
    """
    refuse_control_plane(tenant)
    connection = open_connection(session_settings(tenant, application_name=application_name))
    with closing(connection):
        with translated():
            connection.ensure_connection()
            facts = _facts(connection, tenant)
        _check(tenant, facts, pid=connection.connection.info.backend_pid, writable=writable)
        # A silent reconnect would be a session without the lock that its work is done under.
        connection.connect = _refuse_reconnect  # type: ignore[method-assign]
        yield connection


def _refuse_reconnect() -> NoReturn:
    raise ServerUnreachable("The session with the tenant's database ended before the work was done.")


def _facts(connection: DatabaseWrapper, tenant: Tenant) -> SessionFacts:
    with connection.cursor() as cursor:
        cursor.execute(FACTS_SQL, [tenant.schema_name])
        database, schema, user, pid, version, read_only, may_create, is_control_plane = cursor.fetchone()
    return SessionFacts(
        database=database,
        schema=schema,
        user=user,
        backend_pid=pid,
        server_version=version,
        read_only=read_only,
        may_create=may_create,
        is_control_plane=is_control_plane,
    )


def _check(tenant: Tenant, facts: SessionFacts, *, pid: int, writable: bool) -> None:
    where = f"schema '{tenant.schema_name}' of database '{facts.database}' on server '{tenant.database}'"
    if facts.schema is None:
        raise NotProvisioned(f"The {where} does not exist.")
    if facts.is_control_plane:
        raise IsControlPlane(f"The {where} holds a control plane; a tenant never shares it.")
    if facts.server_version < MINIMUM_SERVER_VERSION:
        raise ServerError(
            f"Server '{tenant.database}' runs PostgreSQL {facts.server_version // 10000}; 14 is the oldest."
        )
    if facts.backend_pid != pid:
        raise ServerError(
            f"Server '{tenant.database}' is reached through a connection pooler, which mixes up sessions: "
            "give its alias a URL that leads to PostgreSQL directly."
        )
    if writable and facts.read_only:
        raise ServerError(f"Server '{tenant.database}' is read-only (a standby, or default_transaction_read_only).")
    if writable and not facts.may_create:
        raise PermissionDenied(f"The user '{facts.user}' does not have permission to create tables in {where}.")


def refuse_control_plane(tenant: Tenant) -> None:
    """Raise IsControlPlane when the tenant's settings name the control plane's own schema.

    This needs no connection; the session's check finds what only the server knows, such as two names of one host.
    """
    if tenant.isolation == Isolation.SCHEMA and tenant.schema_name != "public":
        return
    plane = server_settings(DEFAULT_DB_ALIAS)
    home = backend_for(tenant).connection_settings(tenant)
    if not home.get("NAME"):
        raise IsControlPlane(f"Tenant '{tenant.tenant_id}' has no database of its own.")
    same_server = all(str(home.get(key) or "") == str(plane.get(key) or "") for key in ("HOST", "PORT"))
    same_socket = home.get("OPTIONS", {}).get("host") == plane.get("OPTIONS", {}).get("host")
    if same_server and same_socket and home["NAME"] == plane["NAME"]:
        raise IsControlPlane(
            f"Tenant '{tenant.tenant_id}' would be the control plane itself. Give it another server "
            "(--database=ALIAS, of TENANT_DATABASE_URLS), or make its apps part of the control plane."
        )
