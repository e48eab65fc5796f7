"""A migration that waits for a table keeps nobody else from it for longer than its lock_timeout."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.conf import settings as configured

from migrations_api.events import Event, RunWaiting
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.verbs import cancel_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target
from tenants.models import Tenant
from tests import catalog, soak
from tests.forks import join, worker
from tests.http_api import carry_out
from tests.processes import GIVE_UP, wait_until

MakeTenant = Callable[..., Tenant]
Measure = Callable[[str, object], None]
SECONDS = soak.sized(3, 120)
INNOCENTS = 4


def ask(tenant: Tenant, *target: str) -> MigrationRun:
    request = Request(target=Target(**dict(zip(("app_label", "migration_name"), target, strict=False))), via="api")
    return request_run(tenant, request)


@pytest.fixture
def tenant(make_tenant: MakeTenant, broken: Callable[..., None]) -> Tenant:
    """One whose next step changes orders_order, then ledger."""
    broken(orders="orders_two_tables")
    made = make_tenant()
    assert carry_out(ask(made, "orders", "0002_ledger_entry").pk).state == "succeeded"
    return made


@pytest.fixture
def patience(settings: Any) -> Callable[..., None]:
    def give(**conf: float) -> None:
        settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, **conf}

    return give


@contextmanager
def reader(tenant: Tenant, table: str) -> Iterator[None]:
    """A long transaction that has read the table."""
    with catalog.cursor({**catalog.tenant_dsn(tenant), "application_name": "monthly report"}) as cursor:
        cursor.execute(f'BEGIN; SELECT count(*) FROM "{tenant.schema_name}".{table}')
        yield


def innocent_query(tenant: Tenant, table: str) -> None:
    with catalog.cursor({**catalog.tenant_dsn(tenant), "options": f"-c statement_timeout={GIVE_UP}s"}) as cursor:
        cursor.execute(f'SELECT count(*) FROM "{tenant.schema_name}".{table}')


def sessions(run: MigrationRun) -> list[tuple[Any, ...]]:
    select = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s"
    return catalog.query(catalog.tenant_dsn(run.tenant), select, [f"tenant-migrations run={run.pk} %"])


def state(run: MigrationRun) -> str:
    run.refresh_from_db()
    return run.state


@pytest.mark.parametrize("table", ["orders_order", "ledger"])
def test_innocents__get_through_while_the_migration_still_waits(
    tenant: Tenant, patience: Callable[..., None], table: str
) -> None:
    patience(lock_timeout=0.3, attempts=1000, max_backoff=0.05)
    run = ask(tenant, "orders")
    with reader(tenant, table):
        process = worker(run.pk)
        wait_until(lambda: state(run) == "waiting" and run.attempt > 1)
        for _ in range(3):
            innocent_query(tenant, "orders_order")
            innocent_query(tenant, "ledger")
        assert state(run) in {"running", "waiting"}
    assert join(process) == [0]
    assert state(run) == "succeeded"


@pytest.mark.parametrize("table", ["orders_order", "ledger"])
def test_waiting__names_the_lock_and_has_let_go_of_everything(
    tenant: Tenant, patience: Callable[..., None], table: str
) -> None:
    patience(lock_timeout=0.1, backoff=2 * GIVE_UP, max_backoff=2 * GIVE_UP)
    run = ask(tenant, "orders")
    with reader(tenant, table):
        process = worker(run.pk)
        wait_until(lambda: state(run) == "waiting")
        assert f"LockNotAvailable: canceling statement due to lock timeout: {table} is locked by" in run.waiting_cause
        assert "'monthly report' (server process " in run.waiting_cause
        # Neither a transaction nor the tenant's lock nor a session outlasts the try.
        assert sessions(run) == []
        cancel_run(run)
    process.kill()
    process.join()


def test_tries__are_counted_bounded_and_spread(tenant: Tenant, patience: Callable[..., None]) -> None:
    patience(lock_timeout=0.05, attempts=5, backoff=0.02, max_backoff=0.05)
    waits, events = list[float](), list[Event]()
    for _ in range(2):
        run = ask(tenant, "orders")
        with reader(tenant, "orders_order"):
            work(run.pk, emit=events.append, should_stop=lambda: False)
        assert (state(run), run.attempt, run.error_code) == ("failed", 5, "migration_failed")
        assert (run.sqlstate, run.failed_step) == ("55P03", "orders.0003_notes")
        assert "orders_order is locked by" in run.message
    waits = [event.seconds for event in events if isinstance(event, RunWaiting)]
    full = [0.02, 0.04, 0.05, 0.05] * 2
    assert all(0.5 * most <= wait <= 1.5 * most for wait, most in zip(waits, full, strict=True))
    assert waits[:4] != waits[4:]


def test_tries__that_cannot_even_read_what_is_applied_wait_as_well(
    tenant: Tenant, patience: Callable[..., None]
) -> None:
    patience(lock_timeout=0.1, attempts=1000, max_backoff=0.05)
    run = ask(tenant, "orders")
    with catalog.cursor(catalog.tenant_dsn(tenant)) as cursor:
        cursor.execute(f'BEGIN; LOCK TABLE "{tenant.schema_name}".django_migrations IN ACCESS EXCLUSIVE MODE')
        process = worker(run.pk)
        wait_until(lambda: state(run) == "waiting")
    assert join(process) == [0]
    assert state(run) == "succeeded"


class Innocents:
    """Sessions that ask the same short question all the time, and how long the slowest answer took, in seconds."""

    def __init__(self, tenant: Tenant, table: str) -> None:
        self.slowest = 0.0
        self._tenant, self._table = tenant, table
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(INNOCENTS)]

    def _ask(self) -> None:
        with catalog.cursor(catalog.tenant_dsn(self._tenant)) as cursor:
            while not self._done.wait(0.005):
                began = time.monotonic()
                cursor.execute(f'SELECT 1 FROM "{self._tenant.schema_name}".{self._table} LIMIT 1')
                self.slowest = max(self.slowest, time.monotonic() - began)

    def __enter__(self) -> "Innocents":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.skipif(not soak.IS_WHOLE, reason="a measurement, which belongs to the soak")
@pytest.mark.parametrize("table", ["orders_order", "ledger"])
def test_innocents__how_long_they_wait(
    tenant: Tenant, patience: Callable[..., None], table: str, record_property: Measure
) -> None:
    """The question is put to the table that is locked first; the reader has read that one, or the other."""
    patience(lock_timeout=2, attempts=1000, max_backoff=2, backoff=0.5)
    run = ask(tenant, "orders")
    with Innocents(tenant, "orders_order") as innocents:
        with reader(tenant, table):
            process = worker(run.pk)
            time.sleep(SECONDS)
        assert join(process) == [0]
    state(run)
    found = f"{innocents.slowest * 1000:.0f} ms in {run.attempt} tries ({table})"
    soak.measured(record_property, "innocent query behind a waiting migration", "at most 2000 + 50 ms", found)
    assert configured.TENANT_MIGRATIONS["lock_timeout"] == 2
