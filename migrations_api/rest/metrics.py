"""/metrics in Prometheus' text format, read from the database, so every process tells the same."""

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from migrations_api.orchestrator.readiness import Durations, Measures, measure
from migrations_api.states import RolloutState, RunState

FRESH: Final = 5.0  # seconds for which what was read is shown again
PREFIX: Final = "tenant_migrations"


class DatabaseCollector:
    """prometheus_client's protocol of a collector, over one reading."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures

    def collect(self) -> Iterator[Metric]:
        found = self._measures
        yield _by("runs", "Runs, by state.", "state", {**dict.fromkeys(RunState.values, 0), **found.runs})
        rollouts = {**dict.fromkeys(RolloutState.values, 0), **found.rollouts}
        yield _by("rollouts", "Rollouts, by state.", "state", rollouts)
        yield _by("tenants", "Tenants, by status as last looked at.", "status", found.fleet.by_status)
        yield _by("database_tenants", "Tenants, by database server.", "database", found.fleet.by_database)
        yield _gauge("starting_states", "Different sets of applied migrations.", found.fleet.starting_states)
        if found.fleet.oldest_observation is not None:
            at = found.fleet.oldest_observation.timestamp()
            yield _gauge("oldest_observation_timestamp_seconds", "When the oldest look at a tenant was.", at)
        yield _histogram(found.durations)
        yield _gauge("oldest_pending_run_age_seconds", "Age of the oldest pending run.", found.oldest_pending)
        yield _gauge("coordinators", "Coordinators seen lately, those that stand by included.", found.coordinators)
        if found.coordinator_seen_at is not None:
            seen = found.coordinator_seen_at.timestamp()
            yield _gauge("coordinator_last_seen_timestamp_seconds", "When a coordinator was last seen.", seen)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _by(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _histogram(durations: Durations) -> Metric:
    buckets = [(f"{bound:g}", count) for bound, count in durations.at_most.items()]
    return HistogramMetricFamily(
        f"{PREFIX}_run_duration_seconds",
        "How long ended runs took, their waiting included.",
        buckets=[*buckets, ("+Inf", durations.count)],
        sum_value=durations.total,
    )


class MetricsCache:
    """The page of the last reading. One caller reads while the others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._page = b""
        self._read_at = float("-inf")

    def page(self) -> bytes:
        with self._lock:
            if time.monotonic() - self._read_at >= FRESH:
                registry = CollectorRegistry(auto_describe=False)
                registry.register(DatabaseCollector(measure()))
                self._page, self._read_at = generate_latest(registry), time.monotonic()
            return self._page

    def clear(self) -> None:
        self._read_at = float("-inf")


cache: Final = MetricsCache()
