"""What the operations of a migration send to the server: noted for one tenant, held against that for others."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import Any, Final

from django.contrib.postgres import operations as postgres
from django.db import Error as DatabaseError
from django.db.migrations import operations
from django.db.migrations.migration import Migration
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from migrations_api.executor.script import Statement

# Those read the models' states and change nothing of them. Others may be any code: they get states of their own.
SHARING: Final = frozenset(
    {
        operations.AddConstraint,
        operations.AddField,
        operations.AddIndex,
        operations.AlterField,
        operations.AlterIndexTogether,
        operations.AlterModelManagers,
        operations.AlterModelOptions,
        operations.AlterModelTable,
        operations.AlterModelTableComment,
        operations.AlterOrderWithRespectTo,
        operations.AlterUniqueTogether,
        operations.CreateModel,
        operations.DeleteModel,
        operations.RemoveConstraint,
        operations.RemoveField,
        operations.RemoveIndex,
        operations.RenameField,
        operations.RenameIndex,
        operations.RenameModel,
        operations.RunSQL,
        postgres.AddConstraintNotValid,
        postgres.AddIndexConcurrently,
        postgres.RemoveIndexConcurrently,
        postgres.ValidateConstraint,
    }
)
# The states before and after an operation, for as long as one tenant needs them.
Around = Callable[[], AbstractContextManager[Sequence[ProjectState]]]
# A value as it stands in a statement. Names of things in the database have other quotes.
VALUE: Final = re.compile(r"'(?:[^']|'')*'")


class Departure(Exception):
    """An operation is about to do something else than it did for the first tenant."""


class Tape:
    """Notes what the operations of one migration send to the server; with `expected`, lets nothing else pass.

    Where `values_vary`, since a default is computed anew each time, only what is between quotes may be something else.
    """

    def __init__(self, expected: Sequence[Statement] | None = None, *, values_vary: bool = False) -> None:
        self.noted: list[Statement] = []
        self._expected = expected
        self._values_vary = values_vary
        self._is_on = False

    def wrap(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001
        """A wrapper for the connection's statements."""
        if self._is_on:
            statement = (str(sql), repr(params))
            if not self._is_expected(statement):
                raise Departure
            self.noted.append(statement)
        return execute(sql, params, many, context)

    def _is_expected(self, statement: Statement) -> bool:
        if self._expected is None:
            return True
        place = len(self.noted)
        if place >= len(self._expected):
            return False
        expected = self._expected[place]
        return expected == statement or (self._values_vary and _shape(expected) == _shape(statement))

    def is_played_out(self) -> bool:
        return self._expected is None or len(self.noted) == len(self._expected)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._is_on = True
        try:
            yield
        except DatabaseError:
            raise
        except Exception as error:
            # Of the states, not of the tenant: Django's own way will tell.
            if self._expected is not None:
                raise Departure from error
            raise
        finally:
            self._is_on = False

    def taped(self, migration: Migration, around: Sequence[Around] | None = None) -> Migration:
        """The migration with operations that are noted; each with the states that `around` has for it, if given."""
        told: Any = copy(migration)
        told.operations = [
            self._taped(operation, around[place] if around else None)
            for place, operation in enumerate(migration.operations)
        ]
        return told  # type: ignore[no-any-return]

    def _taped(self, operation: Operation, around: Around | None) -> Operation:
        told: Any = copy(operation)
        shares = type(operation) in SHARING

        def forwards(app_label: str, editor: Any, *given: ProjectState) -> None:
            with around() if around else nullcontext(given) as states, self.running() if shares else nullcontext():
                operation.database_forwards(app_label, editor, *states)

        told.database_forwards = forwards
        if around is not None:
            told.state_forwards = lambda app_label, state: None
        return told  # type: ignore[no-any-return]


def _shape(statement: Statement) -> Statement:
    text, parameters = statement
    return VALUE.sub("?", text), parameters
