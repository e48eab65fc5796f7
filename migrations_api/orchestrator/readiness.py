"""Whether the service can do its work, and the numbers that tell how it does it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Count, F, Max, Min, Q, Sum
from django.db.models.functions import Now

from migrations_api.models import Coordinator, MigrationRun, Rollout
from migrations_api.orchestrator.observations import FleetCounts, fleet_counts
from migrations_api.states import RunState
from tenants.app_sets import control_plane_labels
from tenants.conf import load_conf

OK: Final = "ok"
# Upper bounds of the histogram of run durations, in seconds.
BUCKETS: Final = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 7200)


def checks() -> dict[str, str]:
    """Each condition of being ready, with "ok" or what is missing; never raises, and never shows a driver's words."""
    found = {}
    for name, check in CHECKS.items():
        try:
            found[name] = check()
        except DatabaseError:
            found[name] = "unreachable" if name == "control_plane" else "unknown"
            connection.close()
    return found


def _control_plane() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return OK


def _migrations() -> str:
    return "pending" if pending_migrations() else OK


def pending_migrations() -> list[str]:
    """The control plane's own migrations that are on disk and not applied."""
    applied = MigrationRecorder(connection).applied_migrations()
    labels = control_plane_labels()
    nodes = _disk_loader().graph.leaf_nodes()
    return sorted(f"{app}.{name}" for app, name in nodes if app in labels and (app, name) not in applied)


_loader: MigrationLoader | None = None


def _disk_loader() -> MigrationLoader:
    """The files do not change while the process lives, and reading them takes longer than the rest of the check."""
    global _loader  # noqa: PLW0603
    if _loader is None:
        _loader = MigrationLoader(None)
    return _loader


def _coordinator() -> str:
    return OK if Coordinator.is_seen() else "not seen"


CHECKS: Final[dict[str, Callable[[], str]]] = {
    "control_plane": _control_plane,
    "migrations": _migrations,
    "coordinator": _coordinator,
}


@dataclass(frozen=True, kw_only=True)
class Durations:
    """Ended runs by how long they took: `at_most[bound]` counts those of at most so many seconds."""

    at_most: dict[float, int]
    count: int
    total: float


@dataclass(frozen=True, kw_only=True)
class Measures:
    runs: dict[str, int]
    rollouts: dict[str, int]
    fleet: FleetCounts
    durations: Durations
    oldest_pending: float
    coordinator_seen_at: datetime | None
    coordinators: int


def measure() -> Measures:
    """Seven queries, however much there is; the numbers are those of all processes, since they are read from rows."""
    runs = dict(MigrationRun.objects.order_by().values_list("state").annotate(runs=Count("*")))
    waiting = MigrationRun.objects.filter(state=RunState.PENDING).aggregate(age=Now() - Min("created_at"))["age"]
    limit = Now() - timedelta(seconds=3 * load_conf().lease)
    seen = Coordinator.objects.aggregate(last=Max("seen_at"), alive=Count("pk", filter=Q(seen_at__gte=limit)))
    return Measures(
        runs=runs,
        rollouts=dict(Rollout.objects.order_by().values_list("state").annotate(rollouts=Count("*"))),
        fleet=fleet_counts(),
        durations=_durations(),
        oldest_pending=waiting.total_seconds() if waiting else 0.0,
        coordinator_seen_at=seen["last"],
        coordinators=seen["alive"],
    )


def _durations() -> Durations:
    ended = MigrationRun.objects.filter(started_at__isnull=False, finished_at__isnull=False)
    timed = ended.annotate(took=F("finished_at") - F("started_at")).order_by()
    counts = {
        f"at_most_{index}": Count("pk", filter=Q(took__lte=timedelta(seconds=bound)))
        for index, bound in enumerate(BUCKETS)
    }
    found = timed.aggregate(**counts, count=Count("pk"), total=Sum("took"))
    return Durations(
        at_most={bound: found[f"at_most_{index}"] for index, bound in enumerate(BUCKETS)},
        count=found["count"],
        total=found["total"].total_seconds() if found["total"] else 0.0,
    )
