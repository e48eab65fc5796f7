"""What is done and asked the moment that a session becomes a tenant's, all in one message."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg2 import sql

from migrations_api.executor import lock
from migrations_api.executor.applied import TABLE, applied_of, applied_text, is_there
from migrations_api.executor.model_rows import marks_of
from migrations_api.executor.verification import unoccupied
from migrations_api.plan import Applied, Marks
from tenants.preflight import HomeFacts

ISOLATION: Final = sql.SQL("current_setting('transaction_isolation')")
NO: Final = sql.SQL("false")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where a tenant stands that is locked. `is_empty`: it is known that nothing at all is in its schema."""

    applied: Applied
    marks: Marks
    is_empty: bool = False


class Entry:
    """Tries to get the tenant's lock, and reads under it what a plan is made of.

    `found` is None where that was not read under the lock, and is to be asked again.
    """

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self.is_locked = False
        self.found: Found | None = None

    def statements(self, connection: DatabaseWrapper) -> sql.Composable:
        return lock.attempt(connection.settings_dict["NAME"], self._schema)

    def expressions(self, home: HomeFacts) -> Sequence[sql.Composable]:
        # Where there was no record, whoever had the lock until now may have made it.
        is_new = NO if home.has_record else is_there(self._schema)
        is_empty = NO if home.has_record else unoccupied(self._schema)
        applied = applied_text(sql.Identifier(self._schema, TABLE)) if home.has_record else sql.NULL
        return lock.ATTEMPTED, ISOLATION, is_new, is_empty, applied, *marks_of(self._schema)

    def answered(self, values: Sequence[Any]) -> None:
        locked, isolation, is_new, is_empty, applied, *marks = values
        self.is_locked = locked == "true"
        # In any other, what was asked is from before the lock.
        if self.is_locked and isolation == "read committed" and not is_new:
            permissions, content_types = map(int, marks)
            self.found = Found(applied=applied_of(applied), marks=(permissions, content_types), is_empty=is_empty)
