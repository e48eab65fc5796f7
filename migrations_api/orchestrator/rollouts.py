"""Drive a rollout: which run is next, and when it is over. `advance()` can be called by anyone, at any time."""

from collections import Counter
from datetime import timedelta

from django.db import transaction
from django.db.models import Count, Min
from django.db.models.functions import Coalesce, Now
from django.utils.module_loading import import_string

from migrations_api.dispatch.base import Dispatcher, Emit, ShouldStop
from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.work import work
from migrations_api.states import ACTIVE_ROLLOUT_STATES, RunState
from tenants.conf import load_conf

FAILED_STATES = frozenset({RunState.FAILED, RunState.PARTIAL})


def drive(rollout: Rollout, *, executor: str, max_concurrency: int, emit: Emit, should_stop: ShouldStop) -> Rollout:
    """Carry a rollout to its end in this process and its workers; returns it as it stands then.

    When `should_stop` says so, runs in flight finish their step and end, and the rest is canceled.
    """
    conf = load_conf()
    dispatcher_class: type[Dispatcher] = import_string(conf.executors[executor])
    dispatcher = dispatcher_class(work, max_concurrency=max_concurrency, emit=emit, should_stop=should_stop)
    try:
        while True:
            if should_stop():
                cancel(rollout)
            ready = advance(rollout, limit=dispatcher.free, lease=conf.lease, held=dispatcher.held)
            for run_id in ready:
                dispatcher.submit(run_id)
            if not ready and not dispatcher.held:
                break
            dispatcher.wait(1.0)
    finally:
        dispatcher.close()
    finish_if_done(rollout)
    rollout.refresh_from_db()
    return rollout


def advance(rollout: Rollout, *, limit: int, lease: float, held: frozenset[int] = frozenset()) -> list[int]:
    """Renew the driver's lease and choose at most `limit` pending runs of the wave that is open, in a stable order.

    A wave is open when no run of an earlier one is unfinished. With on_error=fail, the first failure cancels what has
    not been started.
    """
    with transaction.atomic():
        locked = Rollout.objects.select_for_update().get(pk=rollout.pk)
        if locked.state not in ACTIVE_ROLLOUT_STATES:
            return []
        mine = Rollout.objects.filter(pk=rollout.pk)
        mine.transition("start", started_at=Coalesce("started_at", Now()))
        mine.update(lease_expires_at=Now() + timedelta(seconds=lease))
        failed = locked.runs.filter(state__in=FAILED_STATES).exists()
        if failed and locked.on_error == Rollout.OnError.FAIL:
            cancel(locked)
        active = MigrationRun.objects.active().filter(rollout=rollout)
        wave = active.aggregate(first=Min("wave"))["first"]
        pending = active.filter(wave=wave, state=RunState.PENDING).exclude(pk__in=held)
        return list(pending.order_by("tenant_id").values_list("pk", flat=True)[:limit])


def cancel(rollout: Rollout) -> None:
    """Nothing more is started; what runs is left to its worker."""
    Rollout.objects.filter(pk=rollout.pk).transition("cancel")
    rollout.runs.filter(state=RunState.PENDING).transition(
        "cancel", finished_at=Now(), message="Not started: the rollout was stopped."
    )


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
    rows = MigrationRun.objects.filter(rollout=rollout).order_by().values_list("state").annotate(Count("pk"))
    return Counter(dict(rows))
