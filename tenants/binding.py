"""Make the `default` connection of this process a tenant, and the control plane again.

While a migration runs, whatever it reaches through `default` has to be the tenant: a RunPython that forgets `using`,
a signal handler, a raw cursor, a thread that a data migration starts. So both this thread's connection and the settings
that other threads connect with are replaced. A process works on one tenant at a time.
"""

import copy
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import psycopg2
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.utils import ConnectionHandler

from tenants.models import Tenant
from tenants.servers import DatabaseSettings


@dataclass(frozen=True)
class Binding:
    """What `default` is. `settings` are those of every alias: Django's own mapping is settings.DATABASES itself."""

    connection: BaseDatabaseWrapper
    settings: dict[str, DatabaseSettings]
    tenant: Tenant | None


_bindings: list[Binding] = []


def bound_tenant() -> Tenant | None:
    """The tenant that `default` is at the moment; None when it is the control plane."""
    return _bindings[-1].tenant if _bindings else None


def open_connection(settings: DatabaseSettings) -> DatabaseWrapper:
    """A new connection object, not yet connected, that belongs to no handler. The settings are copied."""
    handler = ConnectionHandler({DEFAULT_DB_ALIAS: copy.deepcopy(settings)})
    return cast(DatabaseWrapper, handler.create_connection(DEFAULT_DB_ALIAS))


@contextmanager
def tenant_as_default(tenant: Tenant, connection: DatabaseWrapper) -> Iterator[None]:
    settings = {**connections.settings, DEFAULT_DB_ALIAS: connection.settings_dict}
    with _default(Binding(connection, settings, tenant)):
        yield


@contextmanager
def control_plane() -> Iterator[None]:
    """Inside a tenant's binding, the control plane for as long as a record is written."""
    if bound_tenant() is None:
        yield
        return
    with _default(_bindings[0]):
        yield


@contextmanager
def _default(binding: Binding) -> Iterator[None]:
    outermost = not _bindings
    if outermost:
        plane = Binding(connections[DEFAULT_DB_ALIAS], connections.settings, None)
        _bindings.append(plane)
    previous = _bindings[-1]
    _bindings.append(binding)
    _switch(binding)
    try:
        yield
    finally:
        _switch(previous)
        _bindings.pop()
        if outermost:
            _bindings.pop()


def _switch(binding: Binding) -> None:
    connections.settings = binding.settings
    connections[DEFAULT_DB_ALIAS] = binding.connection


def cancel_statement() -> None:
    """Ask the server to cancel what the bound tenant's session is executing; callable from any thread.

    Nothing happens when the server cannot be asked.
    """
    for binding in reversed(_bindings):
        raw = binding.connection.connection
        if binding.tenant is not None and raw is not None and not raw.closed:
            # The session, too, will find out; whoever asks has other things to do, such as to renew a lease.
            with suppress(DatabaseError, psycopg2.Error):
                _cancel(raw.info.backend_pid, binding.connection.settings_dict)
            return


def _cancel(pid: int, settings: DatabaseSettings) -> None:
    """By a session of the same user: the driver's own way has no time limit, and lets no other thread run meanwhile."""
    # Without those of the tenant: its role may not cancel what the connecting user's session executes.
    options = {name: value for name, value in settings.get("OPTIONS", {}).items() if name != "options"}
    other = open_connection({**settings, "OPTIONS": {**options, "application_name": "tenant-migrations cancel"}})
    with closing(other), other.cursor() as cursor:
        cursor.execute("SELECT pg_cancel_backend(%s)", [pid])
