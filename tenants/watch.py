"""A session of this process that stays open beside those of the tenants of one database, and only reads.

A tenant's own session is new, and the first question to a catalog costs a new session several times what it costs one
that has answered it before. What any session of the database can tell is asked of this one.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg2 import sql

from tenants.backends import backend_for
from tenants.backends.base import require_direct
from tenants.binding import open_connection
from tenants.conf import load_conf
from tenants.driver_errors import translated
from tenants.exceptions import ServerUnreachable
from tenants.kept import Kept
from tenants.models import Isolation, Tenant
from tenants.servers import KEEPALIVES, DatabaseSettings

Value = str | list[str]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A statement with a placeholder, %s, for each of `types`; the name is its own."""

    name: str
    types: tuple[str, ...]
    statement: str

    @property
    def preparation(self) -> str:
        numbered = self.statement % tuple(f"${place}" for place in range(1, len(self.types) + 1))
        return f"PREPARE {self.name} ({', '.join(self.types)}) AS {numbered}"

    @property
    def execution(self) -> str:
        places = ", ".join(f"%s::{kind}" for kind in self.types)
        return f"EXECUTE {self.name} ({places})"


class Reader(Protocol):
    """A session that answers questions of a tenant's database; raises ServiceError."""

    def rows(self, question: Question, *values: Value) -> list[tuple[Any, ...]]: ...

    def look(self, statement: sql.Composed) -> list[tuple[Any, ...]]:
        """What is there, by a statement that names the tenant's schema and is not prepared."""


class OwnSession:
    """The tenant's own, where there is no other."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection

    def rows(self, question: Question, *values: Value) -> list[tuple[Any, ...]]:
        with translated(), self._connection.cursor() as cursor:
            cursor.execute(question.statement, values)
            return list(cursor.fetchall())

    def look(self, statement: sql.Composed) -> list[tuple[Any, ...]]:
        with translated(), self._connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())


class Watch:
    """Connects when it is first asked, and again when the server has ended it between two questions."""

    def __init__(self, server: DatabaseSettings) -> None:
        self._server = server
        self._connection: DatabaseWrapper | None = None
        self._prepared: set[str] = set()

    @property
    def connection(self) -> DatabaseWrapper:
        if self._connection is None:
            with ExitStack() as opened:
                connection = opened.enter_context(closing(open_connection(_watching(self._server))))
                with translated(), connection.cursor() as cursor:
                    cursor.execute("SELECT pg_backend_pid()")
                    require_direct(cursor.fetchone()[0], connection)
                opened.pop_all()
            self._connection = connection
        return self._connection

    def is_with(self, settings: DatabaseSettings) -> bool:
        return self._server == settings

    def rows(self, question: Question, *values: Value) -> list[tuple[Any, ...]]:
        return self._asked(partial(self._rows, question, values))

    def look(self, statement: sql.Composed) -> list[tuple[Any, ...]]:
        return self._asked(partial(self._look, statement))

    def _asked(self, ask: Callable[[], list[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
        was_open = self._connection is not None
        try:
            return ask()
        except ServerUnreachable:
            self.close()
            if not was_open:
                raise
            return ask()

    def _look(self, statement: sql.Composed) -> list[tuple[Any, ...]]:
        with translated(), self.connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def _rows(self, question: Question, values: tuple[Value, ...]) -> list[tuple[Any, ...]]:
        with translated(), self.connection.cursor() as cursor:
            if question.name not in self._prepared:
                cursor.execute(question.preparation)
                self._prepared.add(question.name)
            cursor.execute(question.execution, values)
            return list(cursor.fetchall())

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._prepared.clear()


def watch_of(tenant: Tenant) -> Watch | None:
    """The session beside those of the tenant's database; None where it would serve one tenant alone."""
    if tenant.isolation == Isolation.DATABASE or tenant.role_name or load_conf().connection_resolver:
        return None
    return _watches.find(tenant.database, backend_for(tenant).connection_settings(tenant))


def _watching(settings: DatabaseSettings) -> DatabaseSettings:
    conf = load_conf()
    options = {
        **KEEPALIVES,
        **settings.get("OPTIONS", {}),
        "application_name": "tenant-migrations watch",
        "connect_timeout": max(2, round(conf.connect_timeout)),
        "options": f"-c default_transaction_read_only=on -c lock_timeout={round(conf.lock_timeout * 1000)}",
    }
    return {**settings, "OPTIONS": options, "AUTOCOMMIT": True, "CONN_MAX_AGE": None}


_watches: Final = Kept(Watch)
