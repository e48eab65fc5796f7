"""The one place where the driver's errors become ours, and where text is made fit to be shown."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from django.db import Error as DjangoDatabaseError
from psycopg2 import errorcodes

from tenants import exceptions
from tenants.servers import secrets

MAX_MESSAGE = 500  # characters

_CONNECTION_CLASSES: dict[str, tuple[type[exceptions.ServiceError], str]] = {
    errorcodes.INVALID_CATALOG_NAME: (exceptions.NotProvisioned, "The database does not exist."),
    errorcodes.INVALID_PASSWORD: (exceptions.AuthenticationFailed, ""),
    errorcodes.INVALID_AUTHORIZATION_SPECIFICATION: (exceptions.AuthenticationFailed, ""),
    errorcodes.INSUFFICIENT_PRIVILEGE: (exceptions.PermissionDenied, ""),
    errorcodes.TOO_MANY_CONNECTIONS: (exceptions.NoConnectionToSpare, ""),
}
# The server's refusals while connecting carry no SQLSTATE in psycopg2 2.9; libpq's text is all there is.
_CONNECTION_TEXTS = {
    "permission denied to set role": (exceptions.PermissionDenied, "The user may not become the tenant's role."),
    # A pooler's way of saying that it takes no settings for a session.
    "unsupported startup parameter": (exceptions.PoolerInBetween, ""),
    r'FATAL:  role ".*" ': (exceptions.AuthenticationFailed, ""),
    "no pg_hba.conf entry": (exceptions.AuthenticationFailed, ""),
    r'database ".*" does not exist': (exceptions.NotProvisioned, "The database does not exist."),
    "authentication failed": (exceptions.AuthenticationFailed, ""),
    "no password supplied": (exceptions.AuthenticationFailed, ""),
    "permission denied for database": (exceptions.PermissionDenied, "The user may not connect to the database."),
    "too many": (exceptions.NoConnectionToSpare, ""),
    "remaining connection slots": (exceptions.NoConnectionToSpare, ""),
    "could not translate host name": (exceptions.ServerUnreachable, "The database server's host name is unknown."),
    "Connection refused": (exceptions.ServerUnreachable, "The database server refused the connection."),
    "No such file or directory": (exceptions.ServerUnreachable, "The database server refused the connection."),
    "timeout expired": (exceptions.ServerUnreachable, "The database server did not answer in time."),
    "starting up": (exceptions.ServerUnreachable, "The database server is starting up."),
}


def driver_error(error: BaseException) -> psycopg2.Error | None:
    """The psycopg2 error that `error` is or was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, psycopg2.Error):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def sqlstate(error: BaseException) -> str:
    found = driver_error(error)
    return (found.pgcode or "") if found else ""


@contextmanager
def translated() -> Iterator[None]:
    """Raise a ServiceError for whatever the driver raises inside."""
    try:
        yield
    except (DjangoDatabaseError, psycopg2.Error) as error:
        raise translate(error) from error


def translate(error: BaseException) -> exceptions.ServiceError:
    state = sqlstate(error)
    if state in _CONNECTION_CLASSES:
        kind, message = _CONNECTION_CLASSES[state]
        return kind(message)
    text = str(error)
    if not state:
        for part, (kind, message) in _CONNECTION_TEXTS.items():
            if re.search(part, text):
                return kind(message)
        return exceptions.ServerUnreachable()
    return exceptions.ServerError(describe(error))


def describe(error: BaseException) -> str:
    """One line that names what went wrong and shows neither rows nor secrets.

    A driver's message is the server's primary message with quoted values left out unless they name a schema object;
    DETAIL, HINT, CONTEXT and the statement are dropped, since they quote whole rows.
    """
    found = driver_error(error)
    if found is None or not found.pgcode:
        return redact(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    diagnostics = found.diag
    named = {diagnostics.constraint_name, diagnostics.table_name, diagnostics.column_name, diagnostics.schema_name}
    primary = diagnostics.message_primary or type(found).__name__
    if found.pgcode[:2] in {"22", "23", "P0"}:
        primary = _without_values(primary, {name for name in named if name})
    return redact(f"{type(found).__name__}: {primary}")


def _without_values(message: str, named: set[str]) -> str:
    """What stands in quotes left out, but for `named`. A value may hold quotes itself: the outermost count."""
    pieces = re.split(f'("(?:{"|".join(map(re.escape, named))})")', message) if named else [message]
    if any(piece.count('"') % 2 for piece in pieces[::2]):
        pieces = [message]
    pieces[::2] = [re.sub("(['\"]).*\\1", "…", piece, flags=re.DOTALL) for piece in pieces[::2]]
    return "".join(pieces)


def redact(text: str) -> str:
    """`text` on one line, without any known password or DETAIL, at most MAX_MESSAGE characters long."""
    # Somebody made a driver's error into text: behind this stand whole rows.
    text = re.sub(r"\bDETAIL: .*", "…", text, flags=re.DOTALL)
    text = re.sub(r"(?i)(postgres(?:ql)?://)\S+", r"\1***", _without_secrets(text))
    # What stood on two lines may be a password on one.
    text = _without_secrets(" ".join(text.split()))
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _without_secrets(text: str) -> str:
    for secret in sorted(secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
