"""Runs that a worker is given at once: claimed together and ended together, and in between like any others."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.db import connection, migrations, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from migrations_api.events import Event, RunEnded, RunPlanned, RunStarted, RunWaiting, StepFinished, StepStarted
from migrations_api.executor.lock import lock_key
from migrations_api.models import MigrationRun, TenantObservation, records
from migrations_api.models.records import RunEnd
from migrations_api.orchestrator import outbox, share
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.outbox import Outbox
from migrations_api.orchestrator.recorder import Recorder
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.share import work_on
from migrations_api.orchestrator.work import work
from tenants.models import Tenant
from tests import catalog
from tests.forks import dying_worker, expire, join
from tests.processes import wait_until
from tests.small_app import Code, MakeTenant, add_field, migrate, migration, query, standing_at_first

Emit = Callable[[Event], None]
TIMES = {"created_at", "started_at", "finished_at"}
OWN = {"id", "tenant", *TIMES}


def ask(*tenants: Tenant) -> list[MigrationRun]:
    return [request_run(tenant, Request(via="api")) for tenant in tenants]


def states(runs: Sequence[MigrationRun]) -> list[str]:
    for run in runs:
        run.refresh_from_db()
    return [run.state for run in runs]


class Worker:
    """One that is given the runs at once; what it tells, and what it leaves."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.left: list[int] = []
        self.stops = False
        self.on: dict[type[Event], Callable[[Any], None]] = {}

    def __call__(self, runs: Sequence[MigrationRun], **options: Any) -> list[str]:
        run_ids = [run.pk for run in runs]
        work_on(run_ids, emit=self.emit, should_stop=lambda: self.stops, leave=self.left.extend, **options)
        return states(runs)

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.on.get(type(event), lambda event: None)(event)


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def scripted(make_tenant: MakeTenant, code: Code) -> Callable[..., list[Tenant]]:
    """So many tenants with the same short step before them, which two others have made a script of."""

    def make(count: int, *operations: Any) -> list[Tenant]:
        code(m2=migration("m2", *(operations or [add_field("total")])))
        first, second, *rest = standing_at_first(make_tenant, count + 2)
        assert [migrate(tenant).state for tenant in (first, second)] == ["succeeded"] * 2
        return rest

    return make


@contextmanager
def locked(tenant: Tenant, statement: str) -> Iterator[None]:
    """Somebody else's session, in a transaction with that statement."""
    with catalog.cursor(catalog.tenant_dsn(tenant)) as cursor:
        cursor.execute("BEGIN")
        cursor.execute(statement)
        yield


def recorded(tenant: Tenant) -> list[str]:
    return [name for (name,) in query(tenant, "SELECT name FROM django_migrations ORDER BY id")]


def fields(run: MigrationRun) -> dict[str, Any]:
    run = MigrationRun.objects.get(pk=run.pk)
    return {field.attname: getattr(run, field.attname) for field in run._meta.fields if field.name not in OWN}


def test_share__leaves_and_records_what_runs_by_themselves_do(
    scripted: Callable[..., list[Tenant]], worker: Worker
) -> None:
    alone, *together = scripted(4)
    [single] = ask(alone)
    told: list[Event] = []
    work(single.pk, emit=told.append, should_stop=lambda: False)
    runs = ask(*together)
    assert worker(runs) == ["succeeded"] * 3
    assert worker.left == []
    for tenant, run in zip(together, runs, strict=True):
        assert fields(run) == fields(single)
        (step,), (other,) = run.steps.all(), single.steps.all()
        assert (step.state, step.name, step.position) == (other.state, other.name, other.position)
        assert run.started_at is not None
        assert run.finished_at is not None
        assert step.seconds > 0
        assert run.started_at <= step.started_at <= run.finished_at
        home, alike = (
            catalog.dump(catalog.tenant_dsn(each), each.schema_name).replace(each.schema_name, "home")
            for each in (tenant, alone)
        )
        assert home == alike
        assert recorded(tenant) == recorded(alone)
        seen = TenantObservation.objects.get(pk=tenant.pk)
        assert seen.applied_id == run.applied_after_id
        assert abs((seen.observed_at - run.finished_at).total_seconds()) < 1
        mine = [type(event) for event in worker.events if event.run_id == run.pk]
        assert mine == [type(event) for event in told]
        assert mine == [RunStarted, RunPlanned, StepStarted, StepFinished, RunEnded]


def test_share__is_claimed_by_one_statement_and_ended_by_one(
    scripted: Callable[..., list[Tenant]], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PATIENCE", 60.0)
    monkeypatch.setattr(share, "TOGETHER", 60.0)
    runs = ask(*scripted(8))
    with CaptureQueriesContext(connection) as queries:
        assert worker(runs) == ["succeeded"] * 8
    sent = [query["sql"].split("(")[0].split()[-1] for query in queries if query["sql"].startswith("EXECUTE")]
    assert sent == ["claim_runs", *["begin_run"] * 8, "end_runs"]


@pytest.mark.parametrize("attempts", [1, 5])
def test_share__a_tenant_that_somebody_works_on_is_left_and_not_waited_for(
    scripted: Callable[..., list[Tenant]], worker: Worker, settings: Any, attempts: int
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "attempts": attempts}
    tenants = scripted(3)
    runs = ask(*tenants)
    busy = tenants[1]
    key = lock_key(catalog.tenant_dsn(busy)["dbname"], busy.schema_name)
    with locked(busy, f"SELECT pg_advisory_lock({key})"):
        assert worker(runs) == ["succeeded", "pending", "succeeded"]
    assert worker.left == [runs[1].pk]
    assert [event.cause for event in worker.events if isinstance(event, RunWaiting)]
    assert (runs[1].lease_expires_at, runs[1].applied_before, runs[1].steps.count()) == (None, None, 0)
    assert worker(runs[1:2]) == ["succeeded"]
    assert recorded(busy) == ["0001_initial", "m2"]


def test_share__a_step_that_waits_for_a_table_in_vain_is_left(
    scripted: Callable[..., list[Tenant]], worker: Worker, settings: Any
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "lock_timeout": 0.1, "backoff": 0.05}
    tenants = scripted(3)
    runs = ask(*tenants)
    with locked(tenants[0], f'LOCK TABLE "{tenants[0].schema_name}".orders_order'):
        assert worker(runs) == ["pending", "succeeded", "succeeded"]
        assert recorded(tenants[0]) == ["0001_initial"]
    assert worker.left == [runs[0].pk]
    assert worker(runs[:1]) == ["succeeded"]
    assert runs[0].attempt == 2
    assert [step.state for step in runs[0].steps.all()] == ["done"]


def test_share__what_waits_behind_a_long_statement_is_given_back_meanwhile(
    make_tenant: MakeTenant, code: Code, worker: Worker
) -> None:
    code(m2=migration("m2", migrations.RunSQL("SELECT pg_sleep(3)")))
    runs = ask(*standing_at_first(make_tenant, 3))
    seen: list[tuple[list[str], str]] = []

    def leave(run_ids: list[int]) -> None:
        assert run_ids == [run.pk for run in runs[1:]]
        seen.append((states(runs), threading.current_thread().name))

    work_on([run.pk for run in runs], emit=worker.emit, should_stop=lambda: False, leave=leave)
    assert [found for found, _ in seen] == [["running", "pending", "pending"]]
    assert seen[0][1] != threading.current_thread().name
    assert states(runs) == ["succeeded", "pending", "pending"]


def test_share__gives_back_what_it_has_not_begun_in_time(
    scripted: Callable[..., list[Tenant]], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "TOGETHER", 0.0)
    runs = ask(*scripted(3))
    assert worker(runs) == ["succeeded", "pending", "pending"]
    assert worker.left == [run.pk for run in runs[1:]]


def test_share__finishes_the_one_in_flight_when_it_is_told_to_stop(
    scripted: Callable[..., list[Tenant]], worker: Worker
) -> None:
    def stop(event: StepFinished) -> None:
        worker.stops = True

    worker.on[StepFinished] = stop
    tenants = scripted(3)
    runs = ask(*tenants)
    assert worker(runs, requeues=True) == ["succeeded", "pending", "pending"]
    assert worker.left == [run.pk for run in runs[1:]]
    assert [recorded(tenant)[1:] for tenant in tenants] == [["m2"], [], []]


def test_share__what_was_canceled_before_it_began_is_canceled(
    scripted: Callable[..., list[Tenant]], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "TOGETHER", 0.0)
    tenants = scripted(3)
    runs = ask(*tenants)
    worker.on[RunStarted] = lambda event: MigrationRun.objects.filter(pk=runs[2].pk).update(cancel_requested=True)
    assert worker(runs) == ["succeeded", "pending", "canceled"]
    assert worker.left == [runs[1].pk]
    assert (runs[2].message, recorded(tenants[2])) == ("Stopped before it began, as asked.", ["0001_initial"])


def test_share__does_nothing_for_a_run_that_somebody_has_taken_over(
    scripted: Callable[..., list[Tenant]], worker: Worker
) -> None:
    tenants = scripted(3)
    runs = ask(*tenants)

    def take_over(event: RunStarted) -> None:
        if event.run_id == runs[0].pk:
            MigrationRun.objects.filter(pk=runs[1].pk).update(attempt=F("attempt") + 1)

    worker.on[RunStarted] = take_over
    assert worker(runs) == ["succeeded", "running", "succeeded"]
    assert worker.left == []
    assert recorded(tenants[1]) == ["0001_initial"]


def test_share__does_nothing_for_runs_that_others_have_claimed(
    scripted: Callable[..., list[Tenant]], worker: Worker
) -> None:
    runs = ask(*scripted(2))
    assert records.claim(runs[0].pk, lease=30) is not None
    assert worker(runs) == ["running", "succeeded"]
    assert {event.run_id for event in worker.events} == {runs[1].pk}


WAITING = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')"
STATEMENTS = ["claim_runs", "set_config", "begin_run", "ADD COLUMN", "end_runs"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_share__whose_worker_is_killed_is_settled_by_what_its_tenants_say(
    scripted: Callable[..., list[Tenant]], statement: str, after: bool
) -> None:
    tenants = scripted(3)
    runs = ask(*tenants)
    process = dying_worker([run.pk for run in runs], statement=statement, after=after)
    assert join(process) == [-signal.SIGKILL]
    for run in runs:
        expire(run)
    settle_abandoned([tenant.pk for tenant in tenants])
    for run, tenant, state in zip(runs, tenants, states(runs), strict=True):
        done = [step.name for step in run.steps.all() if step.state == "done"]
        assert done == recorded(tenant)[1:]
        assert state in {"pending", "succeeded"}
        if state == "pending":
            work(run.pk, emit=lambda event: None, should_stop=lambda: False)
    assert states(runs) == ["succeeded"] * 3
    assert [recorded(tenant) for tenant in tenants] == [["0001_initial", "m2"]] * 3


@pytest.mark.parametrize("statement", ["begin_run", "ADD COLUMN"])
def test_share__whose_worker_was_only_paused_has_no_effect(
    scripted: Callable[..., list[Tenant]], statement: str
) -> None:
    tenants = scripted(3)
    runs = ask(*tenants)
    process = dying_worker([run.pk for run in runs], statement=statement, after=False, how=signal.SIGSTOP)
    try:
        wait_until(lambda: ") T " in Path(f"/proc/{process.pid}/stat").read_text())
        for run in runs:
            expire(run)
        settle_abandoned([tenant.pk for tenant in tenants])
        assert set(states(runs)) == {"pending"}
        # Somebody decides otherwise: nothing of it is to happen any more.
        MigrationRun.objects.filter(pk__in=[run.pk for run in runs]).update(state="canceled")
    finally:
        os.kill(process.pid or 0, signal.SIGCONT)
        join(process)
    assert states(runs) == ["canceled"] * 3
    assert [recorded(tenant) for tenant in tenants] == [["0001_initial"]] * 3


def test_outbox__writes_one_by_one_where_together_would_be_a_deadlock(
    scripted: Callable[..., list[Tenant]], worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = ask(*scripted(2))
    box = Outbox(worker.emit)
    for run in records.claim_all([run.pk for run in runs], lease=30):
        Recorder(run, emit=worker.emit, should_stop=lambda: False, outbox=box).finish("succeed")
    touch = f"UPDATE {MigrationRun._meta.db_table} SET message = message WHERE id = %s"
    end_all, together = records.end_all, list[int]()

    def end_in_another_order(ends: Sequence[RunEnd]) -> set[int]:
        together.append(len(ends))
        if len(ends) == 1:
            return end_all(ends)
        with catalog.cursor(catalog.dsn(configured.DATABASES["default"])) as other, transaction.atomic():
            other.execute("BEGIN")
            other.execute(touch, [runs[1].pk])
            with connection.cursor() as mine:
                mine.execute("SET LOCAL deadlock_timeout = '10ms'")
                mine.execute(touch, [runs[0].pk])
                waits = threading.Thread(target=other.execute, args=(touch, [runs[0].pk]))
                waits.start()
                wait_until(lambda: bool(catalog.query(catalog.dsn(configured.DATABASES["default"]), WAITING)))
                mine.execute(touch, [runs[1].pk])
        raise AssertionError("no deadlock")

    monkeypatch.setattr(records, "end_all", end_in_another_order)
    box.flush()
    assert together == [2, 1, 1]
    assert states(runs) == ["succeeded"] * 2
    assert [type(event) for event in worker.events] == [RunEnded, RunEnded]
