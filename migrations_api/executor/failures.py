"""What a migration, the server or the driver has raised, as it is shown, stored and judged."""

from typing import Final

import psycopg2
from psycopg2 import errorcodes

from migrations_api.executor.outcome import Failure
from tenants.driver_errors import describe, driver_error, sqlstate, translate
from tenants.exceptions import NoConnectionToSpare, PermissionDenied, ServiceError

TRANSIENT: Final = frozenset(
    {
        errorcodes.LOCK_NOT_AVAILABLE,
        errorcodes.DEADLOCK_DETECTED,
        errorcodes.SERIALIZATION_FAILURE,
        errorcodes.ADMIN_SHUTDOWN,
        errorcodes.CRASH_SHUTDOWN,
        errorcodes.CANNOT_CONNECT_NOW,
        errorcodes.TOO_MANY_CONNECTIONS,
    }
)


def failure_of(error: BaseException, *, step: str = "", transient_allowed: bool = True) -> Failure:
    """A Failure fit to be shown and stored."""
    state, found = sqlstate(error), driver_error(error)
    # The server's errors have an SQLSTATE; without one it is the connection that failed.
    lost = not state and isinstance(found, psycopg2.OperationalError | psycopg2.InterfaceError)
    code, message = "migration_failed" if step else "failed", describe(error)
    if isinstance(error, ServiceError):
        code, message = error.code, error.message
    elif state == errorcodes.INSUFFICIENT_PRIVILEGE:
        code = PermissionDenied.code
    elif lost:
        translation = translate(error)
        code, message = translation.code, translation.message
    return Failure(
        code=code,
        error_class=type(found).__name__ if found is not None else type(error).__name__,
        message=message,
        sqlstate=state,
        step=step,
        is_shortage=isinstance(error, NoConnectionToSpare) or state == errorcodes.TOO_MANY_CONNECTIONS,
        transient=transient_allowed and (lost or state in TRANSIENT or state.startswith("08")),
    )
