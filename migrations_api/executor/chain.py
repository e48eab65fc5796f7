"""The states of the models before, between and after the operations of a plan, with the models rendered."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.db.migrations.migration import Migration
from django.db.migrations.operations import RunPython
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from migrations_api.executor.lending import MOST_MODELS, Imprint, Lender, isolated
from migrations_api.executor.tape import SHARING, Around
from migrations_api.plan import Key


class Chain:
    """Kept as the first tenant passes them, since to render them is most of what it costs.

    Where its code may have changed the models, and where no tenant has passed all of them, they are made anew.
    """

    def __init__(
        self, before: ProjectState, order: Sequence[Migration], operations: Mapping[Key, Sequence[Operation]]
    ) -> None:
        self._before = before
        self._order = order
        self._operations = operations
        self._passed: dict[Key, list[ProjectState]] = {}
        self._end: ProjectState | None = None
        self._is_spoilt = False
        self._lenders: dict[tuple[Key, int], Lender] = {}
        self._lent = 0
        self._around: dict[Key, Sequence[Around]] = {}
        self._apart: dict[Key, _Apart] = {}

    def keeping(self, migration: Migration) -> Migration:
        """For the first tenant: the migration with operations that keep the states before them."""
        told: Any = copy(migration)
        self._passed[_key(migration)] = []
        told.operations = [
            self._keeping(operation, _key(migration), place) for place, operation in enumerate(migration.operations)
        ]
        return told  # type: ignore[no-any-return]

    def _keeping(self, operation: Operation, key: Key, place: int) -> Operation:
        told: Any = copy(operation)

        def forwards(app_label: str, editor: Any, *given: ProjectState) -> None:
            before = given[0] if type(operation) in SHARING else given[0].clone()
            _share(self._newest, before)
            self._passed[key].append(before)
            with self._as_django(operation, (key, place), given) as states:
                operation.database_forwards(app_label, editor, *states)

        told.database_forwards = forwards
        return told  # type: ignore[no-any-return]

    @property
    def _newest(self) -> ProjectState:
        return next((states[-1] for states in reversed(self._passed.values()) if states), self._before)

    @contextmanager
    def _as_django(
        self, operation: Operation, at: tuple[Key, int], given: Sequence[ProjectState]
    ) -> Iterator[Sequence[ProjectState]]:
        """What the operation gets from Django; if it changes the models, they are of no use for other tenants."""
        if type(operation) in SHARING:
            yield given
        elif _is_code(operation) and given[0].is_delayed:
            # Then Django renders all models once more, for this operation alone.
            with self._lender(at, self._passed[at[0]][-1]).state() as before:
                yield before, given[1]
        else:
            imprint = Imprint(state.apps for state in given)
            yield given
            self._is_spoilt = self._is_spoilt or not imprint.stands()

    def passed(self, migration: Migration, state: ProjectState) -> None:
        """Of the first tenant; behind the last one, the states are known."""
        # What is kept will stay, and is a million objects that the collector would look at again and again.
        gc.collect()
        gc.freeze()
        if _key(migration) == _key(self._order[-1]) and not self._is_spoilt:
            self._end = state.clone()
            _share(self._newest, self._end)

    @property
    def is_kept(self) -> bool:
        return self._end is not None

    @cached_property
    def last(self) -> ProjectState:
        """After the last operation."""
        return self._states[_key(self._order[-1])][-1] if self._order else self._before

    @cached_property
    def _states(self) -> dict[Key, list[ProjectState]]:
        return self._made() if self._end is None else self._kept(self._end)

    def _kept(self, after: ProjectState) -> dict[Key, list[ProjectState]]:
        states = {}
        for migration in reversed(self._order):
            states[_key(migration)] = [*self._passed.get(_key(migration), ()), after]
            after = states[_key(migration)][0]
        return states

    def _made(self) -> dict[Key, list[ProjectState]]:
        return self._rendered(isolated(self._before), self._order)

    def _rendered(self, state: ProjectState, order: Sequence[Migration]) -> dict[Key, list[ProjectState]]:
        states = {}
        # Rendered now, an operation renders again only what it changes.
        _ = state.apps
        for migration in order:
            passed = states[_key(migration)] = [state]
            for operation in self._operations[_key(migration)]:
                state = state.clone()
                operation.state_forwards(migration.app_label, state)
                _share(passed[-1], state)
                passed.append(state)
        return states

    def states(self, migration: Migration) -> list[ProjectState]:
        """The models before its first operation, and after each."""
        return self._states[_key(migration)]

    def around(self, migration: Migration) -> Sequence[Around]:
        """The states before and after each of its operations; those that may be any code get some of their own."""
        key = _key(migration)
        if key not in self._around:
            self._around[key] = self._around_each(key, self.states(migration))
        return self._around[key]

    @contextmanager
    def around_apart(self, migration: Migration) -> Iterator[Sequence[Around]]:
        """The same for one without a transaction, where nothing takes back what was not said for the first tenant.

        Its states have been rendered for it alone, and are not used again once anything has changed them.
        """
        key = _key(migration)
        apart = self._apart.pop(key, None) or self._rendered_apart(migration)
        yield apart.around
        if apart.imprint.stands():
            self._apart[key] = apart

    def _rendered_apart(self, migration: Migration) -> "_Apart":
        states = self._rendered(isolated(self.states(migration)[0]), [migration])[_key(migration)]
        return _Apart(
            around=self._around_each(_key(migration), states), imprint=Imprint(state.apps for state in states)
        )

    def _around_each(self, key: Key, states: Sequence[ProjectState]) -> Sequence[Around]:
        return [
            self._around_one(operation, (key, place), states[place : place + 2])
            for place, operation in enumerate(self._operations[key])
        ]

    def _around_one(self, operation: Operation, at: tuple[Key, int], states: Sequence[ProjectState]) -> Around:
        if type(operation) in SHARING:
            return lambda: nullcontext(states)
        if not _is_code(operation):
            return lambda: nullcontext([isolated(state) for state in states])
        lender = self._lender(at, states[0])

        @contextmanager
        def lent() -> Iterator[Sequence[ProjectState]]:
            with lender.state() as before:
                # It is not asked for the other one.
                yield before, states[1]

        return lent

    def _lender(self, at: tuple[Key, int], state: ProjectState) -> Lender:
        if at not in self._lenders:
            self._lent += len(state.models)
            self._lenders[at] = Lender(state, lends=self._lent <= MOST_MODELS)
        return self._lenders[at]


@dataclass(frozen=True, kw_only=True)
class _Apart:
    around: Sequence[Around]
    imprint: Imprint


def _key(migration: Migration) -> Key:
    return migration.app_label, migration.name


def _is_code(operation: Operation) -> bool:
    """Whether it is RunPython, by whatever name: it gets the models before it, and no more."""
    kind = type(operation)
    return (
        isinstance(operation, RunPython)
        and kind.database_forwards is RunPython.database_forwards
        and kind.state_forwards is RunPython.state_forwards
    )


def _share(before: ProjectState, after: ProjectState) -> None:
    """Keep one copy of what an operation has not changed: a plan may have hundreds of them, over hundreds of models."""
    for key, model in after.models.items():
        earlier = before.models.get(key)
        if earlier is not None and vars(earlier) == vars(model):
            after.models[key] = earlier
