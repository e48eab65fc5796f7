"""How far a step has come that has no transaction around it: told operation by operation, before each statement."""

import re
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Final

from django.db import Error as DatabaseError
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.migration import Migration
from django.db.migrations.operations import CreateModel, DeleteModel, RunSQL, SeparateDatabaseAndState
from django.db.migrations.operations.base import Operation

from migrations_api.executor.guard import may_be_unlocked
from migrations_api.executor.statements import OwnStatement, text_of
from tenants.driver_errors import sqlstate

# What leaves nothing behind, unless a function that a SELECT calls does: in RunSQL, that is why it is there.
READS: Final = re.compile(r"\s*(SELECT|SHOW)\b", re.IGNORECASE)
SESSION: Final = re.compile(r"\s*(SAVEPOINT|RELEASE|ROLLBACK|SET|RESET)\b[^;]*;?\s*\Z", re.IGNORECASE)
# What can leave something behind though the server refuses the rest.
COMMITS: Final = re.compile(r"\bCOMMIT\b|\bCALL\b|\bDETACH\b.*\bCONCURRENTLY\b", re.IGNORECASE | re.DOTALL)
# END is another word for COMMIT, but not in the body of a DO block.
ENDS: Final = re.compile(r"(\A|;)\s*END\b", re.IGNORECASE)
BODY: Final = re.compile(r"\$(\w*)\$.*?\$\1\$", re.DOTALL)

Tell = Callable[[int, int], None]


def flush_deferred(editor: BaseDatabaseSchemaEditor) -> None:
    """Foreign keys and indexes of new tables and columns, which Django leaves until a migration ends."""
    deferred, editor.deferred_sql = editor.deferred_sql, []
    for statement in deferred:
        editor.execute(statement)


def is_whole(operation: Operation) -> bool:
    """Whether it is carried out in a transaction of its own, in a migration that has none.

    That of a table is, beside those that ask for it: nobody else uses a table that is not there yet, or no longer.
    """
    return bool(operation.atomic) or type(operation) in {CreateModel, DeleteModel}


def may_commit(statement: str) -> bool:
    return bool(COMMITS.search(statement)) or bool(ENDS.search(BODY.sub("", statement)))


def _runs_sql(operation: Operation | None) -> bool:
    if isinstance(operation, SeparateDatabaseAndState):
        return any(_runs_sql(each) for each in operation.database_operations)
    return isinstance(operation, RunSQL)


class JournalKeeper:
    """`tell` gets the number of the operation in flight, and how many statements of it were begun and not refused.

    Without `is_kept`, a transaction of its own tells what became of the step, and nothing is counted.
    `before_commit` is called at the end of each transaction that an operation has of its own.
    """

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        *,
        tell: Tell,
        is_kept: bool = True,
        before_commit: Callable[[], None] = lambda: None,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        # All statements of the step that were begun and not refused.
        self.statements = 0
        # The operation of the first statement that was begun, were it refused since.
        self.first: int | None = None
        # Whether one of them may have changed what the transaction's locks do not show.
        self.has_unlocked = False
        self._connection = connection
        self._tell = tell
        self._is_kept = is_kept
        self._before_commit = before_commit
        self._place = self._told = start
        self._operation: Operation | None = None

    def journaled(self, migration: Migration, numbered: Sequence[tuple[int | None, Operation]]) -> Migration:
        """The migration with just those operations; those with a number, which is in the order of the step, tell."""
        told: Any = copy(migration)
        told.operations = [
            operation if number is None else self._telling(operation, number) for number, operation in numbered
        ]
        return told  # type: ignore[no-any-return]

    def count(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001
        """A wrapper for the connection's statements."""
        # Whether the step was recorded, its record tells.
        if isinstance(sql, OwnStatement):
            return execute(sql, params, many, context)
        statement = text_of(sql, context)
        self.has_unlocked = self.has_unlocked or may_be_unlocked(statement)
        if not self._is_kept or self._changes_nothing(statement):
            return execute(sql, params, many, context)
        self._begin(1)
        try:
            return execute(sql, params, many, context)
        except DatabaseError as error:
            # What the server refused is not done; without its answer nobody knows.
            if self._has_answered(error) and not many and not may_commit(statement):
                self._begin(-1)
            raise

    @property
    def has_begun(self) -> bool:
        return self.first is not None

    @property
    def place(self) -> tuple[int, int]:
        """The operation in flight, and how many of its statements were begun."""
        return self._place

    def at(self, number: int, begun: int = 0) -> None:
        """The operations before that one are done."""
        self._place = (number, begun)
        if self._place != self._told:
            self._tell(*self._place)
            self._told = self._place

    def _begin(self, statements: int) -> None:
        self.statements += statements
        number, begun = self._place
        if self.first is None:
            self.first = number
        self.at(number, begun + statements)

    def _changes_nothing(self, statement: str) -> bool:
        if SESSION.match(statement):
            return True
        return bool(READS.match(statement)) and not _runs_sql(self._operation)

    def _has_answered(self, error: DatabaseError) -> bool:
        raw = self._connection.connection
        return bool(sqlstate(error)) or (raw is not None and not raw.closed)

    def _telling(self, operation: Operation, number: int) -> Operation:
        told: Any = copy(operation)
        # Its transaction is begun and ended here, where it is seen which of its statements have come to nothing.
        told.atomic = False
        for name in ("database_forwards", "database_backwards"):
            setattr(told, name, self._carrying_out(operation, getattr(operation, name), number))
        return told  # type: ignore[no-any-return]

    def _carrying_out(self, operation: Operation, act: Callable[..., None], number: int) -> Callable[..., None]:
        def carry_out(app_label: str, editor: BaseDatabaseSchemaEditor, *states: Any) -> None:
            self.at(number)
            self._operation = operation
            if is_whole(operation):
                self._in_transaction(lambda: act(app_label, editor, *states), editor)
            else:
                act(app_label, editor, *states)
                flush_deferred(editor)
            self._operation = None
            self.at(number + 1)

        return carry_out

    def _in_transaction(self, act: Callable[[], None], editor: BaseDatabaseSchemaEditor) -> None:
        before, committing = self.statements, False
        try:
            with transaction.atomic(using=self._connection.alias):
                act()
                flush_deferred(editor)
                self._before_commit()
                committing = True
        except Exception as error:
            # Only when the reply to COMMIT is lost, nobody knows.
            if not committing or sqlstate(error):
                self._begin(before - self.statements)
            raise
