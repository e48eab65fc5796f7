"""Settle what there is nothing to do for, by reading the tenants of a rollout in batches instead of working on each."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from django.db import transaction
from django.db.models import F, OuterRef, Q, Subquery
from django.db.models.functions import Now

from migrations_api.dispatch.base import Emit
from migrations_api.dispatch.history import run_ended
from migrations_api.events import RunStarted
from migrations_api.exceptions import PlanError
from migrations_api.executor import Options
from migrations_api.models import Action, AppliedSet, MigrationRun, Rollout, TenantObservation
from migrations_api.models.runs import RECORDING
from migrations_api.orchestrator.fleet import observe, plan_once
from migrations_api.orchestrator.requests import target_of
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Applied, Plan, fingerprint
from migrations_api.states import STARTING_ROLLOUT_STATES, RunState
from tenants.models import Isolation

# How many tenants are read, and settled, at a time.
BATCH: Final = 1000

Plans = dict[tuple[str, str], Plan | PlanError]


def confirm_up_to_date(rollout: Rollout, *, emit: Emit) -> int:
    """End those of the rollout's open runs for which there is nothing to do; returns how many.

    Only where the tenant's last run has migrated it, has succeeded and left it as it is now: otherwise something is
    left to be done, were it only that receivers of post_migrate were not told. Tenants with a database of their own are
    left to the workers, which connect to them side by side.
    """
    asked = Options(**rollout.options)
    if rollout.action != Action.MIGRATE or asked != Options(allow_backwards=asked.allow_backwards):
        return 0
    plans: Plans = {}
    confirmed = 0
    for runs in _batches(rollout):
        for plan, after, idle in _idle(rollout, runs, plans):
            confirmed += _end(rollout, idle, plan, after, emit)
    return confirmed


def _batches(rollout: Rollout) -> Iterator[Sequence[MigrationRun]]:
    """Those whose tenant stands where its last run left it, as far as is known without asking it."""
    last = MigrationRun.objects.filter(tenant=OuterRef("tenant"), applied_after__isnull=False).order_by("-pk")
    all_told = Q(state=RunState.SUCCEEDED, action=Action.MIGRATE) & ~Q(options__has_any_keys=RECORDING)
    pending = (
        rollout.runs.filter(state=RunState.PENDING, wave__lte=rollout.open_wave, attempt=0)
        .exclude(tenant__isolation=Isolation.DATABASE)
        .filter(tenant__held_at=None)
        .filter(tenant__observation__partial=False, tenant__observation__error_code="")
        # As annotations, these would be found once more for what is selected.
        .alias(
            is_all_told=Subquery(last.annotate(is_all_told=all_told).values("is_all_told")[:1]),
            last_left=Subquery(last.values("applied_after")[:1]),
        )
        .filter(is_all_told=True, last_left=F("tenant__observation__applied"))
        .annotate(left=F("tenant__observation__applied"))
        .select_related("tenant")
        .only("tenant", "rollout", "state", "error_code", "failed_step", "message")
        .order_by("pk")
    )
    batch = list(pending[:BATCH])
    while batch:
        yield batch
        batch = list(pending.filter(pk__gt=batch[-1].pk)[:BATCH]) if len(batch) == BATCH else []


def _idle(
    rollout: Rollout, runs: Sequence[MigrationRun], plans: Plans
) -> Iterator[tuple[Plan, Applied, Sequence[MigrationRun]]]:
    """The runs with nothing to do, by where their tenants stand now."""
    tenants = [run.tenant for run in runs]
    seen = observe(tenants, meanwhile=partial(_load, {tenant.isolation for tenant in tenants}))
    at: defaultdict[tuple[str, Applied], list[MigrationRun]] = defaultdict(list)
    for run in runs:
        found = seen[run.tenant_id].applied
        if found is not None:
            at[run.tenant.isolation, found].append(run)
    for (_, applied), there in at.items():
        plan = plan_once(there[0].tenant, applied, plans, target_of(rollout))
        if not isinstance(plan, PlanError) and not (plan.steps or plan.replacements or plan.unknown):
            name = fingerprint(applied)
            yield plan, applied, [run for run in there if run.left == name]  # type: ignore[attr-defined]  # annotated


def _load(isolations: Collection[str]) -> None:
    """Read the migrations of those kinds; what is wrong with them is told by whoever plans."""
    with suppress(PlanError):
        for isolation in sorted(isolations):
            source_for(isolation)


def _end(rollout: Rollout, runs: Sequence[MigrationRun], plan: Plan, after: Applied, emit: Emit) -> int:
    """Under the rollout's lock: one that is being paused starts nothing. `after` is what their last runs have left."""
    left = fingerprint(after)
    with transaction.atomic():
        locked = Rollout.objects.select_for_update(no_key=True).filter(pk=rollout.pk, state__in=STARTING_ROLLOUT_STATES)
        if not locked.exists():
            return 0
        free = MigrationRun.objects.select_for_update(no_key=True, skip_locked=True)
        asked = [run.pk for run in runs]
        ids = set(free.filter(pk__in=asked, state=RunState.PENDING).values_list("pk", flat=True))
        MigrationRun.objects.filter(pk__in=ids).transition(
            "confirm",
            attempt=F("attempt") + 1,
            started_at=Now(),
            finished_at=Now(),
            plan_digest=plan.digest,
            applied_before_id=AppliedSet.store(plan.applied) if plan.applied != after else left,
            applied_after_id=left,
        )
        ended = [run for run in runs if run.pk in ids]
        TenantObservation.objects.filter(pk__in=[run.tenant_id for run in ended]).update(observed_at=Now())
    for run in ended:
        emit(RunStarted(run_id=run.pk, tenant_id=run.tenant_id, tenant_name=run.tenant.name))
        run.state = RunState.SUCCEEDED
        emit(run_ended(run, steps=0))
    return len(ended)
