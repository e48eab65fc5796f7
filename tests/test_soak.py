"""Rollouts whose workers, coordinator or broker are killed in the middle, judged by what their tenants have become."""

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from django.conf import settings as configured
from django.db.models import Sum
from django.utils import timezone

from migrations_api.models import Coordinator, MigrationRun, Rollout
from migrations_api.orchestrator.requests import Request, request_rollout
from migrations_api.states import ACTIVE_ROLLOUT_STATES
from tenants.models import Tenant
from tests import catalog, oracle
from tests.fleets import bring, copy, fleet, named
from tests.processes import GIVE_UP, Process, output, processes, wait_until
from tests.redis_server import RedisServer, redis_server
from tests.soak import IS_WHOLE, LONG, children, kill, sized
from tests.test_celery import workers

STEADY = {"orders": "orders_steady"}
TENANTS = int(sized(12, 200))
FAILING = int(sized(1, 4))
KILL_EVERY = sized(0.3, 2.0)  # seconds
LEASE = sized(2, 10)  # seconds
# However often a run's worker is killed, it is carried on with.
CONF = {"attempts": 1000, "lease": LEASE, "heartbeat": LEASE / 4, "resubmit_after": 1}
Record = Callable[[str, object], None]


@dataclass(frozen=True, kw_only=True)
class Service:
    """Processes that carry out rollouts; `workers` gives those that are at work now, whichever dispatcher it is."""

    start: Callable[..., Process]
    workers: Callable[[], list[int]]


@pytest.fixture
def tenants(plane: None, broken: Callable[..., None]) -> Iterator[list[Tenant]]:
    """Empty ones in the whole size; those of the small size have come as far as the steps that take a moment."""
    with fleet(named("t", TENANTS, failing=FAILING)) as tenants:
        if not IS_WHOLE:
            broken(**STEADY)
            bring(tenants[0], "orders", "0001")
            copy(tenants[0], tenants[1:])
        yield tenants


@pytest.fixture
def local(plane: None, tmp_path: Path) -> Iterator[Service]:
    with processes(tmp_path) as start:
        started: list[Process] = []

        def coordinator() -> Process:
            started.append(start("coordinate", broken=STEADY, own_session=True, **CONF))
            return started[-1]

        yield Service(start=coordinator, workers=lambda: [pid for each in started for pid in children(each.pid)])


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def celery(plane: None, redis: RedisServer, tmp_path: Path) -> Iterator[Service]:
    folders = [tmp_path / name for name in ("coordinators", "workers")]
    for folder in folders:
        folder.mkdir()
    with processes(folders[0]) as start, workers(folders[1], redis.url()) as start_worker:
        broker = {"CELERY_BROKER_URL": redis.url()}
        worker = start_worker(broken=STEADY, **CONF)

        def coordinator() -> Process:
            return start("coordinate", broken=STEADY, environment=broker, executor="celery", **CONF)

        yield Service(start=coordinator, workers=lambda: children(worker.pid))


def ask(tenants: list[Tenant]) -> Rollout:
    return request_rollout(tenants, Request(via="api"))


def is_over(rollout: Rollout) -> bool:
    rollout.refresh_from_db()
    return rollout.state not in ACTIVE_ROLLOUT_STATES


def lost_attempts(rollout: Rollout) -> int:
    """How many attempts came to nothing because their worker was killed."""
    attempts: int = rollout.runs.aggregate(Sum("attempt"))["attempt__sum"]
    return attempts - rollout.runs.filter(attempt__gt=0).count()


def is_at_work() -> bool:
    """Whether some worker is connected to a tenant, and not only starting or waiting."""
    runs = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ ' run=[0-9]'"
    return bool(catalog.query(catalog.dsn(configured.TENANT_DATABASES["shop"]), runs))


def ended(rollout: Rollout) -> int:
    return rollout.runs.filter(finished_at__isnull=False).count()


def judge(rollout: Rollout, tenants: list[Tenant]) -> None:
    """Every tenant has one run, which has ended and tells the truth, and what was done was done once."""
    runs = {run.tenant_id: run for run in rollout.runs.prefetch_related("steps").select_related("applied_after")}
    found = {tenant.tenant_id: oracle.truth(tenant) for tenant in tenants}
    boundaries = oracle.boundaries(**STEADY)

    assert MigrationRun.objects.exclude(rollout=None).count() == len(tenants)
    assert runs.keys() == found.keys()
    assert [lie for tenant_id, run in runs.items() for lie in oracle.lies(run, found[tenant_id], boundaries)] == []
    assert {tenant_id: each.ledger for tenant_id, each in found.items() if each.ledger != 1} == {}
    expected = {tenant_id: "failed" if "globex" in tenant_id else "succeeded" for tenant_id in runs}
    assert {tenant_id: run.state for tenant_id, run in runs.items()} == expected
    assert {run.failed_step for run in runs.values() if run.state == "failed"} == {"orders.0004_channel"}
    assert rollout.state == "failed"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a process's children are found in Linux's /proc")
@pytest.mark.parametrize("dispatcher", ["local", "celery"])
def test_soak__workers_that_are_killed_again_and_again(
    request: pytest.FixtureRequest, tenants: list[Tenant], dispatcher: str, record_property: Record
) -> None:
    service: Service = request.getfixturevalue(dispatcher)
    rollout = ask(tenants)
    coordinator = service.start()
    wait_until(lambda: rollout.runs.in_flight().exists())
    began, kills = time.monotonic(), 0
    # The small size has no time to miss: all are killed at once, and it goes on in peace once enough was lost.
    while not is_over(rollout) and (IS_WHOLE or lost_attempts(rollout) < 3):
        assert time.monotonic() < began + LONG, output(coordinator)
        time.sleep(KILL_EVERY)
        if is_at_work() and (pids := service.workers()):
            for pid in [secrets.choice(pids)] if IS_WHOLE else pids:
                kill(pid)
                kills += 1
    wait_until(lambda: is_over(rollout), give_up=LONG)

    assert lost_attempts(rollout) >= 3
    judge(rollout, tenants)
    record_property(
        f"soak, {dispatcher}",
        f"{len(tenants)} tenants in {time.monotonic() - began:.0f} s; {kills} kills, {lost_attempts(rollout)} in a run;"
        f" most attempts {max(rollout.runs.values_list('attempt', flat=True))}; 0 lost, 1 row in each ledger",
    )


@pytest.mark.parametrize("takes_workers_along", [False, True])
def test_failover__of_the_coordinator_in_the_middle_of_a_rollout(
    tenants: list[Tenant], local: Service, takes_workers_along: bool, record_property: Record
) -> None:
    """Its workers end with it, between two steps or, where the whole host is gone, anywhere."""
    pair = {process.pid: process for process in (local.start(), local.start())}
    wait_until(lambda: len(leaders()) == 1 and Coordinator.objects.count() == 2)
    rollout = ask(tenants)
    wait_until(lambda: ended(rollout) >= len(tenants) // 4, give_up=LONG)
    [first] = leaders()
    killed_at = timezone.now()
    (os.killpg if takes_workers_along else os.kill)(first, signal.SIGKILL)
    pair[first].wait(GIVE_UP)
    wait_until(lambda: is_over(rollout), give_up=LONG)

    [second] = pair.keys() - {first}
    assert second in leaders()
    judge(rollout, tenants)
    goes_on = rollout.runs.filter(started_at__gt=killed_at).earliest("started_at").started_at
    assert goes_on is not None
    record_property(
        f"failover, {'host' if takes_workers_along else 'process'} killed",
        f"next tenant started {(goes_on - killed_at).total_seconds():.1f} s later; the lease is {LEASE:g} s;"
        f" {lost_attempts(rollout)} runs taken over",
    )


def leaders() -> list[int]:
    names = Coordinator.objects.filter(leading=True).values_list("name", flat=True)
    return [int(name.rpartition(":")[2]) for name in names]


def test_broker__that_is_wiped_and_killed_in_the_middle_of_a_rollout(
    tenants: list[Tenant], redis: RedisServer, celery: Service, record_property: Record
) -> None:
    rollout = ask(tenants)
    celery.start()
    wait_until(lambda: ended(rollout) >= len(tenants) // 4, give_up=LONG)
    with redis.client() as client:
        client.flushall()
    redis.stop()
    stopped = time.monotonic()
    # So long that what was taken from it is done, and nothing else can be.
    wait_until(lambda: not rollout.runs.in_flight().exists())
    before = ended(rollout)
    redis.start()
    away = time.monotonic() - stopped
    wait_until(lambda: is_over(rollout), give_up=LONG)

    assert before < len(tenants)
    assert set(rollout.runs.values_list("attempt", flat=True)) == {1}
    judge(rollout, tenants)
    record_property(
        "broker wiped",
        f"away for {away:.1f} s after {before} of {len(tenants)} tenants; the rest took"
        f" {time.monotonic() - stopped - away:.0f} s",
    )
