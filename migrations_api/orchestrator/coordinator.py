"""Carries out what the API asked for. One coordinator leads; others stand by until its session ends."""

import hashlib
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Final

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.models import Q
from django.db.models.functions import Now

from migrations_api.dispatch.base import Dispatcher, ShouldStop, Terms
from migrations_api.models import Coordinator, MigrationRun, RequestedVia, Rollout
from migrations_api.orchestrator import expiry, observations
from migrations_api.orchestrator.abandoned import COORDINATED, settle_abandoned
from migrations_api.orchestrator.advance import advance
from migrations_api.orchestrator.confirmation import confirm_up_to_date
from migrations_api.orchestrator.driver import POLL, carry_out, dispatcher_for, expire
from migrations_api.orchestrator.event_log import log_event
from migrations_api.orchestrator.lore import Scripts
from migrations_api.orchestrator.share import work_on
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.states import ACTIVE_ROLLOUT_STATES, IN_FLIGHT_RUN_STATES, RolloutState, RunState
from tenants.binding import open_connection
from tenants.conf import load_conf
from tenants.servers import server_settings

logger = logging.getLogger(__name__)

LOCK_KEY: Final = int.from_bytes(hashlib.sha256(b"tenant-migrations\0coordinator").digest()[:8], signed=True)
# A host that vanishes with its session open has to be noticed within seconds, not after TCP's two hours.
KEEPALIVE_SQL = """
    SELECT set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '5', false),
           set_config('tcp_keepalives_count', '3', false), set_config('idle_session_timeout', '0', false)
"""
SETTLE_EVERY: Final = 5.0  # seconds
PURGE_EVERY: Final = 60.0  # seconds
FORGET_AFTER: Final = timedelta(days=1)

_context = get_context("fork")
_lock_sockets: set[int] = set()


def _let_go_of_lock_sockets() -> None:
    """A worker that held the leader's session open would keep the next coordinator waiting when the leader dies."""
    for descriptor in _lock_sockets:
        nothing = os.open(os.devnull, os.O_RDWR)
        # Not closed: another connection would get the number, and the lock's would close that one with it.
        os.dup2(nothing, descriptor)
        os.close(nothing)


os.register_at_fork(after_in_child=_let_go_of_lock_sockets)


class Leadership:
    """The advisory lock of the control plane that one coordinator has, on a session of its own."""

    def __init__(self, connection: DatabaseWrapper) -> None:
        self._connection = connection
        self._lives = True
        self._asked_at = time.monotonic()

    @classmethod
    @contextmanager
    def contend(cls) -> Iterator["Leadership"]:
        """A session with which to try; whatever it holds ends with the block."""
        settings = server_settings(DEFAULT_DB_ALIAS)
        settings["OPTIONS"] = {**settings.get("OPTIONS", {}), "application_name": "tenant-migrations coordinator"}
        connection = open_connection(settings)
        with closing(connection), connection.cursor() as cursor:
            descriptor = connection.connection.fileno()
            _lock_sockets.add(descriptor)
            try:
                cursor.execute(KEEPALIVE_SQL)
                yield cls(connection)
            finally:
                _lock_sockets.discard(descriptor)

    def acquire(self) -> bool:
        return self._ask("SELECT pg_try_advisory_lock(%s)", [LOCK_KEY])

    def is_held(self) -> bool:
        """Whether the session still lives, as of at most a second ago; the lock lives as long."""
        if self._lives and time.monotonic() - self._asked_at >= 1.0:
            try:
                self._lives = self._ask("SELECT true", [])
            except DatabaseError:
                self._lives = False
            self._asked_at = time.monotonic()
        return self._lives

    def _ask(self, statement: str, parameters: list[object]) -> bool:
        # Never a new connection: the lock would not be on it.
        with self._connection.wrap_database_errors, self._connection.connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return bool(cursor.fetchone()[0])


class Chore:
    """Something done beside the runs, in a process of its own: servers that do not answer hold nothing else up."""

    def __init__(self, do: Callable[[], object], *, is_due: Callable[[], bool], every: float) -> None:
        self._do = do
        self._is_due = is_due
        self._every = every
        self._looked_at = float("-inf")
        self._process: BaseProcess | None = None

    def tend(self) -> None:
        """Start it if it is due and not going on already."""
        if self._process is not None and self._process.is_alive():
            return
        if time.monotonic() - self._looked_at < self._every:
            return
        self._looked_at = time.monotonic()
        if self._is_due():
            # A forked connection would be one session with two owners.
            connections.close_all()
            self._process = _context.Process(target=_alone, args=(self._do,), daemon=True)
            self._process.start()

    def stop(self) -> None:
        """End it wherever it is; what it writes, it writes in whole transactions."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _alone(do: Callable[[], object]) -> None:
    # Signals are the coordinator's: it ends its chores itself.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        do()
    except DatabaseError:
        logger.warning("the control plane failed during a chore", exc_info=True)
    finally:
        connections.close_all()


def coordinate(*, should_stop: ShouldStop) -> None:
    """Lead, or stand by for as long as another coordinator does, until `should_stop` says so.

    Then steps in flight are finished, and runs that are not become pending again, for the next coordinator. An outage
    of the control plane is outlasted.
    """
    beat = Heartbeat()
    while not should_stop():
        try:
            with Leadership.contend() as leadership:
                _stand_by(leadership, beat, should_stop)
        except DatabaseError:
            logger.warning("the control plane cannot be reached; trying again", exc_info=True)
            connections.close_all()
            _sleep(2.0, should_stop)
    with suppress(DatabaseError):
        beat.end()
    connections.close_all()


def _stand_by(leadership: Leadership, beat: "Heartbeat", should_stop: ShouldStop) -> None:
    while not should_stop():
        if leadership.acquire():
            logger.info("this coordinator leads")
            _lead(beat, lambda: should_stop() or not leadership.is_held())
            return
        beat(leading=False)
        _sleep(1.0, should_stop)


def _sleep(seconds: float, should_stop: ShouldStop) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not should_stop():
        time.sleep(0.1)


class Heartbeat:
    """The coordinator's row, by which readiness and metrics see that it lives."""

    def __init__(self) -> None:
        self._name = f"{socket.gethostname()}:{os.getpid()}"[:255]
        self._beaten_at = float("-inf")
        self._leading = False

    def __call__(self, *, leading: bool) -> None:
        if leading == self._leading and time.monotonic() - self._beaten_at < load_conf().heartbeat:
            return
        Coordinator.objects.update_or_create(
            name=self._name,
            defaults={"seen_at": Now(), "leading": leading},
            create_defaults={"started_at": Now(), "seen_at": Now(), "leading": leading},
        )
        Coordinator.objects.filter(seen_at__lt=Now() - FORGET_AFTER).delete()
        self._beaten_at, self._leading = time.monotonic(), leading

    def end(self) -> None:
        Coordinator.objects.filter(name=self._name).delete()


def _lead(beat: Heartbeat, should_stop: ShouldStop) -> None:
    conf = load_conf()
    # One tenant after the other in this process would leave the other requests, and the lock, unattended.
    executor = "parallel" if conf.executor == "sequential" else conf.executor
    terms = Terms(
        work=partial(work_on, requeues=True),
        max_concurrency=conf.max_concurrency,
        emit=log_event,
        should_stop=should_stop,
        on_lost=partial(expire, emit=log_event),
        looks_ahead=True,
        leaves_running=True,
        lore=Scripts(),
    )
    dispatcher = dispatcher_for(executor)(terms)
    unread = _UnreadWaves()
    chores = [
        Chore(settle_abandoned, is_due=_is_anything_overdue, every=SETTLE_EVERY),
        Chore(
            partial(observations.refresh, older_than=conf.observe_every),
            is_due=lambda: bool(observations.due(conf.observe_every).exists()),
            every=min(SETTLE_EVERY, conf.observe_every),
        ),
        Chore(unread.confirm, is_due=unread.exist, every=POLL),
        Chore(expiry.purge, is_due=lambda: bool(expiry.expired_keys().exists()), every=PURGE_EVERY),
    ]

    def choose(dispatcher: Dispatcher) -> list[int]:
        if should_stop():
            if dispatcher.held:
                logger.info("finishing the steps in flight of %s runs", len(dispatcher.held))
            return []
        try:
            beat(leading=True)
            for chore in chores:
                chore.tend()
            return ready_runs(dispatcher)
        except DatabaseError:
            # What runs goes on; if the lock's session is gone too, the next look at it ends this loop.
            logger.warning("the control plane failed; trying again", exc_info=True)
            connections.close_all()
            return []

    def idle() -> bool:
        _sleep(POLL, should_stop)
        return not should_stop()

    try:
        carry_out(dispatcher, choose, idle=idle)
    finally:
        for chore in chores:
            chore.stop()


class _UnreadWaves:
    """Waves of rollouts whose tenants were not looked at yet; what there is nothing to do for needs no worker."""

    def __init__(self) -> None:
        self._read: set[tuple[int, int]] = set()
        self._found: list[Rollout] = []

    def exist(self) -> bool:
        running = Rollout.objects.filter(foreground=False, state=RolloutState.RUNNING).defer("selector")
        opened = {(rollout.pk, rollout.open_wave): rollout for rollout in running}
        self._found = [rollout for wave, rollout in opened.items() if wave not in self._read]
        self._read = set(opened)
        return bool(self._found)

    def confirm(self) -> None:
        for rollout in self._found:
            confirm_up_to_date(rollout, emit=log_event)


def ready_runs(dispatcher: Dispatcher) -> list[int]:
    """Runs that the API asked for: single ones first, somebody waits for them; then those of rollouts.

    As many as there is room for, and where nothing about a rollout depends on how a run ends, as are free. What workers
    of an earlier leader are still doing takes up slots as well.
    """
    held = dispatcher.held
    elsewhere = MigrationRun.objects.in_flight().filter(COORDINATED, lease_expires_at__gte=Now())
    taken = elsewhere.exclude(pk__in=held).count()
    room, free = max(0, dispatcher.room - taken), max(0, dispatcher.free - taken)
    asked = MigrationRun.objects.filter(rollout=None, requested_via=RequestedVia.API, state=RunState.PENDING)
    ready = list(asked.exclude(pk__in=held).order_by("pk").values_list("pk", flat=True)[:room])
    lease = load_conf().lease
    rollouts = Rollout.objects.filter(foreground=False, state__in=ACTIVE_ROLLOUT_STATES - {RolloutState.PAUSED})
    in_flight = MigrationRun.objects.filter(Q(state__in=IN_FLIGHT_RUN_STATES) | Q(pk__in=held))
    served = Counter(in_flight.values_list("rollout_id", flat=True))
    # Whoever has the fewest in flight comes first, so that a large one does not keep a small one waiting for its end.
    for rollout in sorted(rollouts.defer("selector").order_by("pk"), key=lambda each: served[each.pk]):
        ready += _advance(rollout, room=room - len(ready), free=free - len(ready), lease=lease, held=held)
    return ready


def _advance(rollout: Rollout, *, room: int, free: int, lease: float, held: frozenset[int]) -> list[int]:
    """A rollout that this code cannot read must not keep all others from going on."""
    try:
        limit = free if Strategy.from_dict(rollout.strategy).bounds_nothing else room
        return advance(rollout, limit=max(0, limit), lease=lease, held=held)
    except DatabaseError:
        raise
    except Exception:
        logger.exception("rollout %s cannot be carried on with", rollout.pk)
        return []


def _is_anything_overdue() -> bool:
    active = MigrationRun.objects.active()
    late = active.filter(Q(lease_expires_at__lt=Now()) | Q(state=RunState.PENDING, rollout__lease_expires_at__lt=Now()))
    rollouts = Rollout.objects.filter(state__in=ACTIVE_ROLLOUT_STATES, lease_expires_at__lt=Now())
    return late.exists() or rollouts.exists()
