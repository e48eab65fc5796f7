"""When a rollout is over, whoever finds out: its driver, or a reader that settles what a dead one left."""

from collections import Counter

from django.db.models import Count
from django.db.models.functions import Now

from migrations_api.models import MigrationRun, Rollout
from migrations_api.states import RunState


def finish_if_done(rollout: Rollout) -> None:
    """Give the rollout its end state once every run has one."""
    states = state_counts(rollout)
    if sum(states[state] for state in (RunState.PENDING, RunState.RUNNING, RunState.WAITING)):
        return
    failed = states[RunState.FAILED] or states[RunState.PARTIAL]
    mine = Rollout.objects.filter(pk=rollout.pk)
    end = {"finished_at": Now(), "lease_expires_at": None}
    if not mine.transition("finish_canceled", **end):
        mine.transition("finish_failed" if failed or states[RunState.CANCELED] else "finish_succeeded", **end)


def state_counts(rollout: Rollout) -> Counter[str]:
    """How many of the rollout's runs are in each state."""
    rows = MigrationRun.objects.filter(rollout=rollout).order_by().values_list("state").annotate(runs=Count("*"))
    return Counter(dict(rows))
