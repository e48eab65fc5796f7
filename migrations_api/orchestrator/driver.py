"""Carry out runs: keep the dispatcher's slots filled with what is ready, in the foreground or for the coordinator."""

import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from django.db import DatabaseError
from django.db.models.functions import Now
from django.utils.module_loading import import_string

from migrations_api.dispatch.base import Dispatcher, Emit, Leave, ShouldStop, Terms
from migrations_api.events import RunWaiting
from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.advance import advance
from migrations_api.orchestrator.confirmation import confirm_up_to_date
from migrations_api.orchestrator.endings import finish_if_done
from migrations_api.orchestrator.lore import Scripts
from migrations_api.orchestrator.rollout_verbs import cancel, pause
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.states import ACTIVE_ROLLOUT_STATES, RolloutState
from tenants.conf import load_conf

logger = logging.getLogger(__name__)

Choose = Callable[[Dispatcher], list[int]]
# How long to wait, in seconds, before the rows are read again.
POLL: Final = 0.5
_WORK: Final = "migrations_api.orchestrator.share.work_on"


def drive(
    rollout: Rollout,
    *,
    executor: str,
    max_concurrency: int,
    emit: Emit,
    should_stop: ShouldStop,
    on_gate: Callable[[Rollout], None] = lambda rollout: None,
) -> Rollout:
    """Carry a rollout to its end in this process and its workers; returns it as it stands then.

    When `should_stop` says so, runs in flight finish their step and end, and the rest is canceled. `on_gate` is told
    again and again while the rollout waits between two waves. One that is paused is left to the coordinator.
    """
    lease = load_conf().lease
    looked_at = -1

    def choose(dispatcher: Dispatcher) -> list[int]:
        nonlocal looked_at
        limit, held = dispatcher.free, dispatcher.held
        if should_stop():
            cancel(rollout, "Not started: the rollout was stopped.")
        # The dispatcher's pool has the size of the rollout's `max_concurrency`.
        chosen = advance(rollout, limit=limit, lease=lease, held=held, queues=True)
        if chosen and rollout.open_wave != looked_at:
            looked_at = rollout.open_wave
            if confirm_up_to_date(rollout, emit=emit):
                chosen = advance(rollout, limit=limit, lease=lease, held=held, queues=True)
        if chosen:
            # In this process, before the workers are forked: not each of them is to load it once more.
            import_string(_WORK)
        return chosen

    terms = Terms(
        work=work,
        max_concurrency=max_concurrency,
        emit=emit,
        should_stop=should_stop,
        on_lost=partial(expire, emit=emit),
        looks_ahead=Strategy.from_dict(rollout.strategy).bounds_nothing,
        lore=Scripts(),
    )
    dispatcher = dispatcher_for(executor)(terms)
    carry_out(dispatcher, choose, idle=lambda: _goes_on(rollout, on_gate, lease=lease, stop=should_stop))
    if rollout.state in ACTIVE_ROLLOUT_STATES:
        finish_if_done(rollout)
        rollout.refresh_from_db()
    if rollout.state == RolloutState.RUNNING and rollout.foreground:
        # A run of it cannot be settled now, and whoever drives it next has to know.
        pause(rollout, reason="The tenant of a run that lost its worker cannot be read.")
        Rollout.objects.filter(pk=rollout.pk).update(foreground=False, lease_expires_at=None)
        rollout.refresh_from_db()
    return rollout


def work(run_ids: Sequence[int], *, emit: Emit, should_stop: ShouldStop, leave: Leave) -> None:
    """Loaded with the first run that is left to be carried out: most often there is none."""
    import_string(_WORK)(run_ids, emit=emit, should_stop=should_stop, leave=leave)


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
                ready, chosen_at = choose(dispatcher), time.monotonic()
            if ready:
                dispatcher.submit(ready)
            if dispatcher.held:
                dispatcher.wait(POLL)
            elif not ready and not idle():
                break
    finally:
        dispatcher.close()


def expire(run_id: int, *, emit: Emit) -> None:
    """The run's worker is known to be dead: what became of its tenant need not wait until the lease is over."""
    try:
        run = MigrationRun.objects.in_flight().filter(pk=run_id).first()
        if run is not None:
            MigrationRun.objects.held_by(run_id, run.attempt).in_flight().update(lease_expires_at=Now())
            emit(RunWaiting(run_id=run_id, tenant_id=run.tenant_id, cause="Its worker was lost.", seconds=0))
    except DatabaseError:
        logger.warning("run %s has lost its worker, and waits for the end of its lease", run_id, exc_info=True)


def _goes_on(rollout: Rollout, on_gate: Callable[[Rollout], None], *, lease: float, stop: ShouldStop) -> bool:
    """Whether there will be something to do, when nothing is held and nothing is ready now."""
    rollout.refresh_from_db()
    if rollout.state not in ACTIVE_ROLLOUT_STATES or not rollout.foreground:
        return False
    in_flight = rollout.runs.in_flight()
    if in_flight.exists():
        return _settle_lost(rollout, lease=lease, stop=stop)
    if not MigrationRun.objects.active().filter(rollout=rollout).exists():
        return False
    on_gate(rollout)
    time.sleep(POLL)
    return True


def _settle_lost(rollout: Rollout, *, lease: float, stop: ShouldStop) -> bool:
    """Wait until a run of workers that are not this driver's comes back; those of workers that are gone are settled.

    Until then it would keep the next wave from opening. False once nobody has worked on any for a lease, and none could
    be settled.
    """
    lost = rollout.runs.in_flight()
    before = lost.count()
    deadline = time.monotonic() + lease + POLL
    while not stop() and time.monotonic() < deadline:
        Rollout.objects.filter(pk=rollout.pk).update(lease_expires_at=Now() + timedelta(seconds=lease))
        overdue = list(lost.filter(lease_expires_at__lt=Now()).values_list("tenant_id", flat=True))
        if overdue:
            settle_abandoned(overdue)
        if lost.count() < before:
            return True
        if lost.filter(lease_expires_at__gte=Now()).exists():
            # Its worker may be alive: one of Celery's goes on when the driver before this one has ended.
            deadline = time.monotonic() + lease + POLL
        time.sleep(0.2)
    return False
