"""When a rollout is over or has come to rest, whoever finds out: its driver, a verb, or a reader that settles.

And what kept its tenants from being migrated, grouped by how.
"""

from typing import Final

from django.db.models import Count, F, Min, Q
from django.db.models.functions import Now

from migrations_api.exceptions import OutcomeUnknown, RunActive, TenantLocked, TenantPartial
from migrations_api.models import MigrationRun, Rollout, TenantObservation
from migrations_api.models.runs import MigrationRunQuerySet
from migrations_api.states import RunState

# Of what a rollout left out, this is not where it was to be brought: the rollout must not say that it succeeded then.
LEFT_BEHIND: Final = (RunActive.code, TenantPartial.code)
NOT_MIGRATED: Final = Q(state__in=[RunState.FAILED, RunState.PARTIAL, RunState.CANCELED]) | Q(
    state=RunState.SKIPPED, error_code__in=LEFT_BEHIND
)


def lock_rollout(run: MigrationRun) -> Rollout | None:
    """Lock the run's rollout until the transaction ends.

    Before the run's own row, as everybody who takes both: of two last runs that end at once, one then sees the other.
    """
    if run.rollout_id is None:
        return None
    return Rollout.objects.select_for_update(no_key=True).get(pk=run.rollout_id)


def give_up_unreadable(runs: MigrationRunQuerySet) -> None:
    """End the runs whose worker is gone and whose tenant could not be read since: nobody knows where it stands.

    Without this, a server that is gone for good would keep its rollout, and its tenants, for ever.
    """
    overdue = runs.filter(state=RunState.RUNNING, lease_expires_at__lt=Now()).exclude(waiting_cause="")
    tenant_ids = list(overdue.values_list("tenant_id", flat=True))
    overdue.transition(
        "leave_partial",
        attempt=F("attempt") + 1,
        finished_at=Now(),
        lease_expires_at=None,
        error_code=OutcomeUnknown.code,
        message="Its worker was lost and its tenant cannot be read; somebody gave it up.",
    )
    TenantObservation.objects.filter(pk__in=tenant_ids).update(partial=True)


def finish_if_done(rollout: Rollout) -> None:
    """Give the rollout its end state once every run has one; one that is pausing rests once nothing is in flight."""
    mine = Rollout.objects.filter(pk=rollout.pk)
    active = MigrationRun.objects.active().filter(rollout=rollout)
    if active.exists():
        if not active.in_flight().exists():
            # It is nobody's now: whoever resumes it decides who goes on with it.
            mine.transition("finish_pausing", lease_expires_at=None, foreground=False)
        return
    end = {"finished_at": Now(), "lease_expires_at": None, "next_wave_at": None, "awaits_promotion": False}
    incomplete = rollout.runs.filter(NOT_MIGRATED).exists()
    if not mine.transition("finish_failed" if incomplete else "finish_succeeded", **end):
        mine.transition("finish_canceled", **end)


def failure_groups(rollout: Rollout) -> list[dict[str, object]]:
    """What kept tenants from being migrated, grouped by how, the most frequent first; not what was never started."""
    begun = ~Q(state=RunState.CANCELED) | Q(error_code=TenantLocked.code)
    runs = MigrationRun.objects.filter(NOT_MIGRATED, begun, rollout=rollout).order_by()
    grouped = runs.values("error_code", "error_class", "sqlstate", "failed_step").annotate(
        count=Count("pk"), example_run_id=Min("pk")
    )
    groups = list(grouped.order_by("-count", "example_run_id"))
    messages = dict(runs.filter(pk__in=[group["example_run_id"] for group in groups]).values_list("pk", "message"))
    return [{**group, "message": messages[group["example_run_id"]]} for group in groups]
