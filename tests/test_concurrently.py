"""Indexes that are built without blocking: beside those who wait for the tenant, and stopped at any moment."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from django.conf import settings as configured

from migrations_api.exceptions import TenantLocked
from migrations_api.executor.lock import lock_key, tenant_lock
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.repairs import diagnosis_of, request_repair
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.plan import Target
from tenants.models import Tenant
from tenants.sessions import tenant_session
from tests import catalog, oracle, soak
from tests.forks import expire, join, worker
from tests.http_api import carry_out
from tests.processes import wait_until

MakeTenant = Callable[..., Tenant]
Measure = Callable[[str, object], None]
WAITERS = 4
BUILDS = int(soak.sized(6, 500))
STOPS = int(soak.sized(4, 200))

BEFORE, INDEX, STEP = ("orders", "0003_order_total"), ("orders", "0004_status_index"), "orders.0004_status_index"
BACKENDS = """
SELECT pid FROM pg_stat_activity
 WHERE application_name LIKE 'tenant-migrations run=%%' AND query LIKE '%%CONCURRENTLY%%'
   AND state = 'active' AND datname = current_database()
"""


def shop(statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return catalog.query(catalog.dsn(configured.TENANT_DATABASES["shop"]), statement, list(parameters))


def ask(tenant: Tenant, target: tuple[str, str]) -> MigrationRun:
    return request_run(tenant, Request(target=Target(app_label=target[0], migration_name=target[1]), via="api"))


@contextmanager
def waiters(tenant: Tenant) -> Iterator[None]:
    """Others who want to migrate the same tenant and poll for its lock all the while."""
    done = threading.Event()

    def wait() -> None:
        with tenant_session(tenant, application_name="waiter") as connection:
            while not done.is_set():
                with (
                    suppress(TenantLocked),
                    tenant_lock(connection, database=configured.SHOP, schema=tenant.schema_name, wait=0.2),
                ):
                    time.sleep(0.01)

    threads = [threading.Thread(target=wait) for _ in range(WAITERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_waiters__do_not_deadlock_with_a_build(
    make_tenant: MakeTenant, settings: Any, record_property: Measure
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "lock_wait": 30, "lock_timeout": 30}
    tenant = make_tenant()
    assert carry_out(ask(tenant, BEFORE).pk).state == "succeeded"
    ended, invalid = Counter[str](), 0
    with waiters(tenant):
        for number in range(BUILDS):
            run = carry_out(ask(tenant, BEFORE if number % 2 else INDEX).pk)
            ended[run.sqlstate or run.state] += 1
            invalid += len(oracle.truth(tenant).invalid)

    found = f"{ended['40P01']} deadlocks and {invalid} invalid indexes in {BUILDS}"
    soak.measured(record_property, "deadlocks of CONCURRENTLY beside waiters", "0 in 500", found)
    assert (dict(ended), invalid) == ({"succeeded": BUILDS}, 0)


def test_waiters__that_block_would_deadlock(make_tenant: MakeTenant, settings: Any) -> None:
    """What the polling is for: one session that waits in the server is enough, and what it leaves is reported."""
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "lock_timeout": 30}
    tenant = make_tenant()
    assert carry_out(ask(tenant, BEFORE).pk).state == "succeeded"
    run, key = ask(tenant, INDEX), lock_key(configured.SHOP, tenant.schema_name)
    arguments = catalog.tenant_dsn(tenant)
    with catalog.cursor(arguments) as waiter:
        waiter.execute("SET deadlock_timeout = '1h'")
        thread = threading.Thread(target=block, args=(waiter, key))
        with writer(tenant):
            process = worker(run.pk)
            wait_until(lambda: shop(BACKENDS))
            thread.start()
            wait_until(lambda: shop("SELECT true FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        join(process)
        thread.join()
    run.refresh_from_db()
    assert (run.state, run.sqlstate, run.failed_step) == ("partial", "40P01", STEP)
    found = oracle.truth(tenant)
    assert found.invalid == ("orders_status_placed_idx",)
    assert is_reported(run, found)


@contextmanager
def writer(tenant: Tenant) -> Iterator[None]:
    """A transaction that writes to the table, for which a build waits before it reads it."""
    with catalog.cursor(catalog.tenant_dsn(tenant)) as cursor:
        cursor.execute(f'BEGIN; LOCK TABLE "{tenant.schema_name}".orders_order IN ROW EXCLUSIVE MODE')
        yield


def block(waiter: Any, key: int) -> None:
    with suppress(catalog.psycopg2.Error):
        waiter.execute("SELECT pg_advisory_lock(%s)", [key])


@contextmanager
def reader(arguments: dict[str, Any]) -> Iterator[None]:
    """A transaction whose snapshot every concurrent build in its database waits for, while this lasts."""
    with catalog.cursor(arguments) as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT count(*) FROM pg_class")
        yield


def kill_worker(process: Any, pid: int) -> None:
    process.kill()


def end_session(process: Any, pid: int) -> None:
    shop("SELECT pg_terminate_backend(%s)", pid)


def cancel_statement(process: Any, pid: int) -> None:
    shop("SELECT pg_cancel_backend(%s)", pid)


def let_it_time_out(process: Any, pid: int) -> None:
    """Its lock_timeout ends the wait for the reader."""


HOW = [kill_worker, end_session, cancel_statement, let_it_time_out]


def stop(run: MigrationRun, how: Callable[[Any, int], None], moment: float) -> None:
    """Have the run's build stopped, after so many seconds of waiting for a reader, and the run settled."""
    arguments = catalog.tenant_dsn(run.tenant)
    with ExitStack() as held:
        held.enter_context(reader(arguments))
        process = worker(run.pk)
        wait_until(lambda: shop(BACKENDS) or not process.is_alive())
        time.sleep(moment)
        for (pid,) in shop(BACKENDS):
            how(process, pid)
        join(process)
        if how is kill_worker:
            # The server finds out within a second that nobody is there any more.
            wait_until(lambda: not shop(BACKENDS))
    expire(run)
    settle_abandoned([run.tenant_id])
    run.refresh_from_db()


def is_reported(run: MigrationRun, found: oracle.Truth) -> bool:
    return run.state == "partial" and set(found.invalid) <= set(diagnosis_of(run).invalid_indexes)


def is_repaired(run: MigrationRun, way: str, tenant: Tenant, stock: oracle.Boundaries) -> bool:
    repair = carry_out(request_repair(run, way, reason="", by="ann", via="api").pk)
    found = oracle.truth(tenant)
    return (repair.state, found.invalid) == ("succeeded", ()) and stock.get(found.applied) == found.catalog


def test_stopped__what_is_left_is_reported_and_repaired(
    make_tenant: MakeTenant, settings: Any, record_property: Measure
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "lock_timeout": 0.3, "attempts": 1}
    tenant, stock = make_tenant(), oracle.boundaries(INDEX)
    chance = random.Random(7201)  # noqa: S311 - the same choices each time
    assert carry_out(ask(tenant, BEFORE).pk).state == "succeeded"
    left = reported = repaired = 0
    for trial in range(STOPS):
        run = ask(tenant, INDEX)
        stop(run, HOW[trial % len(HOW)], chance.uniform(0, 0.2))
        found = oracle.truth(tenant)
        if found.invalid:
            left += 1
            reported += is_reported(run, found)
        if run.state == "partial":
            ways = [way.name for way in diagnosis_of(run).ways if way.possible and way.name != "mark"]
            repaired += is_repaired(run, chance.choice(ways), tenant, stock) and bool(found.invalid)
        assert oracle.truth(tenant).invalid == (), (run.pk, run.state)
        if INDEX in oracle.truth(tenant).applied:
            assert carry_out(ask(tenant, BEFORE).pk).state == "succeeded"

    told = f"{reported} of {left} reported, {repaired} repaired"
    soak.measured(record_property, "invalid indexes", "100 % reported; repair leaves 0", told)
    assert (reported, repaired) == (left, left)
    assert left
