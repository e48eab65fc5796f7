"""A session that *is* the tenant: direct, fresh, checked before anything is done with it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from typing import Final, NoReturn

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS
from django.db.backends.postgresql.base import DatabaseWrapper

from tenants.backends import backend_for
from tenants.backends.base import require_direct
from tenants.binding import open_connection
from tenants.conf import load_conf
from tenants.driver_errors import translated
from tenants.exceptions import (
    AuthenticationFailed,
    ForeignRecord,
    IsControlPlane,
    NotProvisioned,
    PermissionDenied,
    ServerError,
    ServerUnreachable,
)
from tenants.models import Isolation, Tenant
from tenants.servers import DatabaseSettings, server_settings
from tenants.watch import KEEPALIVES, OwnSession, Question, Reader, Watch

MINIMUM_SERVER_VERSION = 140000


@dataclass(frozen=True, kw_only=True)
class SessionFacts:
    """What a new session says of itself, before it is trusted."""

    database: str
    user: str
    backend_pid: int
    server_version: int
    standby: bool
    read_only: bool


@dataclass(frozen=True, kw_only=True)
class HomeFacts:
    """What the catalog says of the tenant's schema, and of what the user may do there."""

    schema: str | None
    is_superuser: bool
    may_use: bool | None
    may_create: bool | None
    is_control_plane: bool
    # Of `django_migrations`, each None where it is missing.
    is_djangos: bool | None
    may_read: bool | None
    may_record: bool | None
    # Of the schemas behind the tenant's own, those that are there and closed to the user.
    closed: list[str]


# No catalog is read, and nothing is cast: a new session has none of it at hand.
SESSION_SQL: Final = "SELECT current_database(), current_user, pg_backend_pid()"
# Each row is looked up by a unique index: the catalog may hold many thousands of schemas.
HOME: Final = Question(
    name="home",
    types=("text[]", "text"),
    statement="""
    SELECT n.nspname::text, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
           has_schema_privilege(n.oid, 'USAGE'), has_schema_privilege(n.oid, 'CREATE'),
           EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'tenants_tenant'),
           CASE WHEN r.oid IS NOT NULL THEN r.relkind IN ('r', 'p') AND 4 =
             (SELECT count(*) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
               WHERE a.attrelid = r.oid AND NOT a.attisdropped
                 AND (a.attname, t.typcategory) IN (('id', 'N'), ('app', 'S'), ('name', 'S'), ('applied', 'D'))) END,
           has_table_privilege(r.oid, 'SELECT'),
           has_table_privilege(r.oid, 'INSERT') AND has_table_privilege(r.oid, 'DELETE'),
           ARRAY(SELECT nspname::text FROM pg_namespace e
                  WHERE e.nspname = ANY(%s) AND NOT has_schema_privilege(e.oid, 'USAGE'))
      FROM (SELECT 1) one LEFT JOIN pg_namespace n ON n.nspname = %s
      LEFT JOIN pg_class r ON r.relnamespace = n.oid AND r.relname = 'django_migrations'
""",
)


def session_settings(tenant: Tenant, *, application_name: str) -> DatabaseSettings:
    """Connection settings whose search_path, role and timeouts are startup options.

    Startup options survive ROLLBACK, RESET ALL and DISCARD ALL; a SET in a migration, or its undoing, does not reach
    the next one. RESET ROLE comes back to the tenant's role.
    """
    conf = load_conf()
    server = backend_for(tenant).connection_settings(tenant)
    path = ",".join(_quoted(schema) for schema in (tenant.schema_name, *conf.extra_search_path))
    startup = {
        "search_path": path,
        "lock_timeout": f"{round(conf.lock_timeout * 1000)}",
        "statement_timeout": f"{round(conf.statement_timeout * 1000)}",
        # A worker that dies must not hold its locks until its statement ends.
        "client_connection_check_interval": "1000",
        # Nor must it wait for the kernel's two hours when either host has vanished.
        "tcp_keepalives_idle": "15",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        # What Django would set in a statement of its own.
        "TimeZone": "UTC" if settings.USE_TZ else settings.TIME_ZONE,
    }
    if tenant.role_name:
        startup["role"] = tenant.role_name
    server["OPTIONS"] = {
        **KEEPALIVES,
        **server.get("OPTIONS", {}),
        "application_name": application_name[:63],
        "connect_timeout": max(2, round(conf.connect_timeout)),
        "options": " ".join(f"-c {name}={_escaped(value)}" for name, value in startup.items()),
    }
    return {**server, "ATOMIC_REQUESTS": False, "AUTOCOMMIT": True, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False}


def _quoted(schema: str) -> str:
    return '"' + schema.replace('"', '""') + '"'


def _escaped(value: str) -> str:
    """libpq splits `options` at spaces and reads backslashes."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


@contextmanager
def tenant_session(
    tenant: Tenant, *, application_name: str, writable: bool = True, watch: Watch | None = None
) -> Iterator[DatabaseWrapper]:
    """A new connection to the tenant that has passed every check; closed afterwards.

    With `watch`, that session answers what can be asked of any in the same database.

    Raises NotProvisioned, IsControlPlane, PermissionDenied, ForeignRecord, ServerUnreachable, AuthenticationFailed or
    ServerError before anything was changed.
    """
    refuse_control_plane(tenant)
    connection = open_connection(session_settings(tenant, application_name=application_name))
    with closing(connection):
        _connect(connection, tenant)
        with translated():
            _check_session(tenant, _session_facts(connection), connection, writable=writable)
            home = _home_facts(watch or OwnSession(connection), tenant)
        _check_home(tenant, home, connection, writable=writable)
        # A silent reconnect would be a session without the lock that its work is done under.
        connection.connect = _refuse_reconnect  # type: ignore[method-assign]
        yield connection


def _refuse_reconnect() -> NoReturn:
    raise ServerUnreachable("The session with the tenant's database ended before the work was done.")


def _connect(connection: DatabaseWrapper, tenant: Tenant) -> None:
    try:
        with translated():
            connection.ensure_connection()
    except AuthenticationFailed as error:
        # The login itself was accepted: a login role that is missing is called by another name.
        if tenant.role_name and f'role "{tenant.role_name}" does not exist' in str(error.__cause__):
            raise PermissionDenied(
                f"The role '{tenant.role_name}' of tenant '{tenant.tenant_id}' does not exist on server "
                f"'{tenant.database}'."
            ) from error
        raise


def _session_facts(connection: DatabaseWrapper) -> SessionFacts:
    with connection.cursor() as cursor:
        cursor.execute(SESSION_SQL)
        database, user, backend_pid = cursor.fetchone()
    # The rest the server has told when the session began.
    told = connection.connection.info
    return SessionFacts(
        database=database,
        user=user,
        backend_pid=backend_pid,
        server_version=told.server_version,
        standby=told.parameter_status("in_hot_standby") == "on",
        read_only=told.parameter_status("default_transaction_read_only") == "on",
    )


def _home_facts(reader: Reader, tenant: Tenant) -> HomeFacts:
    [row] = reader.rows(HOME, list(load_conf().extra_search_path), tenant.schema_name)
    return HomeFacts(**dict(zip((field.name for field in fields(HomeFacts)), row, strict=True)))


# The first finding counts: those that make the others meaningless come first.
def _check_session(tenant: Tenant, facts: SessionFacts, connection: DatabaseWrapper, *, writable: bool) -> None:
    require_direct(facts.backend_pid, connection)
    if facts.database != connection.settings_dict["NAME"]:
        raise ServerError(
            f"Server '{tenant.database}' leads to database '{facts.database}' instead of "
            f"'{connection.settings_dict['NAME']}'."
        )
    if tenant.role_name and facts.user != tenant.role_name:
        raise ServerError(f"The session is '{facts.user}' instead of the tenant's role '{tenant.role_name}'.")
    if facts.server_version < MINIMUM_SERVER_VERSION:
        raise ServerError(
            f"Server '{tenant.database}' runs PostgreSQL {facts.server_version // 10000}; 14 is the oldest."
        )
    if not writable:
        return
    if facts.standby:
        raise ServerError(f"Server '{tenant.database}' is a standby, which is read-only.")
    if facts.read_only:
        raise ServerError(f"Server '{tenant.database}' is read-only (default_transaction_read_only).")


def _check_home(tenant: Tenant, facts: HomeFacts, connection: DatabaseWrapper, *, writable: bool) -> None:
    database = connection.settings_dict["NAME"]
    where = f"schema '{tenant.schema_name}' of database '{database}' on server '{tenant.database}'"
    user = tenant.role_name or connection.connection.info.user
    if tenant.role_name and facts.is_superuser:
        raise PermissionDenied(f"The role '{user}' is a superuser, whom nothing keeps in the tenant's schema.")
    if facts.schema is None:
        raise NotProvisioned(f"The {where} does not exist.")
    if facts.is_control_plane:
        raise IsControlPlane(f"The {where} holds a control plane; a tenant never shares it.")
    if facts.is_djangos is False:
        raise ForeignRecord(
            f"What is called 'django_migrations' in {where} is not Django's table: it is a view, a foreign table or "
            "the like, or lacks one of the columns id, app, name and applied."
        )
    _check_rights(facts, where, user, writable=writable)


def _check_rights(facts: HomeFacts, where: str, user: str, *, writable: bool) -> None:
    if not facts.may_use:
        raise PermissionDenied(f"The user '{user}' does not have permission to use {where}.")
    if facts.closed:
        raise PermissionDenied(
            f"The user '{user}' does not have permission to use what 'extra_search_path' names: "
            f"{', '.join(facts.closed)}. Grant it USAGE on the schema."
        )
    if facts.may_read is False:
        raise PermissionDenied(f"The user '{user}' may not read 'django_migrations' in {where}.")
    if not writable:
        return
    if not facts.may_create:
        raise PermissionDenied(f"The user '{user}' does not have permission to create tables in {where}.")
    if facts.may_record is False:
        raise PermissionDenied(f"The user '{user}' may not write to 'django_migrations' in {where}.")


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
