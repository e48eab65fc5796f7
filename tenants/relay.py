"""A session that is passed on from tenant to tenant: connecting anew costs more than most migrations.

DISCARD ALL makes it as new for the next tenant: settings, temporary tables, prepared statements and advisory locks are
gone. What Django keeps of a connection is made anew. The tenant's search_path is not the one that it was opened with:
that is empty, so that whatever would speak in it between two tenants, or after a RESET, finds nobody's tables.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import psycopg2
from django.db import Error as DatabaseError
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from psycopg2 import sql

from tenants.backends import refuse_control_plane
from tenants.binding import open_connection
from tenants.driver_errors import translated
from tenants.exceptions import ServerUnreachable
from tenants.kept import Kept
from tenants.models import Tenant
from tenants.preflight import HomeFacts, Inquiry, check_home, check_session
from tenants.servers import DatabaseSettings
from tenants.sessions import refuse_reconnect, search_path, session_settings
from tenants.watch import OwnSession, Watch, watch_of

# What a session remembers of the catalog grows with each tenant, and with what is done there.
TENANTS: Final = 200
STEPS: Final = 1000
# The date style is what the driver sets in a new session.
OPENING: Final = sql.SQL(
    "SELECT set_config('search_path', {}, false), set_config('application_name', {}, false),"
    " set_config('datestyle', 'ISO', false); "
)


class Relay:
    """Connects when it is first needed, and again when it is worn out or was lost."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._settings = settings
        self._raw: Any = None
        self._tenants = 0
        self._steps = 0

    def is_with(self, settings: DatabaseSettings) -> bool:
        return self._settings == settings

    @contextmanager
    def session(
        self,
        tenant: Tenant,
        *,
        application_name: str,
        watch: Watch | None = None,
        inquiry: Inquiry | None = None,
        home: HomeFacts | None = None,
    ) -> Iterator[DatabaseWrapper]:
        """The session as that tenant's, which has passed every check; takes and raises what tenant_session() does.

        `home` is what the catalog has said of it just now, if somebody has asked. Advisory locks that the session still
        has at the end, it lets go of.
        """
        refuse_control_plane(tenant)
        become = partial(
            _become, tenant=tenant, application_name=application_name, watch=watch, inquiry=inquiry, home=home
        )
        try:
            with translated():
                connection = self._opened(tenant, become)
            opened = self._of_the_driver()
            yield connection
        except BaseException:
            self.close()
            raise
        is_as_opened = self._of_the_driver() == opened
        _take_away(connection)
        if is_as_opened:
            self._make_new()
        else:
            self.close()

    def wear(self, *, steps: int) -> None:
        """So much has been done in it."""
        self._steps += steps

    def _opened(self, tenant: Tenant, become: Callable[[DatabaseWrapper], DatabaseWrapper]) -> DatabaseWrapper:
        if self._tenants >= TENANTS or self._steps >= STEPS:
            self.close()
        connection = self._passed_on(become) or become(self._new(tenant))
        self._tenants += 1
        return connection

    def _passed_on(self, become: Callable[[DatabaseWrapper], DatabaseWrapper]) -> DatabaseWrapper | None:
        """None where there is none, or it was lost since it served the last tenant."""
        if self._raw is None:
            return None
        try:
            return become(_around(self._raw, self._settings))
        except (DatabaseError, ServerUnreachable):
            self.close()
            return None

    def _new(self, tenant: Tenant) -> DatabaseWrapper:
        connection = open_connection(self._settings)
        connection.ensure_connection()
        connection.connect = refuse_reconnect  # type: ignore[method-assign]
        self._raw = connection.connection
        # Before anything is set: behind a pooler, that would be for whoever gets that session next.
        check_session(tenant, connection, writable=True)
        return connection

    def _make_new(self) -> None:
        try:
            with self._raw.cursor() as cursor:
                cursor.execute("DISCARD ALL")
        except psycopg2.Error:
            # Its work is done.
            self.close()

    def _of_the_driver(self) -> tuple[Any, ...]:
        """What the server knows nothing of: how the driver speaks, and how many cursors somebody has of it."""
        raw = self._raw
        kinds = (raw.autocommit, raw.isolation_level, raw.readonly, raw.deferrable, raw.encoding, raw.cursor_factory)
        return kinds, dict(raw.string_types), dict(raw.binary_types), sys.getrefcount(raw)

    def close(self) -> None:
        if self._raw is not None:
            self._raw.close()
        self._raw = None
        self._tenants = self._steps = 0


def _become(
    connection: DatabaseWrapper,
    *,
    tenant: Tenant,
    application_name: str,
    watch: Watch | None,
    inquiry: Inquiry | None,
    home: HomeFacts | None,
) -> DatabaseWrapper:
    """Make the session the tenant's, whose home is looked at first."""
    home = check_home(tenant, connection, watch or OwnSession(connection), writable=True, facts=home)
    opening = OPENING.format(sql.Literal(search_path(tenant)), sql.Literal(application_name[:63]))
    if inquiry is None:
        check_session(tenant, connection, writable=True, opening=opening)
    else:
        opening += inquiry.statements(connection)
        asked = inquiry.expressions(home)
        inquiry.answered(check_session(tenant, connection, writable=True, opening=opening, asked=asked))
    return connection


def _around(raw: Any, settings: DatabaseSettings) -> DatabaseWrapper:
    """A connection object that has just connected by it, as Django and receivers of `connection_created` see it."""
    connection: Any = open_connection(settings)
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    connection.get_new_connection = lambda parameters: raw
    connection.connect()
    # Nobody may hold on to the session by way of it.
    del connection.get_new_connection
    connection.connect = refuse_reconnect
    return connection  # type: ignore[no-any-return]


def _take_away(connection: DatabaseWrapper) -> None:
    """From whoever has kept it: the session is another tenant's next."""
    connection.connection = None
    connection.connect = refuse_reconnect  # type: ignore[method-assign]


_relays: Final = Kept(Relay)


def relay_of(tenant: Tenant) -> Relay | None:
    """The session that is passed on between the tenants of its database; None where each has to have its own."""
    settings = session_settings(tenant, application_name="tenant-migrations relay", path="")
    # The driver sets that once, when it connects.
    if watch_of(tenant) is None or "isolation_level" in settings["OPTIONS"]:
        return None
    return _relays.find(tenant.database, settings)
