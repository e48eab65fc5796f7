"""A session that is passed on from tenant to tenant: connecting anew costs more than a short migration.

Only for what is known word for word and leaves nothing in a session. DISCARD ALL makes it as new for the next tenant:
settings, temporary tables, prepared statements and advisory locks are gone. The tenant's search_path is not the one
that it was opened with: that is empty, so that whatever would speak in it between two tenants, or after a RESET, finds
nobody's tables.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from django.db import Error as DatabaseError
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.signals import connection_created
from psycopg2 import sql

from tenants.binding import open_connection
from tenants.driver_errors import translated
from tenants.exceptions import ServerUnreachable
from tenants.kept import Kept
from tenants.models import Tenant
from tenants.preflight import check_home, check_session
from tenants.servers import DatabaseSettings
from tenants.sessions import refuse_control_plane, refuse_reconnect, search_path, session_settings
from tenants.watch import OwnSession, Watch, watch_of

# What a session remembers of the catalog grows with each tenant.
TENANTS: Final = 200
# The date style is what the driver sets in a new session.
OPENING: Final = sql.SQL(
    "SELECT set_config('search_path', {}, false), set_config('application_name', {}, false),"
    " set_config('datestyle', 'ISO', false); "
)


class Relay:
    """Connects when it is first needed, and again after `TENANTS` tenants or when it was lost."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._connection: DatabaseWrapper | None = None
        self._served = 0

    def is_with(self, settings: DatabaseSettings) -> bool:
        return self._settings == settings

    @contextmanager
    def session(
        self, tenant: Tenant, *, application_name: str, watch: Watch | None = None
    ) -> Iterator[DatabaseWrapper]:
        """The session as that tenant's, which has passed every check; takes and raises what tenant_session() does."""
        refuse_control_plane(tenant)
        try:
            with translated():
                connection = self._opened(tenant, application_name)
                check_home(tenant, connection, watch or OwnSession(connection), writable=True)
            yield connection
        except BaseException:
            self.close()
            raise
        self._let_go(connection)

    def _opened(self, tenant: Tenant, application_name: str) -> DatabaseWrapper:
        opening = OPENING.format(sql.Literal(search_path(tenant)), sql.Literal(application_name[:63]))
        if self._served >= TENANTS:
            self.close()
        connection = self._passed_on(tenant, opening) or self._new(tenant, opening)
        self._served += 1
        return connection

    def _passed_on(self, tenant: Tenant, opening: sql.Composed) -> DatabaseWrapper | None:
        """None where there is none, or it was lost since it served the last tenant."""
        if self._connection is None:
            return None
        try:
            _begin_anew(self._connection)
            check_session(tenant, self._connection, writable=True, opening=opening)
        except (DatabaseError, ServerUnreachable):
            self.close()
        return self._connection

    def _new(self, tenant: Tenant, opening: sql.Composed) -> DatabaseWrapper:
        connection = open_connection(self._settings)
        connection.ensure_connection()
        connection.connect = refuse_reconnect  # type: ignore[method-assign]
        self._connection = connection
        # First: behind a pooler, what is set would be set for whoever gets that session next.
        check_session(tenant, connection, writable=True)
        check_session(tenant, connection, writable=True, opening=opening)
        return connection

    def _let_go(self, connection: DatabaseWrapper) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("DISCARD ALL")
        except (DatabaseError, ServerUnreachable):
            # Its work is done.
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._served = 0


def _begin_anew(connection: DatabaseWrapper) -> None:
    """What Django and the project's own receivers make of a new session, DISCARD ALL has undone."""
    connection.init_connection_state()
    connection_created.send(sender=type(connection), connection=connection)


_relays: Final = Kept(Relay)


def relay_of(tenant: Tenant) -> Relay | None:
    """The session that is passed on between the tenants of its database; None where each has to have its own."""
    settings = session_settings(tenant, application_name="tenant-migrations relay", path="")
    # The driver sets that once, when it connects.
    if watch_of(tenant) is None or "isolation_level" in settings["OPTIONS"]:
        return None
    return _relays.find(tenant.database, settings)
