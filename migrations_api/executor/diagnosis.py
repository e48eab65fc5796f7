"""What a step that was stopped half-way has left, from its journal and the catalog, and the ways out of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.migration import Migration
from django.db.migrations.operations import (
    AddField,
    CreateModel,
    DeleteModel,
    RemoveField,
    RunSQL,
    SeparateDatabaseAndState,
)
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from psycopg2 import sql

from migrations_api.exceptions import RepairImpossible
from migrations_api.executor.applied import TenantRecorder
from migrations_api.executor.verification import faults, has_column, index_validity, present_tables, table_name
from migrations_api.plan import Applied, Key, MigrationSource, full_order, is_recorded
from tenants.driver_errors import translated
from tenants.models import Tenant
from tenants.watch import OwnSession

RECORD: Final = "record"
REDO: Final = "redo"
UNDO: Final = "undo"
MARK: Final = "mark"

DONE: Final = "done"
UNCLEAR: Final = "unclear"
OPEN: Final = "open"

CONCURRENTLY: Final = re.compile(
    r"\s*(?P<verb>CREATE|DROP)\s+(UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(IF\s+(NOT\s+)?EXISTS\s+)?"
    r'("(?P<quoted>[^"]+)"|(?P<plain>\w+))(?!\s*\.)[^;]*;?\s*\Z',
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Journal:
    """Where a step stopped: so many of its operations were finished, of the next so many statements were begun.

    With `finished` it did not stop: all of them were. No operation before the `first` has sent anything.
    """

    key: Key
    backwards: bool
    operation: int
    statements: int
    first: int = 0
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class OperationStanding:
    """`standing` is `done` for what is there, `open` for what is not, `unclear` where a statement was cut off."""

    description: str
    standing: str


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way out: what it does, or why it cannot be gone."""

    name: str
    possible: bool
    does: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is there of the step that a run left half-way, what is missing, and the ways to bring that to an end."""

    step: str
    backwards: bool
    recorded: bool
    operations: tuple[OperationStanding, ...]
    invalid_indexes: tuple[str, ...]
    ways: tuple[Way, ...]

    def way(self, name: str) -> Way:
        return next(way for way in self.ways if way.name == name)


@dataclass(frozen=True, kw_only=True)
class Remnant:
    """What an operation that was cut off has left, and what removes it.

    `is_new` when the operation was making it; what one was removing held data, and only goes on being removed.
    """

    name: str
    removal: sql.Composed
    is_new: bool
    is_index: bool


@dataclass(frozen=True, kw_only=True)
class Half:
    """Of the operations, in the direction of the step, so many are done; the next is as far as `unclear` and `remnant`
    say, and has not been begun without them. A `restartable` one may have been, and can be done or undone all the same.
    """

    key: Key
    migration: Migration
    backwards: bool
    done: int
    unclear: bool
    remnant: Remnant | None
    invalid: tuple[str, ...]
    recorded: bool
    state: ProjectState
    restartable: bool = False

    @property
    def operations(self) -> Sequence[Operation]:
        return self.migration.operations

    @property
    def total(self) -> int:
        return len(self.operations)

    @property
    def is_whole(self) -> bool:
        return self.done == self.total

    @property
    def is_at_goal(self) -> bool:
        """Whether the record says that the step is over, in the direction in which it was going."""
        return self.recorded != self.backwards

    @property
    def is_cut_off(self) -> bool:
        return self.unclear or self.remnant is not None

    @property
    def applied(self) -> int:
        """So many of the operations, in the order of the file, are there for certain."""
        return self.total - self.done - self.is_cut_off if self.backwards else self.done

    @property
    def in_flight(self) -> Operation:
        return self.operations[self.total - 1 - self.done if self.backwards else self.done]

    @property
    def other_invalid(self) -> tuple[str, ...]:
        return tuple(name for name in self.invalid if self.remnant is None or name != self.remnant.name)

    def cleared(self) -> "Half":
        """As it is without what was left: what was being removed is gone then."""
        if self.remnant is None:
            return self
        return replace(self, remnant=None, done=self.done + (not self.remnant.is_new))

    def towards(self, way: str) -> "Half":
        """As the way finds it: undoing begins with what may have been begun."""
        cleared = self.cleared()
        if cleared.restartable and way == UNDO:
            return replace(cleared, done=cleared.done + 1, restartable=False)
        return cleared


def examine(connection: BaseDatabaseWrapper, tenant: Tenant, source: MigrationSource, journal: Journal) -> Half:
    """Read the tenant, which is locked or may change meanwhile; raises RepairImpossible for a step that is gone."""
    migration = source.migrations.get(journal.key)
    if migration is None:
        raise RepairImpossible(f"{'.'.join(journal.key)} is not in this code any more.")
    schema = tenant.schema_name
    with translated():
        applied = TenantRecorder(connection, schema).applied_keys()
        invalid = tuple(sorted(faults(OwnSession(connection), schema).invalid_indexes))
    total = len(migration.operations)
    half = Half(
        key=journal.key,
        migration=migration,
        backwards=journal.backwards,
        done=total if journal.finished else min(journal.operation, total),
        unclear=False,
        remnant=None,
        invalid=invalid,
        recorded=is_recorded(journal.key, applied, source),
        state=models_of(source, applied, without=journal.key),
    )
    if half.is_whole:
        return half
    with translated():
        return _Examination(connection, schema, half).result(begun=journal.statements > 0)


def has_left_nothing(
    connection: BaseDatabaseWrapper, tenant: Tenant, source: MigrationSource, journal: Journal
) -> bool:
    """Whether the tenant stands as it did before the step; of what nobody can know, it does not."""
    try:
        half = examine(connection, tenant, source, journal)
    except RepairImpossible:
        return False
    return half.done <= journal.first and not half.is_cut_off and not half.restartable and not half.invalid


def models_of(source: MigrationSource, applied: Applied, *, without: Key | None = None) -> ProjectState:
    """The models as what is applied leaves them; raises RepairImpossible where `without` is no step any more."""
    loader = source.loader(key for key in applied if key[0] in source.labels)
    state = ProjectState(real_apps=loader.unmigrated_apps)
    order = full_order(loader)
    if without is not None and without not in order:
        raise RepairImpossible(f"{'.'.join(without)} is replaced by another migration.")
    for key in order:
        if key in loader.applied_migrations and key != without:
            loader.graph.nodes[key].mutate_state(state, preserve=False)
    return state


class _Examination:
    """What became of the operation in flight, as far as the catalog tells."""

    def __init__(self, connection: BaseDatabaseWrapper, schema: str, half: Half) -> None:
        self._connection = connection
        self._schema = schema
        self._half = half
        self._operation = _inner(half.in_flight)

    def result(self, *, begun: bool) -> Half:
        if index := _index(self._operation, backwards=self._half.backwards):
            name, makes = index
            return self._of_index(name, makes=makes, begun=begun)
        if not begun:
            return self._half
        if getattr(self._operation, "restartable", False):
            return replace(self._half, restartable=True)
        if type(self._half.in_flight) in {CreateModel, DeleteModel}:
            return self._of_table()
        if isinstance(self._operation, AddField | RemoveField):
            return self._of_column()
        return replace(self._half, unclear=True)

    def _over(self) -> Half:
        return replace(self._half, done=self._half.done + 1)

    def _of_index(self, name: str, *, makes: bool, begun: bool) -> Half:
        valid = index_validity(self._connection, self._schema, name)
        if valid is False:
            index = sql.Identifier(self._schema, name)
            removal = sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(index)
            remnant = Remnant(name=name, removal=removal, is_new=makes, is_index=True)
            return replace(self._half, remnant=remnant)
        return self._over() if begun and (valid is not None) == makes else self._half

    def _of_table(self) -> Half:
        """It was made, or dropped, in one transaction."""
        makes = isinstance(self._operation, CreateModel) != self._half.backwards
        model = self._around().models[self._half.key[0], self._operation.name_lower]  # type: ignore[attr-defined]
        table = table_name(model, self._connection)
        is_there = bool(present_tables(OwnSession(self._connection), self._schema, [table]))
        return self._over() if is_there == makes else self._half

    def _of_column(self) -> Half:
        operation: Any = self._operation
        model = self._around().apps.get_model(self._half.key[0], operation.model_name)
        field = model._meta.get_field(operation.name)
        makes = isinstance(operation, AddField) != self._half.backwards
        if field.column is None:
            return replace(self._half, unclear=True)
        table = model._meta.db_table.strip('"')
        if not has_column(self._connection, self._schema, table, field.column):
            return self._half if makes else self._over()
        removal = sql.SQL("ALTER TABLE {} DROP COLUMN IF EXISTS {} CASCADE").format(
            sql.Identifier(self._schema, table), sql.Identifier(field.column)
        )
        remnant = Remnant(name=f"{table}.{field.column}", removal=removal, is_new=makes, is_index=False)
        return replace(self._half, remnant=remnant)

    def _around(self) -> ProjectState:
        """The models on that side of the operation on which what it makes or removes is there."""
        after = isinstance(self._operation, CreateModel | AddField)
        place = self._half.operations.index(self._half.in_flight) + after
        state = self._half.state.clone()
        for operation in self._half.operations[:place]:
            operation.state_forwards(self._half.key[0], state)
        if after and self._operation is not self._half.in_flight:
            self._operation.state_forwards(self._half.key[0], state)
        return state


def _inner(operation: Operation) -> Operation:
    if isinstance(operation, SeparateDatabaseAndState) and len(operation.database_operations) == 1:
        return _inner(operation.database_operations[0])
    return operation


def _index(operation: Operation, *, backwards: bool) -> tuple[str, bool] | None:
    """The one index that the operation builds (True) or drops (False) without a lock, if that is all it does."""
    if isinstance(operation, AddIndexConcurrently):
        return str(operation.index.name), not backwards
    if isinstance(operation, RemoveIndexConcurrently):
        return str(operation.name), backwards
    if not isinstance(operation, RunSQL):
        return None
    statement: Any = operation.reverse_sql if backwards else operation.sql
    if isinstance(statement, list | tuple) and len(statement) == 1:
        (statement,) = statement
    found = CONCURRENTLY.match(statement) if isinstance(statement, str) else None
    if found is None:
        return None
    return found["quoted"] or found["plain"].lower(), found["verb"].upper() == "CREATE"


def diagnosis(half: Half) -> Diagnosis:
    return Diagnosis(
        step=".".join(half.key),
        backwards=half.backwards,
        recorded=half.recorded,
        operations=tuple(
            OperationStanding(description=each.describe(), standing=_standing(half, place))
            for place, each in enumerate(half.operations)
        ),
        invalid_indexes=half.invalid,
        ways=(_record(half), _redo(half), _undo(half), _mark()),
    )


def _standing(half: Half, place: int) -> str:
    if half.restartable and half.operations[place] is half.in_flight:
        return UNCLEAR
    if place < half.applied:
        return DONE
    return UNCLEAR if half.is_cut_off and place == half.applied else OPEN


def _record(half: Half) -> Way:
    possible, does = False, "Not every operation of the step is really done."
    if half.is_at_goal:
        does = "The record says already what it would say."
    elif half.is_whole and half.invalid:
        does = f"Not valid: {', '.join(half.invalid)}."
    elif half.is_whole:
        possible, does = True, "Records the step, all of whose operations are done."
        if half.backwards:
            does = "Takes the step out of the record; all of its operations are undone."
    return Way(name=RECORD, possible=possible, does=does)


def _redo(half: Half) -> Way:
    if half.unclear:
        return Way(name=REDO, possible=False, does=_unclear(half))
    parts = [f"drops {half.remnant.name}"] if half.remnant else []
    if left := half.total - half.cleared().done:
        parts.append(f"{'undoes' if half.backwards else 'does'} {_counted(left)} that {_verb(left)} left")
    if half.other_invalid:
        parts.append(f"builds again {', '.join(half.other_invalid)}")
    if not parts:
        does = "Nothing is left to be done." if half.is_at_goal else "Nothing is left to be done but the record."
        return Way(name=REDO, possible=False, does=does)
    return Way(name=REDO, possible=True, does=_sentence(parts))


def _undo(half: Half) -> Way:
    if half.is_whole and half.is_at_goal:
        there = "not recorded any more; migrate to it" if half.backwards else "recorded; migrate to the one before"
        return Way(name=UNDO, possible=False, does=f"The step is {there} instead.")
    if half.unclear or (half.remnant and not half.remnant.is_new and not half.remnant.is_index):
        return Way(name=UNDO, possible=False, does=_unclear(half))
    cleared = half.towards(UNDO)
    fixed = [] if half.backwards else [each for each in half.operations[: cleared.applied] if not each.reversible]
    if fixed:
        return Way(name=UNDO, possible=False, does=f"Cannot be undone: {fixed[-1].describe()}.")
    parts = [f"drops {half.remnant.name}"] if half.remnant else []
    if done := cleared.done:
        again = f"does again {_counted(done)} that {'was' if done == 1 else 'were'} undone"
        parts.append(again if half.backwards else f"undoes {_counted(done)} that {_verb(done)} done")
    does = _sentence(parts) if parts else "Nothing of the step is done; takes the tenant as standing before it."
    return Way(name=UNDO, possible=True, does=does)


def _counted(operations: int) -> str:
    return "the one operation" if operations == 1 else f"the {operations} operations"


def _verb(operations: int) -> str:
    return "is" if operations == 1 else "are"


def _sentence(parts: Sequence[str]) -> str:
    text = ", then ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _mark() -> Way:
    does = "Changes nothing in the tenant and takes it as it stands: after somebody has repaired it by hand."
    return Way(name=MARK, possible=True, does=does)


def _unclear(half: Half) -> str:
    operation = half.in_flight.describe()
    return f"Whether this was carried out is not known: {operation}. Look, bring it to one or the other, and mark it."
