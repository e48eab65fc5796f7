"""What each run has applied and nobody has undone since: the run is the batch. Read from the rows of runs alone."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any

from django.db.models import Exists, F, OuterRef

from migrations_api.exceptions import InvalidOptions, InvalidTransition, NothingToRollBack, UnloadableMigrations
from migrations_api.models import Action, AppliedSet, MigrationRun, Rollout, RunStep
from migrations_api.orchestrator.fleet import MigrationRecord, migration_records
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Key, Marks, Refresh, Reset, Target, Undo, replaced_by
from migrations_api.states import DONE_STEP_STATES, RunState, StepState
from tenants.models import Tenant


@dataclass(frozen=True, kw_only=True)
class Held:
    """One migration that is applied as far as the runs know, and the run that applied it.

    What a repair has brought to its end belongs to the run that it repaired. `before` is the fingerprint of what that
    run found, and `marks` as it has them.
    """

    run_id: int
    faked: bool
    before: str
    marks: Marks | None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is to be undone, the newest first; `before` is the fingerprint of what was applied before all of it.

    `marks` are those of that time.
    """

    keys: tuple[Key, ...]
    faked: frozenset[Key]
    run_ids: frozenset[int]
    before: str
    marks: Marks | None

    def as_dict(self) -> dict[str, Any]:
        """As a run's `undo` has it."""
        return {"keys": list(self.keys), "faked": sorted(self.faked), "before": self.before, "marks": self.marks}

    @property
    def undoes(self) -> int | None:
        return next(iter(self.run_ids)) if len(self.run_ids) == 1 else None

    def undo(self) -> Undo:
        stored = AppliedSet.objects.filter(pk=self.before).first()
        return Undo(keys=self.keys, faked=self.faked, before=stored.keys if stored else frozenset(), marks=self.marks)


# In the order in which they were applied.
Found = dict[Key, Held]
Choose = Callable[[Found], Batch]


def held(tenants: Iterable[Tenant], *, since: int = 0) -> dict[str, Found]:
    """By tenant, each migration that a run applied, in the order in which they were; of runs before `since`, nothing.

    Three queries, however many tenants there are.
    """
    kinds = {tenant.tenant_id: tenant.isolation for tenant in tenants}
    found: dict[str, Found] = {tenant_id: {} for tenant_id in kinds}
    for move in sorted(_moves(kinds, since), key=lambda move: (move.run_id, move.position)):
        mine = found[move.tenant_id]
        if move.backwards:
            for gone in (move.key, *_replaced(kinds[move.tenant_id], move.key)):
                mine.pop(gone, None)
        elif not (move.owner_id != move.run_id and move.key in mine):
            # One that a repair has brought back was never undone.
            mine.pop(move.key, None)
            mine[move.key] = Held(run_id=move.owner_id, faked=move.faked, before=move.before, marks=move.marks)
    return found


@dataclass(frozen=True, kw_only=True)
class _Move:
    tenant_id: str
    run_id: int
    owner_id: int
    position: int
    key: Key
    backwards: bool
    faked: bool = False
    before: str = ""
    marks: Marks | None = None


def _moves(tenant_ids: Collection[str], since: int) -> Iterator[_Move]:
    runs = MigrationRun.objects.filter(tenant__in=tenant_ids, pk__gte=since, created_at__gte=F("tenant__created_at"))
    found = {run.pk: run for run in runs.only("repair_of_id", "applied_before_id", "model_marks").order_by()}
    columns = ("run__tenant_id", "run_id", "position", "app_label", "name", "backwards", "state")
    # Runs since the tenant's creation: there may have been another of the same name.
    steps = RunStep.objects.filter(run__in=runs.order_by().values("pk"), state__in=DONE_STEP_STATES).order_by()
    for tenant_id, run_id, position, app_label, name, backwards, state in steps.values_list(*columns):
        owner = found[run_id]
        while owner.repair_of_id in found:
            owner = found[owner.repair_of_id]
        yield _Move(
            tenant_id=tenant_id,
            run_id=run_id,
            owner_id=owner.pk,
            position=position,
            key=(app_label, name),
            backwards=backwards,
            faked=state == StepState.FAKED,
            before=owner.applied_before_id or "",
            marks=_marks(owner.model_marks),
        )
    pruned = runs.filter(options__prune=True, applied_after__isnull=False)
    for run in pruned.select_related("applied_before", "applied_after"):
        if run.applied_before and run.applied_after:
            for key in run.applied_before.keys - run.applied_after.keys:
                yield _Move(
                    tenant_id=run.tenant_id, run_id=run.pk, owner_id=run.pk, position=0, key=key, backwards=True
                )


def _replaced(isolation: str, key: Key) -> tuple[Key, ...]:
    with suppress(UnloadableMigrations):
        return replaced_by(source_for(isolation), key)
    return ()


def migration_status(tenant: Tenant) -> list[MigrationRecord]:
    """migration_records() with the run that applied each one, None for what none of them did; raises what that does."""
    records = migration_records(tenant)
    found = held([tenant])[tenant.tenant_id]

    def run_of(record: MigrationRecord) -> int | None:
        key = (record.app_label, record.name)
        owners = [found[each].run_id for each in (key, *_replaced(tenant.isolation, key)) if each in found]
        return max(owners, default=None) if record.applied else None

    return [replace(record, run_id=run_of(record)) for record in records]


def batch_of_run(run: MigrationRun) -> Choose:
    """All of what that run applied that is not undone; raises NothingToRollBack or InvalidTransition."""
    if run.is_active:
        raise InvalidTransition(f"Run {run.pk} is {run.state}; cancel it, or wait for its end.")
    if run.action == Action.REFRESH:
        raise InvalidTransition(
            f"Run {run.pk} is a refresh: it undid migrations before it applied them, and what was there before it does "
            "not come back. Reset the tenant, or migrate it to a target."
        )

    def choose(found: Found) -> Batch:
        keys = [key for key in reversed(found) if found[key].run_id == run.pk]
        if not keys:
            raise NothingToRollBack(_why_nothing(run))
        return _batch(keys, found)

    return choose


def last_batch(found: Found) -> Batch:
    """What is left of the newest run that applied something; raises NothingToRollBack."""
    if not found:
        raise NothingToRollBack
    newest = MigrationRun.objects.get(pk=found[next(reversed(found))].run_id)
    return batch_of_run(newest)(found)


def last_steps(number: int) -> Choose:
    """The newest so many, whichever runs applied them; raises InvalidOptions where there are fewer."""

    def choose(found: Found) -> Batch:
        keys = list(islice(reversed(found), number))
        if not keys:
            raise NothingToRollBack
        if len(keys) < number:
            raise InvalidOptions(f"Runs have applied {len(keys)} migrations that are not undone; not {number}.")
        return _batch(keys, found)

    return choose


def rest_of(run: MigrationRun) -> Choose:
    """What a rollback that ended early has left to be undone; raises NothingToRollBack."""

    def choose(found: Found) -> Batch:
        keys = [key for key in _keys(run.undo["keys"]) if key in found]
        if not keys:
            raise NothingToRollBack(f"All that run {run.pk} was to undo is undone.")
        return _batch(keys, found)

    return choose


def _batch(keys: Sequence[Key], found: Found) -> Batch:
    oldest = min((found[key] for key in keys), key=lambda each: each.run_id)
    return Batch(
        keys=tuple(keys),
        faked=frozenset(key for key in keys if found[key].faked),
        run_ids=frozenset(found[key].run_id for key in keys),
        before=oldest.before,
        marks=oldest.marks,
    )


def batches_of(rollout: Rollout, tenants: Sequence[Tenant]) -> dict[str, Batch]:
    """By tenant, all of what its run of that rollout applied that is not undone; raises NothingToRollBack."""
    runs = dict(rollout.runs.exclude(action=Action.REFRESH).order_by().values_list("tenant_id", "pk"))
    found = held(tenants, since=min(runs.values(), default=0))
    batches: dict[str, Batch] = {}
    for tenant_id, mine in found.items():
        if keys := [key for key in reversed(mine) if mine[key].run_id == runs.get(tenant_id)]:
            batches[tenant_id] = _batch(keys, mine)
    if not batches:
        by = rollout.rollbacks.order_by("-pk").first()
        raise NothingToRollBack(
            f"Rollout {rollout.pk} has been rolled back by rollout {by.pk}."
            if by
            else f"Rollout {rollout.pk} has applied nothing that is not undone."
        )
    return batches


def rests_of(rollout: Rollout, tenants: Sequence[Tenant]) -> dict[str, Batch]:
    """By tenant, what its run of a rollout that rolls back has left to be undone."""
    found = held(tenants)
    batches: dict[str, Batch] = {}
    for run in rollout.runs.filter(tenant__in=list(found)):
        with suppress(NothingToRollBack):
            batches[run.tenant_id] = rest_of(run)(found[run.tenant_id])
    if not batches:
        raise NothingToRollBack(f"All that rollout {rollout.pk} was to undo is undone.")
    return batches


def _why_nothing(run: MigrationRun) -> str:
    done = run.steps.filter(state__in=DONE_STEP_STATES)
    if done.filter(backwards=False).exists():
        by = run.rollbacks.filter(state=RunState.SUCCEEDED).order_by("-pk").first()
        return f"Run {run.pk} has been rolled back{f' by run {by.pk}' if by else ''}."
    if done.exists():
        return (
            f"Run {run.pk} has only undone migrations. To have them again, migrate forwards; the rows that went with "
            "them do not come back."
        )
    return f"Run {run.pk} has applied nothing."


def goal_of(run: MigrationRun) -> Target:
    """What an attempt of the run has to do: of a plan that an earlier attempt has begun, the rest."""
    if run.action == Action.ROLLBACK:
        steps = [(step.app_label, step.name) for step in run.steps.filter(state__in=DONE_STEP_STATES)]
        replaced = {key for step in steps for key in _replaced(run.tenant.isolation, step)}
        return _stored(run.undo, without={*steps, *replaced}).undo()
    if run.action == Action.RESET:
        return Reset()
    if run.action == Action.REFRESH and not _is_emptied(run):
        return Refresh()
    return Target(app_label=run.app_label or None, migration_name=run.migration_name or None)


def _is_emptied(run: MigrationRun) -> bool:
    """Whether an earlier attempt of a refresh has nothing left to undo."""
    left = run.steps.filter(backwards=True).exclude(state__in=DONE_STEP_STATES)
    return run.steps.exists() and not left.exists()


def _stored(undo: Mapping[str, Any], *, without: Collection[Key]) -> Batch:
    keys, faked = _keys(undo["keys"]), _keys(undo["faked"])
    return Batch(
        keys=tuple(key for key in keys if key not in without),
        faked=frozenset(faked),
        run_ids=frozenset(),
        before=undo["before"],
        marks=_marks(undo["marks"]),
    )


def _marks(stored: Sequence[int] | None) -> Marks | None:
    return (stored[0], stored[1]) if stored else None


def _keys(rows: Sequence[Sequence[str]]) -> list[Key]:
    return [(app_label, name) for app_label, name in rows]


@dataclass(frozen=True, kw_only=True)
class LastBatch:
    """The newest run that has changed a tenant, and when it ended; a repair is one, too."""

    run_id: int
    ended: datetime | None


def last_batches(tenant_ids: Collection[str]) -> dict[str, LastBatch]:
    """By tenant; one query, however many there are."""
    done = RunStep.objects.filter(run=OuterRef("pk"), state__in=DONE_STEP_STATES)
    newest = MigrationRun.objects.filter(Exists(done), tenant__in=tenant_ids).order_by("tenant_id", "-pk")
    rows = newest.distinct("tenant_id").values_list("tenant_id", "pk", "finished_at")
    return {tenant_id: LastBatch(run_id=run_id, ended=ended) for tenant_id, run_id, ended in rows}
