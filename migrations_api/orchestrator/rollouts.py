"""Drive a rollout: which run is next, and when it is over. `advance()` can be called by anyone, at any time."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Final

from django.db import transaction
from django.db.models import Count, Min
from django.db.models.functions import Coalesce, Now
from django.utils.module_loading import import_string

from migrations_api.dispatch.base import Dispatcher, Emit, ShouldStop
from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.endings import NOT_MIGRATED, finish_if_done
from migrations_api.orchestrator.work import work
from migrations_api.states import ACTIVE_ROLLOUT_STATES, RunState
from tenants.conf import load_conf

Choose = Callable[[int, frozenset[int]], list[int]]
# How long to wait, in seconds, before the rows are read again.
POLL: Final = 0.5

FAILED_STATES = frozenset({RunState.FAILED, RunState.PARTIAL})


def drive(rollout: Rollout, *, executor: str, max_concurrency: int, emit: Emit, should_stop: ShouldStop) -> Rollout:
    """Carry a rollout to its end in this process and its workers; returns it as it stands then.

    When `should_stop` says so, runs in flight finish their step and end, and the rest is canceled.
    """
    lease = load_conf().lease

    def choose(limit: int, held: frozenset[int]) -> list[int]:
        if should_stop():
            cancel(rollout)
        return advance(rollout, limit=limit, lease=lease, held=held)

    carry_out(
        dispatcher_for(executor)(work, max_concurrency=max_concurrency, emit=emit, should_stop=should_stop),
        choose,
        idle=lambda: _settle_lost(rollout, lease=lease, stop=should_stop),
    )
    finish_if_done(rollout)
    rollout.refresh_from_db()
    return rollout


def dispatcher_for(executor: str) -> type[Dispatcher]:
    dispatcher: type[Dispatcher] = import_string(load_conf().executors[executor])
    return dispatcher


def carry_out(dispatcher: Dispatcher, choose: Choose, *, idle: Callable[[], bool]) -> None:
    """Submit what `choose` gives, and ask it again when a slot is free, at the latest after `POLL` seconds.

    `idle` is called when nothing is held and nothing is ready; the loop ends when it returns False.
    """
    chosen_at = 0.0
    try:
        while True:
            ready: list[int] = []
            # Every event of a run ends wait(); while no slot is free, the rows need not be read for each of them.
            if dispatcher.free or time.monotonic() - chosen_at >= POLL:
                ready, chosen_at = choose(dispatcher.free, dispatcher.held), time.monotonic()
            for run_id in ready:
                dispatcher.submit(run_id)
            if dispatcher.held:
                dispatcher.wait(POLL)
            elif not ready and not idle():
                break
    finally:
        dispatcher.close()


def _settle_lost(rollout: Rollout, *, lease: float, stop: ShouldStop) -> bool:
    """Outwait the leases of workers that died and read what became of their tenants; False if no run has ended by it.

    Until then a run of theirs would keep the next wave from opening.
    """
    lost = rollout.runs.filter(state__in=[RunState.RUNNING, RunState.WAITING])
    before = dict(lost.values_list("tenant_id", "state"))
    while lost.filter(lease_expires_at__gte=Now()).exists() and not stop():
        Rollout.objects.filter(pk=rollout.pk).update(lease_expires_at=Now() + timedelta(seconds=lease))
        time.sleep(0.2)
    if before:
        settle_abandoned(before)
    return lost.count() < len(before)


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
            _cancel_pending(locked, "Not started: a tenant before it failed.")
        active = MigrationRun.objects.active().filter(rollout=rollout)
        wave = active.aggregate(first=Min("wave"))["first"]
        pending = active.filter(wave=wave, state=RunState.PENDING).exclude(pk__in=held)
        return list(pending.order_by("tenant_id").values_list("pk", flat=True)[:limit])


def cancel(rollout: Rollout) -> None:
    """Nothing more is started; what runs is left to its worker."""
    Rollout.objects.filter(pk=rollout.pk).transition("cancel")
    _cancel_pending(rollout, "Not started: the rollout was stopped.")


def _cancel_pending(rollout: Rollout, why: str) -> None:
    rollout.runs.filter(state=RunState.PENDING).transition("cancel", finished_at=Now(), message=why)


def counts_by_rollout(rollouts: Iterable[Rollout]) -> dict[int, dict[str, int]]:
    """How many runs of each rollout are in each state, for all of them in one query."""
    counts: defaultdict[int, dict[str, int]] = defaultdict(dict)
    runs = MigrationRun.objects.filter(rollout__in=[rollout.pk for rollout in rollouts]).order_by()
    for rollout_id, state, count in runs.values_list("rollout_id", "state").annotate(runs=Count("*")):
        counts[rollout_id][state] = count
    return counts


def failure_groups(rollout: Rollout) -> list[dict[str, object]]:
    """What kept tenants from being migrated, grouped by how, the most frequent first; not what was never started."""
    runs = MigrationRun.objects.filter(NOT_MIGRATED, rollout=rollout).exclude(state=RunState.CANCELED).order_by()
    grouped = runs.values("error_code", "error_class", "sqlstate", "failed_step").annotate(
        count=Count("pk"), example_run_id=Min("pk")
    )
    groups = list(grouped.order_by("-count", "example_run_id"))
    messages = dict(runs.filter(pk__in=[group["example_run_id"] for group in groups]).values_list("pk", "message"))
    return [{**group, "message": messages[group["example_run_id"]]} for group in groups]
