"""Workers that are killed, or paused for so long that others take them for dead."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.core import serializers
from django.db import connection

from migrations_api.executor.lock import lock_key
from migrations_api.models import MigrationRun, RunStep, TenantObservation
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.recorder import session_name
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.verbs import cancel_run
from tenants.models import Tenant
from tests import catalog, oracle, soak
from tests.forks import dying_worker, expire, join, work_on, worker
from tests.processes import GIVE_UP, Process, processes, wait_until

MakeTenant = Callable[..., Tenant]
Start = Callable[..., Process]
Measure = Callable[[str, object], None]

# Those of the goal are the service's own.
CONF = {"lease": 30, "heartbeat": 10} if soak.SHARE else {"lease": 2, "heartbeat": 0.5}
ORPHANS = int(soak.sized(2, 10))
ROUNDS = int(soak.sized(1, 5))
PAUSES = int(soak.sized(3, 200))

SESSIONS = """
SELECT application_name, pid FROM pg_stat_activity
 WHERE application_name LIKE 'tenant-migrations run=%%' AND datname = current_database()
   AND state = 'active' AND query LIKE '%%pg_sleep(600)%%'
"""
HOLDING = "SELECT DISTINCT pid FROM pg_locks WHERE granted AND pid = ANY(%s)"


@pytest.fixture
def start(plane: None, tmp_path: Path) -> Iterator[Start]:
    with processes(tmp_path) as start:
        yield lambda **options: start("coordinate", **options)


def shop(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return catalog.query(catalog.dsn(configured.TENANT_DATABASES["shop"]), statement, list(parameters))


def asleep(runs: list[MigrationRun]) -> dict[int, int]:
    """The server processes in which the runs' statements sleep."""
    found = dict(shop(SESSIONS))
    pids = {run.pk: found.get(session_name(run)) for run in MigrationRun.objects.filter(pk__in=[r.pk for r in runs])}
    return {run_id: pid for run_id, pid in pids.items() if pid}


def attempts(runs: list[MigrationRun]) -> dict[int, int]:
    rows = MigrationRun.objects.filter(pk__in=[run.pk for run in runs], state="running")
    return dict(rows.values_list("pk", "attempt"))


def kill_with_children(parent: int, *victims: int) -> None:
    for pid in (*victims, *soak.children(parent)):
        soak.kill(pid)


def orphan(runs: list[MigrationRun], kill: Callable[[], None]) -> tuple[list[float], list[float]]:
    """Kill the workers in the middle of a statement; seconds until each lets go of its locks, and is settled."""
    wait_until(lambda: len(asleep(runs)) == len(runs))
    holding, before = set(asleep(runs).values()), attempts(runs)
    kill()
    died_at, free, settled = time.monotonic(), list[float](), list[float]()

    def all_over() -> bool:
        nonlocal holding, before
        still = {pid for (pid,) in shop(HOLDING, list(holding))} if holding else set()
        now = attempts(runs)
        running = {run_id: attempt for run_id, attempt in before.items() if now.get(run_id) == attempt}
        free.extend([time.monotonic() - died_at] * len(holding - still))
        settled.extend([time.monotonic() - died_at] * (len(before) - len(running)))
        holding, before = still, running
        return not holding and not before

    wait_until(all_over)
    return free, settled


def test_killed__its_locks_are_free_and_its_run_is_settled_before_its_statement_would_have_ended(
    make_tenant: MakeTenant, start: Start, record_property: Measure
) -> None:
    """Once with the coordinator alive, which sees its worker die, and once without, so that only the lease tells."""
    runs = [request_run(make_tenant(f"orphan{n}"), Request(via="api")) for n in range(ORPHANS)]
    options = {**CONF, "broken": {"orders": "orders_sleeping"}, "max_concurrency": ORPHANS, "attempts": 100}
    free, settled = list[float](), list[float]()
    leader = start(**options)
    for _ in range(ROUNDS):
        standby = None
        for victims in ([], [leader.pid]):
            found = orphan(runs, partial(kill_with_children, leader.pid, *victims))
            free += found[0]
            settled += found[1]
            standby = standby or start(**options)
        leader = standby

    soak.measured(record_property, "orphaned run settled, p99", "at most 45 s", f"{soak.at(settled, 99):.1f} s")
    soak.measured(record_property, "locks free after a worker's death", "at most 6 s", f"{max(free):.1f} s")
    if soak.IS_WHOLE:
        assert soak.at(settled, 99) <= 45
        assert max(free) <= 6


@pytest.mark.parametrize(("attempt", "lives"), [(1, False), (2, True)])
def test_settle__ends_the_session_of_the_attempt_that_it_settles_and_no_other(
    make_tenant: MakeTenant, attempt: int, lives: bool
) -> None:
    """Two may settle the same run: the slower one finds the session of whoever carries on with it by then."""
    run = request_run(make_tenant(), Request(via="api"))
    MigrationRun.objects.filter(pk=run.pk).update(state="running", attempt=1)
    run.attempt = attempt
    arguments = {**catalog.tenant_dsn(run.tenant), "application_name": session_name(run)}
    with catalog.cursor(arguments) as worker:
        worker.execute("SELECT pg_advisory_lock(%s)", [lock_key(configured.SHOP, run.tenant.schema_name)])
        pid = worker.connection.info.backend_pid
        expire(run)
        settle_abandoned()
        assert bool(shop("SELECT true FROM pg_stat_activity WHERE pid = %s", pid)) == lives
    run.refresh_from_db()
    assert run.state == ("running" if lives else "pending")


def records(tenant: Tenant) -> str:
    """All that is told of the tenant, as text."""
    rows = [
        *MigrationRun.objects.filter(tenant=tenant).order_by("pk"),
        *RunStep.objects.filter(run__tenant=tenant).order_by("pk"),
        *TenantObservation.objects.filter(tenant=tenant),
    ]
    text: str = serializers.serialize("json", rows, indent=1)
    return text


def pause(tenant: Tenant, moment: float) -> tuple[Any, MigrationRun] | None:
    """A worker that stands still in the middle of its run, so many seconds after it began; None if it was through."""
    run = request_run(tenant, Request(via="api"))
    process = worker(run.pk)
    time.sleep(moment)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGSTOP)  # type: ignore[arg-type]
    run.refresh_from_db()
    if run.state == "running" and run.attempt == 1:
        return process, run
    process.kill()
    process.join()
    return None


def succeed(run: MigrationRun) -> None:
    """Take the run over, as often as it needs, until it has an end."""

    def is_over() -> bool:
        settle_abandoned([run.tenant_id])
        work_on(run.pk)
        run.refresh_from_db()
        return not run.is_active

    expire(run)
    wait_until(is_over)


def duration(tenant: Tenant) -> float:
    run = request_run(tenant, Request(via="api"))
    began = time.monotonic()
    assert join(worker(run.pk)) == [0]
    return time.monotonic() - began


def test_paused__after_its_claim_it_blocks_nobody(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "lease": 1, "heartbeat": 0.3}
    run = request_run(make_tenant(), Request(via="api"))
    process = dying_worker(run.pk, statement="EXECUTE claim_run", after=True, how=signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{GIVE_UP}s'")
    cancel_run(run)
    os.kill(process.pid, signal.SIGCONT)  # type: ignore[arg-type]
    join(process)
    run.refresh_from_db()
    assert (run.state, run.attempt) == ("canceled", 1)


def test_paused__a_worker_that_wakes_up_too_late_changes_nothing(
    make_tenant: MakeTenant, settings: Any, record_property: Measure
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "lease": 4, "heartbeat": 0.5, "attempts": 10}
    lasts = duration(make_tenant("whole"))
    stock, changed = oracle.boundaries(), list[str]()
    chance = random.Random(7201)  # noqa: S311 - the same choices each time
    trials = tried = 0
    while trials < PAUSES:
        tried += 1
        assert tried < PAUSES * 20, "no worker was caught in the middle"
        tenant = make_tenant(f"late{tried}")
        caught = pause(tenant, chance.uniform(0, lasts))
        if caught is None:
            continue
        process, run = caught
        trials += 1
        succeed(run)
        before = oracle.truth(tenant), records(tenant)
        os.kill(process.pid, signal.SIGCONT)
        join(process)
        if (oracle.truth(tenant), records(tenant)) != before or len(before[0].rows) != len(before[0].applied):
            changed.append(f"{run}, {run.state}")
        if run.state == "succeeded":
            assert oracle.lies(run, before[0], stock) == []

    soak.measured(
        record_property, "a paused worker that wakes up", "no effect in 200", f"{len(changed)} effects in {trials}"
    )
    assert changed == []
