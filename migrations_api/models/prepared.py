"""Statements of the control plane that a session prepares once: to plan one costs the server more than to execute it.

Not where a pooler stands in between: what is prepared in one of its sessions is missing from the next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from weakref import WeakKeyDictionary

import psycopg2
from django.db import connection


@dataclass(frozen=True)
class Statement:
    """A text with placeholders such as `%(run)s`, and the type of each; the name is its own."""

    name: str
    text: str
    types: Mapping[str, str]

    @cached_property
    def preparation(self) -> str:
        numbers = {placeholder: f"${place}" for place, placeholder in enumerate(self.types, 1)}
        return f"PREPARE {self.name} ({', '.join(self.types.values())}) AS {self.text % numbers}"

    @cached_property
    def execution(self) -> str:
        return f"EXECUTE {self.name} ({', '.join(f'%({placeholder})s' for placeholder in self.types)})"


# By session with the control plane: what it has prepared, None where it is not known whose session that is.
_prepared: Final[WeakKeyDictionary[Any, set[str] | None]] = WeakKeyDictionary()


def fetch_row(statement: Statement, values: Mapping[str, Any]) -> Sequence[Any] | None:
    """Execute it, over a new session where the last one was cut; returns its first row."""
    return next(iter(fetch_rows(statement, values)), None)


def fetch_rows(statement: Statement, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    """The same, with all of its rows."""
    mend()
    with connection.cursor() as cursor:
        cursor.execute(_ready(statement, cursor), values)
        rows: Sequence[Sequence[Any]] = cursor.fetchall()
    return rows


def _ready(statement: Statement, cursor: Any) -> str:
    raw = connection.connection
    if raw not in _prepared:
        cursor.execute("SELECT pg_backend_pid()")
        _prepared[raw] = set() if cursor.fetchone()[0] == raw.info.backend_pid else None
    names = _prepared[raw]
    if names is None:
        return statement.text
    if statement.name not in names:
        cursor.execute(statement.preparation)
        names.add(statement.name)
    return statement.execution


def mend() -> None:
    """Connect anew where the session was cut: what a worker has to tell is worth more than what was lost.

    Nothing is sent; only what has arrived is looked at.
    """
    raw = connection.connection
    if raw is None or connection.in_atomic_block:
        return
    try:
        # The first may come upon the server's last words, and only the second upon the end.
        raw.poll()
        raw.poll()
    except psycopg2.Error:
        connection.close()
