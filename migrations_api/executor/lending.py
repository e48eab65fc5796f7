"""The models of a state, rendered once, and lent to the Python code of one tenant's migration after another's.

Django renders them for each tenant, which costs more than most of that code. Lent, they have to be for each tenant what
they were for the first: nothing of them changed, no row or answer of another tenant kept in them, and nothing that code
keeps for the next time found again by them. After each time they are looked at, and what is not as it was is not lent
again.
"""

import gc
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from functools import cache, lru_cache
from operator import eq
from typing import Any, Final

from django.db.migrations.state import ProjectState, StateApps
from django.db.models import Manager, Model
from django.utils.functional import cached_property

# How often code may have left them changed before each tenant gets its own.
PATIENCE: Final = 2
# Of one plan; each takes about 75 KiB.
MOST_MODELS: Final = 1000


def isolated(state: ProjectState) -> ProjectState:
    """A copy whose models are rendered on their own, and only if they are asked for."""
    own: ProjectState = ProjectState({key: model.clone() for key, model in state.models.items()}, state.real_apps)
    return own


class Lender:
    """Gives whoever asks a state that shares nothing with `state`, and seems to be rendered for him alone."""

    def __init__(self, state: ProjectState, *, lends: bool) -> None:
        self._state = state
        self._patience = PATIENCE if lends and is_lendable(state) else 0
        self._lent: LentModels | None = None

    @contextmanager
    def state(self) -> Iterator[ProjectState]:
        """For one operation."""
        if self._patience <= 0:
            yield isolated(self._state)
            return
        # Not kept when it ends with an exception, which holds on to what it came through.
        lent, self._lent = self._lent or LentModels(isolated(self._state)), None
        yield lent.state_of_one_tenant()
        if lent.are_as_they_were():
            self._lent = lent
        else:
            self._patience -= 1


def is_lendable(state: ProjectState) -> bool:
    """Whether nobody but Django has written the managers: those of others may remember anything, anyhow."""
    managers = (manager for model in state.models.values() for _, manager in model.managers)
    return all(type(manager).__module__.split(".")[0] == "django" for manager in managers)


class LentModels:
    """What can be reached from the registry of a state, and how it stood before anybody had used it."""

    def __init__(self, state: ProjectState) -> None:
        with _collecting_new():
            apps: Any = state.apps
            # It has been asked meanwhile.
            apps.clear_cache()
            apps.__class__ = LentApps
            self._state = state
            self._apps = apps
            self._models = _models(apps)
            self._managers = [manager for model in self._models for manager in _managers(model)]
            _fill_caches(self._models)
            self._clear_caches()
        self._imprint = Imprint([self._apps])
        self._counts = self._references()

    def state_of_one_tenant(self) -> ProjectState:
        """With a registry that no other tenant has had: what is remembered by it is remembered for that tenant."""
        state: Any = copy(self._state)
        state.apps = copy(self._apps)
        return state  # type: ignore[no-any-return]

    def are_as_they_were(self) -> bool:
        """Whether nothing in them was changed, and nobody holds on to them or to an instance or query of theirs."""
        self._clear_caches()
        if not self._imprint.stands():
            return False
        if self._references() != self._counts:
            # Instances that refer to one another are let go of only by the collector, and these are young.
            gc.collect(1)
        return self._references() == self._counts

    def _clear_caches(self) -> None:
        """What a manager remembers is a tenant's rows; that of content types does."""
        for manager in self._managers:
            if clear := getattr(manager, "clear_cache", None):
                clear()

    def _references(self) -> list[int]:
        return [sys.getrefcount(model) for model in self._models]


class LentApps(StateApps):
    # The one that it overrides keeps every registry that was ever asked, and its models.
    get_models = lru_cache(maxsize=0)(StateApps.get_models.__wrapped__)  # type: ignore[attr-defined]


@contextmanager
def _collecting_new() -> Iterator[None]:
    """What is made and dropped inside is gone afterwards, without a look at anything older."""
    was_enabled = gc.isenabled()
    gc.collect(0)
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)
        if was_enabled:
            gc.enable()


class Imprint:
    """How everything stood that can be reached from registries of models."""

    def __init__(self, registries: Iterable[StateApps]) -> None:
        things = {id(thing): thing for apps in registries for thing in _things(apps)}
        self._marks = [mark for thing in things.values() for mark in _marks(thing)]
        self._now = [mark.container for mark in self._marks]
        self._then = [mark.copy for mark in self._marks]

    def stands(self) -> bool:
        """Whether it is as it was, but for what Django works out when it is first asked for."""
        if all(map(eq, self._now, self._then)):
            return True
        if not all(mark.stands() for mark in self._marks):
            return False
        self._then = [mark.copy for mark in self._marks]
        return True


class _Mark:
    """What was in a container; `may_grow` by these names, which are worked out when somebody first asks."""

    # There are tens of thousands.
    __slots__ = ("_may_grow", "container", "copy")

    def __init__(self, container: Any, *, may_grow: Container[str] = ()) -> None:
        self.container = container
        self.copy = container.copy()
        self._may_grow = may_grow

    def stands(self) -> bool:
        if self.container == self.copy:
            return True
        if not self._may_grow or not self.copy.items() <= self.container.items():
            return False
        if not all(name in self._may_grow or _is_cache(name) for name in self.container.keys() - self.copy.keys()):
            return False
        self.copy = self.container.copy()
        return True


def _things(apps: Any) -> Iterator[Any]:
    yield apps
    yield from apps.app_configs.values()
    for model in _models(apps):
        yield from (model, model._meta)
        yield from _managers(model)
        for field in model._meta.get_fields(include_hidden=True):
            yield field
            if getattr(field, "remote_field", None) is not None:
                yield field.remote_field


def _marks(thing: Any) -> Iterator[_Mark]:
    """Of its attributes, and of those of them that are containers."""
    attributes = vars(thing)
    yield _Mark(attributes, may_grow=_filled_later(thing))
    for name, value in attributes.items():
        if isinstance(value, dict | list | set) and not _is_cache(name):
            yield _Mark(value)


def _is_cache(name: str) -> bool:
    """Where Django keeps what it has worked out from the definition of a model."""
    return name.startswith("_") and name.endswith("_cache")


def _filled_later(thing: Any) -> frozenset[str]:
    return _cached_properties(type(thing).__mro__)


@cache
def _cached_properties(kinds: tuple[type, ...]) -> frozenset[str]:
    return frozenset(name for kind in kinds for name, value in vars(kind).items() if isinstance(value, cached_property))


def _fill_caches(models: Iterable[type[Model]]) -> None:
    """Let everything that is worked out once be worked out, so that it is not taken for what code has left behind."""
    for model in models:
        fields = model._meta.get_fields(include_hidden=True)
        relations = [field.remote_field for field in fields if getattr(field, "remote_field", None) is not None]
        for thing in (model._meta, *fields, *relations, *vars(model).values()):
            for name in _filled_later(thing).difference(getattr(thing, "__dict__", ())):
                # Some of them are for other kinds of the same thing.
                with suppress(Exception):
                    getattr(thing, name)


def _models(apps: Any) -> list[type[Model]]:
    return apps.get_models(include_auto_created=True, include_swapped=True)  # type: ignore[no-any-return]


def _managers(model: type[Model]) -> Iterable[Manager[Any]]:
    meta: Any = model._meta
    return [*meta.local_managers, *meta.managers, meta.base_manager, meta.default_manager]
