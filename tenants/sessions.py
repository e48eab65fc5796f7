"""A session that *is* the tenant: direct, fresh, checked before anything is done with it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NoReturn

from django.conf import settings
from django.db.backends.postgresql.base import DatabaseWrapper

from tenants.backends import backend_for, refuse_control_plane
from tenants.binding import open_connection
from tenants.conf import load_conf
from tenants.driver_errors import translated
from tenants.exceptions import AuthenticationFailed, PermissionDenied, ServerUnreachable
from tenants.models import Tenant
from tenants.preflight import HomeFacts, Inquiry, check_home, check_session, inquire
from tenants.servers import KEEPALIVES, DatabaseSettings
from tenants.watch import OwnSession, Watch


def search_path(tenant: Tenant) -> str:
    """The tenant's schema and those of `extra_search_path`, quoted."""
    return ",".join(_quoted(schema) for schema in (tenant.schema_name, *load_conf().extra_search_path))


def session_settings(tenant: Tenant, *, application_name: str, path: str | None = None) -> DatabaseSettings:
    """Connection settings whose search_path, role and timeouts are startup options; `path` instead of the tenant's.

    Startup options survive ROLLBACK, RESET ALL and DISCARD ALL; a SET in a migration, or its undoing, does not reach
    the next one. RESET ROLE comes back to the tenant's role.
    """
    conf = load_conf()
    server = backend_for(tenant).connection_settings(tenant)
    startup = {
        "search_path": search_path(tenant) if path is None else path,
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
    tenant: Tenant,
    *,
    application_name: str,
    writable: bool = True,
    watch: Watch | None = None,
    inquiry: Inquiry | None = None,
    home: HomeFacts | None = None,
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
            check_session(tenant, connection, writable=writable)
            reader = watch or OwnSession(connection)
            home = check_home(tenant, connection, reader, writable=writable, facts=home)
            if inquiry is not None:
                inquire(connection, inquiry, home)
        # A silent reconnect would be a session without the lock that its work is done under.
        connection.connect = refuse_reconnect  # type: ignore[method-assign]
        yield connection


def refuse_reconnect() -> NoReturn:
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
