"""The plans that this process knows by heart: rehearsals, and scripts of its own or of other processes."""

import gc
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from migrations_api.executor.rehearsal import Rehearsal
from migrations_api.executor.script import Script
from migrations_api.plan import Applied, MigrationSource, Target, plan_to

# How many are kept: each holds the models of a whole plan.
KEPT: Final = 16
# Which migrations there are, where a tenant stands, and where it is to go.
Place = tuple[str, Applied, Target]
Lesson = tuple[Place, int, Script]

_rehearsals: OrderedDict[tuple[int, Applied, Target], Rehearsal] = OrderedDict()
_scripts: OrderedDict[Place, dict[int, Script]] = OrderedDict()
_told: set[tuple[Place, int]] = set()


def rehearsal_of(source: MigrationSource, applied: Applied, target: Target) -> Rehearsal:
    """The plan from there, and what is known of it; raises what plan_to() does."""
    own = frozenset(key for key in applied if key[0] in source.labels)
    key = (id(source), own, target)
    if key not in _rehearsals:
        scripts = _scripts_at((source.fingerprint, own, target))
        _rehearsals[key] = Rehearsal(source, plan_to(source, own, target), scripts=scripts)
    _rehearsals.move_to_end(key)
    while len(_rehearsals) > KEPT:
        _rehearsals.popitem(last=False)
        # Only where the collector looks again, its models can be collected.
        gc.unfreeze()
    return _rehearsals[key]


def _scripts_at(place: Place) -> dict[int, Script]:
    scripts = _scripts.setdefault(place, {})
    _scripts.move_to_end(place)
    while len(_scripts) > KEPT:
        _scripts.popitem(last=False)
    return scripts


def may_be_passed_on(source: MigrationSource) -> bool:
    """Whether there is a plan for which the next tenant may not need a session of its own."""
    return any(scripts and there == source.fingerprint for (there, _, _), scripts in _scripts.items()) or any(
        each.source is source and each.may_be_passed_on for each in _rehearsals.values()
    )


def learned() -> list[Lesson]:
    """The scripts that this process has come to since it was last asked, for others that were forked from the same."""
    known = {(place, version) for place, scripts in _scripts.items() for version in scripts}
    new = known - _told
    _told.intersection_update(known)
    _told.update(new)
    return [(place, version, _scripts[place][version]) for place, version in new]


def learn(lessons: Sequence[Lesson]) -> None:
    """Take over what another process has come to."""
    for place, version, script in lessons:
        _scripts_at(place)[version] = script
        _told.add((place, version))


def clear() -> None:
    """Forget everything: the migrations on disk are others now."""
    _rehearsals.clear()
    gc.unfreeze()
    _scripts.clear()
    _told.clear()
