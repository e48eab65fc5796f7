"""What has come of rollouts so far: counts, speed and waves."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db.models import Count, Q
from django.db.models.functions import Now
from django.utils import timezone

from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.strategy import Promotion, Strategy
from migrations_api.states import ACTIVE_RUN_STATES, IN_FLIGHT_RUN_STATES, RolloutState, RunState

# The speed of a rollout is that of its last so many seconds.
WINDOW: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`per_minute` is how many tenants ended lately; `eta_seconds` goes on like that. None where nothing is to come."""

    ended: int
    in_flight: int
    pending: int
    per_minute: float | None
    eta_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """How many of a rollout's runs are in each state, and how it goes on."""

    counts: Mapping[str, int]
    progress: Progress


def reports(rollouts: Iterable[Rollout]) -> dict[int, Report]:
    """By the rollout's id, for all of them in one query."""
    shown = list(rollouts)
    counts: defaultdict[int, dict[str, int]] = defaultdict(dict)
    lately: defaultdict[int, int] = defaultdict(int)
    runs = MigrationRun.objects.filter(rollout__in=[rollout.pk for rollout in shown]).order_by()
    recent = Q(started_at__isnull=False, finished_at__gte=Now() - timedelta(seconds=WINDOW))
    grouped = runs.values_list("rollout_id", "state").annotate(runs=Count("*"), recent=Count("pk", filter=recent))
    for rollout_id, state, count, ended in grouped:
        counts[rollout_id][state] = count
        lately[rollout_id] += ended
    now = timezone.now()
    return {
        rollout.pk: Report(
            counts=counts[rollout.pk], progress=_progress(rollout, counts[rollout.pk], lately[rollout.pk], now)
        )
        for rollout in shown
    }


def _progress(rollout: Rollout, counts: Mapping[str, int], lately: int, now: datetime) -> Progress:
    left = sum(counts.get(state, 0) for state in ACTIVE_RUN_STATES)
    per_second = None
    if rollout.state == RolloutState.RUNNING and rollout.started_at is not None:
        # A clock that is behind the database's must not divide by zero.
        per_second = lately / max(0.1, min(WINDOW, (now - rollout.started_at).total_seconds()))
    return Progress(
        ended=sum(counts.values()) - left,
        in_flight=sum(counts.get(state, 0) for state in IN_FLIGHT_RUN_STATES),
        pending=counts.get(RunState.PENDING, 0),
        per_minute=None if per_second is None else round(per_second * 60, 1),
        eta_seconds=round(left / per_second + _bakes(rollout, now), 1) if per_second and not _waits(rollout) else None,
    )


def _waits(rollout: Rollout) -> bool:
    """Whether somebody has to do something before it can end, so that nobody knows when that is."""
    manual = rollout.strategy.get("promotion") == Promotion.MANUAL and rollout.open_wave < rollout.last_wave
    return manual and not rollout.promoted_fully


def _bakes(rollout: Rollout, now: datetime) -> float:
    """For how many seconds more it will pause between waves."""
    if rollout.promoted_fully:
        return 0.0
    bake_time = Strategy.from_dict(rollout.strategy).bake_time
    waits = max(0, rollout.last_wave - max(1, rollout.open_wave))
    if rollout.next_wave_at is None:
        return bake_time * waits
    return bake_time * (waits - 1) + max(0.0, (rollout.next_wave_at - now).total_seconds())


def waiting_for(rollout: Rollout) -> str:
    """What a running rollout waits for between two waves: `promotion`, `bake_time` or nothing."""
    if rollout.state != RolloutState.RUNNING:
        return ""
    if rollout.awaits_promotion:
        return "promotion"
    return "bake_time" if rollout.next_wave_at is not None else ""


@dataclass(frozen=True, kw_only=True)
class Wave:
    number: int
    total: int
    counts: Mapping[str, int]


def waves(rollout: Rollout) -> list[Wave]:
    """The rollout's waves in order; 0 is that of the shared tenants."""
    found: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for wave, state, count in rollout.runs.order_by().values_list("wave", "state").annotate(runs=Count("*")):
        found[wave][state] = count
    return [Wave(number=wave, total=sum(counts.values()), counts=counts) for wave, counts in sorted(found.items())]
