"""When a rollout is over, whoever finds out: its driver, or a reader that settles what a dead one left."""

from collections import Counter
from typing import Final

from django.db.models import Count, Q
from django.db.models.functions import Now

from migrations_api.exceptions import RunActive
from migrations_api.models import MigrationRun, Rollout
from migrations_api.states import RunState

# A tenant that another run had was not migrated by this rollout, which must not say that it succeeded then.
NOT_MIGRATED: Final = Q(state__in=[RunState.FAILED, RunState.PARTIAL, RunState.CANCELED]) | Q(error_code=RunActive.code)


def finish_if_done(rollout: Rollout) -> None:
    """Give the rollout its end state once every run has one."""
    states = state_counts(rollout)
    if sum(states[state] for state in (RunState.PENDING, RunState.RUNNING, RunState.WAITING)):
        return
    incomplete = rollout.runs.filter(NOT_MIGRATED).exists()
    mine = Rollout.objects.filter(pk=rollout.pk)
    end = {"finished_at": Now(), "lease_expires_at": None}
    if not mine.transition("finish_canceled", **end):
        mine.transition("finish_failed" if incomplete else "finish_succeeded", **end)


def state_counts(rollout: Rollout) -> Counter[str]:
    """How many of the rollout's runs are in each state."""
    rows = MigrationRun.objects.filter(rollout=rollout).order_by().values_list("state").annotate(runs=Count("*"))
    return Counter(dict(rows))
