"""What a rollout does next. Anybody may call advance(), at any time and as often as they like."""

from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from django.db import transaction
from django.db.models import BooleanField, Case, ExpressionWrapper, F, Max, Min, Q, When
from django.db.models.functions import Coalesce, Now

from migrations_api.models import MigrationRun, Rollout
from migrations_api.models.runs import MigrationRunQuerySet
from migrations_api.orchestrator.endings import finish_if_done
from migrations_api.orchestrator.selection import SHARED_WAVE
from migrations_api.orchestrator.strategy import OnError, Promotion, Strategy
from migrations_api.states import (
    ACTIVE_ROLLOUT_STATES,
    FAILED_RUN_STATES,
    IN_FLIGHT_RUN_STATES,
    RolloutState,
    RunState,
)

TOO_MANY_FAILURES: Final = "max_failures"
NO_PROGRESS: Final = "progress_deadline"
WAVE_FAILED: Final = "wave_failed"


def advance(
    rollout: Rollout, *, limit: int, lease: float, held: frozenset[int] = frozenset(), queues: bool = False
) -> list[int]:
    """Renew the driver's lease, open and close what is due, and choose at most `limit` runs to be started now.

    `held` are runs that the caller has handed to workers, whether they have begun or not. The runs chosen are pending
    ones of open waves, in the order of waves and tenant ids. A caller that `queues` them sees to it itself that no more
    are in flight than `max_concurrency`. What a call decides is committed when it returns, so that
    the next one, whoever makes it, decides from there. `rollout` learns which wave is open.
    """
    with transaction.atomic():
        # Of two callers the second waits here and sees what the first has done.
        locked = _lock(rollout, lease)
        if locked.state not in ACTIVE_ROLLOUT_STATES:
            return []
        _renew(locked, lease)
        chosen = _Step(locked, held, queues=queues).choose(limit)
    rollout.open_wave = locked.open_wave
    return chosen


def _lock(rollout: Rollout, lease: float) -> Rollout:
    # By the control plane's clock: a machine whose own is late would let the lease run out.
    due = Q(lease_expires_at=None) | Q(lease_expires_at__lt=Now() + timedelta(seconds=lease * 0.75))
    rows = Rollout.objects.select_for_update(no_key=True).defer("selector")
    return rows.annotate(is_due=ExpressionWrapper(due, BooleanField())).get(pk=rollout.pk)


def _renew(locked: Rollout, lease: float) -> None:
    """Start the rollout, and renew its driver's lease once a quarter of it has gone by."""
    mine = Rollout.objects.filter(pk=locked.pk)
    until = Now() + timedelta(seconds=lease)
    if locked.state == RolloutState.PENDING:
        mine.transition("start", started_at=Coalesce("started_at", Now()), progress_at=Now(), lease_expires_at=until)
        locked.state = RolloutState.RUNNING
    elif locked.state != RolloutState.PAUSED and locked.is_due:  # type: ignore[attr-defined]  # annotated
        # While nobody drove it, nothing could make progress.
        undriven = When(lease_expires_at__lt=Now(), then=Now())
        mine.update(progress_at=Case(undriven, default=F("progress_at")), lease_expires_at=until)


class _Step:
    """One look at a rollout whose row is locked."""

    def __init__(self, rollout: Rollout, held: frozenset[int], *, queues: bool) -> None:
        self.rollout = rollout
        self.strategy = Strategy.from_dict(rollout.strategy)
        self.mine = Rollout.objects.filter(pk=rollout.pk)
        self.active = MigrationRun.objects.active().filter(rollout=rollout)
        self.held = held
        self.queues = queues

    def choose(self, limit: int) -> list[int]:
        if self.rollout.state == RolloutState.CANCELING:
            cancel_pending(self.rollout, "Not started: the rollout was canceled.")
        if self.rollout.state != RolloutState.RUNNING:
            finish_if_done(self.rollout)
            return []
        servers, failed = self._counted()
        if self._stops_over(failed, has_no_turn=limit < 1 and not servers) or not self._has_open_wave(failed):
            finish_if_done(self.rollout)
            return []
        pending = self.active.filter(state=RunState.PENDING, wave__lte=self.rollout.open_wave)
        return _pick(
            pending.exclude(pk__in=self.held),
            slots=self._slots(failed, len(servers), limit),
            per_server=self.strategy.max_per_database,
            servers=servers,
        )

    def _counted(self) -> tuple[list[str], int]:
        """The servers of the runs in flight, and how many have failed; nothing where nothing depends on it."""
        strategy = self.strategy
        if self._is_unbounded and strategy.canary is None and strategy.progress_deadline is None:
            return [], 0
        # Only failed ones are counted and only those in flight are read, however many tenants there are. In this order:
        # one that fails in between counts as both, where the other way round it would count as neither.
        in_flight = self.active.filter(Q(state__in=IN_FLIGHT_RUN_STATES) | Q(pk__in=self.held))
        servers = list(in_flight.values_list("tenant__database", flat=True))
        return servers, self.rollout.runs.filter(state__in=FAILED_RUN_STATES).count() - self.rollout.pardoned

    @property
    def _is_unbounded(self) -> bool:
        return self.queues and self.strategy.bounds_nothing

    def _slots(self, failed: int, in_flight: int, limit: int) -> int:
        if self._is_unbounded:
            return limit
        return self.strategy.slots(failed=failed, in_flight=in_flight, total=self.rollout.total, limit=limit)

    def _stops_over(self, failed: int, *, has_no_turn: bool) -> bool:
        if self.strategy.is_over_budget(failed=failed, total=self.rollout.total):
            allowed = self.strategy.allowed_failures(self.rollout.total)
            reason = f"{failed} of {self.rollout.total} tenants failed; {allowed} may."
            self._stop(TOO_MANY_FAILURES, reason, pause=self.strategy.on_error == OnError.PAUSE)
            return True
        if self._is_stuck(has_no_turn=has_no_turn):
            reason = f"No tenant has ended for {self.strategy.progress_deadline:g} seconds."
            # Nothing has failed: without the word to end it, the rest is kept for when it has been looked into.
            self._stop(NO_PROGRESS, reason, pause=self.strategy.on_error != OnError.FAIL)
            return True
        return False

    def _stop(self, code: str, reason: str, *, pause: bool) -> None:
        if pause:
            self.mine.transition("pause", stop_code=code, stop_reason=reason)
        else:
            self.mine.exclude(stop_code=code, stop_reason=reason).update(stop_code=code, stop_reason=reason)
            cancel_pending(self.rollout, f"Not started: {reason}")

    def _is_stuck(self, *, has_no_turn: bool) -> bool:
        if self.strategy.progress_deadline is None or self._is_at_gate:
            return False
        overdue = self.mine.filter(progress_at__lt=Now() - timedelta(seconds=self.strategy.progress_deadline))
        if not overdue.exists():
            return False
        if has_no_turn:
            # It waits for slots that other rollouts have.
            overdue.update(progress_at=Now())
            return False
        # Read only once in a deadline: it goes through all of the rollout's runs.
        last = self.rollout.runs.aggregate(last=Max("finished_at"))["last"]
        if last is not None:
            overdue.filter(progress_at__lt=last).update(progress_at=last)
        return overdue.exists()

    @property
    def _is_at_gate(self) -> bool:
        return self.rollout.awaits_promotion or self.rollout.next_wave_at is not None

    def _has_open_wave(self, failed: int) -> bool:
        """Open the next wave if that is due; False while there is nothing to do but wait."""
        if self.active.filter(wave__lte=self.rollout.open_wave).exists():
            return True
        following = following_wave(self.rollout)
        if following is None:
            return False
        if reason := self._went_wrong(failed):
            self._stop(WAVE_FAILED, reason, pause=self.strategy.on_error != OnError.FAIL)
            return False
        if not self._gate_opens():
            return False
        open_wave(self.rollout, following)
        self.rollout.open_wave = following
        return True

    def _went_wrong(self, failed: int) -> str:
        """Why the wave that has ended lets no other follow, whatever number may fail; empty if it does.

        A canary is there to be looked at. Of other waves, `on_error` continue asks for nothing.
        """
        is_shared = self.rollout.open_wave == SHARED_WAVE
        is_canary = self.strategy.canary is not None and self.rollout.open_wave == SHARED_WAVE + 1
        if self.strategy.on_error == OnError.CONTINUE and not is_canary:
            return ""
        wave = self.rollout.runs.filter(wave=self.rollout.open_wave)
        has_failed = failed > 0 and wave.filter(state__in=FAILED_RUN_STATES).exists()
        if has_failed and (is_shared or is_canary):
            return f"A tenant of the {'shared wave' if is_shared else 'canary'} failed."
        if (is_canary or has_failed) and not wave.filter(state=RunState.SUCCEEDED).exists():
            return f"No tenant of wave {self.rollout.open_wave} was migrated."
        return ""

    def _gate_opens(self) -> bool:
        # Before the first wave nothing has been tried that could be waited for.
        if self.rollout.open_wave == SHARED_WAVE or self.rollout.promoted_fully:
            return True
        if self.strategy.promotion == Promotion.MANUAL:
            self.mine.filter(awaits_promotion=False).update(awaits_promotion=True)
            return False
        if not self.strategy.bake_time:
            return True
        bake_time = timedelta(seconds=self.strategy.bake_time)
        self.mine.filter(next_wave_at=None).update(next_wave_at=Now() + bake_time)
        return self.mine.filter(next_wave_at__lte=Now()).exists()


def following_wave(rollout: Rollout) -> int | None:
    """The first wave that has something left to do."""
    wave: int | None = MigrationRun.objects.active().filter(rollout=rollout).aggregate(first=Min("wave"))["first"]
    return wave


def open_wave(rollout: Rollout, wave: int) -> None:
    opened = Rollout.objects.filter(pk=rollout.pk)
    opened.update(open_wave=wave, next_wave_at=None, awaits_promotion=False, progress_at=Now())


def cancel_pending(rollout: Rollout, why: str) -> None:
    pending = rollout.runs.filter(state=RunState.PENDING)
    pending.transition("cancel", finished_at=Now(), message=why[:1000])


def _pick(pending: MigrationRunQuerySet, *, slots: int, per_server: int | None, servers: Iterable[str]) -> list[int]:
    """So many of the pending runs, in order, with at most `per_server` in flight on each database server."""
    pending = pending.order_by("wave", "tenant_id")
    if per_server is None:
        return list(pending.values_list("pk", flat=True)[:slots])
    load, chosen = Counter(servers), list[int]()
    while len(chosen) < slots:
        full = [server for server, runs in load.items() if runs >= per_server]
        rows = pending.exclude(pk__in=chosen).exclude(tenant__database__in=full).values_list("pk", "tenant__database")
        found = list(rows[: slots - len(chosen)])
        for pk, server in found:
            if load[server] < per_server:
                load[server] += 1
                chosen.append(pk)
        if not found:
            break
    return chosen
