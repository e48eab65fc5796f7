import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
from django.conf import settings as configured
from django.db import OperationalError, connection, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.models import F
from psycopg2 import sql

from migrations_api import exceptions
from migrations_api.events import Event, RunEnded, RunPlanned, RunStarted, RunWaiting, StepFinished, StepStarted
from migrations_api.executor import End, Failure, Options, Outcome, StepResult
from migrations_api.executor.lock import lock_key
from migrations_api.models import AppliedSet, MigrationRun, RunStep, records
from migrations_api.orchestrator import progress
from migrations_api.orchestrator.heartbeat import heartbeat
from migrations_api.orchestrator.progress import AttemptLost
from migrations_api.orchestrator.recorder import Recorder
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.sources import source_for
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target, make_plan
from tenants.binding import control_plane, open_connection, tenant_as_default
from tenants.conf import load_conf
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.processes import wait_until
from tests.proxy import Proxy, proxy

MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]
Emit = Callable[[Event], None]


@pytest.fixture(autouse=True)
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PACE", 0.0)


def never() -> bool:
    return False


def ask(tenant: Tenant, app_label: str | None = None, name: str | None = None, **values: Any) -> MigrationRun:
    digest = values.pop("expected_digest", "")
    target = Target(app_label=app_label, migration_name=name)
    request = Request(target=target, options=Options(**values.pop("options", {})), **values)
    return request_run(tenant, request, expected_digest=digest)


def carry_out(
    run: MigrationRun, *, emit: Emit = lambda event: None, should_stop: Callable[[], bool] = never
) -> MigrationRun:
    work(run.pk, emit=emit, should_stop=should_stop)
    run.refresh_from_db()
    return run


def migrate(tenant: Tenant, *target: str) -> MigrationRun:
    return carry_out(ask(tenant, *target))


def steps(run: MigrationRun) -> list[tuple[str, str]]:
    return [(str(step), step.state) for step in run.steps.all()]


def take_over(run: MigrationRun) -> None:
    with control_plane():
        MigrationRun.objects.filter(pk=run.pk).update(attempt=F("attempt") + 1)


@contextmanager
def locked_users(tenant: Tenant) -> Iterator[psycopg2.extensions.connection]:
    """Another session that has locked the table users_user; closing it lets go."""
    connection = psycopg2.connect(**catalog.tenant_dsn(tenant))
    try:
        with connection.cursor() as cursor:
            table = sql.Identifier(tenant.schema_name, "users_user")
            cursor.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
        yield connection
    finally:
        connection.close()


@pytest.fixture
def impatient(settings: Any) -> Any:
    settings.TENANT_MIGRATIONS = {"lock_timeout": 0.1, "lock_wait": 0, "attempts": 3, "backoff": 0.05}
    return settings


def test_work__records_who_what_and_from_where_to_where(tenant: Tenant) -> None:
    run = carry_out(ask(tenant, by="ada", via="command"))
    assert (run.state, run.attempt, run.requested_by, run.requested_via) == ("succeeded", 1, "ada", "command")
    assert (run.error_code, run.message, run.lease_expires_at) == ("", "", None)
    assert run.started_at is not None
    assert run.finished_at is not None
    assert run.applied_before is not None
    assert run.applied_after is not None
    assert run.applied_before.keys == frozenset()
    rows = catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)
    assert run.applied_after.keys == frozenset(rows)
    assert [(step.app_label, step.name) for step in run.steps.all()] == rows
    assert all(step.state == "done" and step.seconds > 0 and step.started_at for step in run.steps.all())
    assert run.plan_digest == make_plan(source_for(tenant.isolation), frozenset(), Target()).digest


def test_work__tells_what_happens(make_tenant: MakeTenant) -> None:
    told: list[Event] = []
    carry_out(ask(make_tenant(), "users", "0002"), emit=told.append)
    kinds = [type(event) for event in told]
    assert kinds == [RunStarted, RunPlanned, StepStarted, StepFinished, StepStarted, StepFinished, RunEnded]


def test_work__failure_is_recorded_with_its_step(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_unique_violation")
    run = migrate(make_tenant("globex"))
    assert (run.state, run.attempt) == ("failed", 1)
    assert (run.error_code, run.error_class, run.sqlstate) == ("migration_failed", "UniqueViolation", "23505")
    assert run.failed_step == "orders.0003_import_users"
    assert "users_user_email_unique" in run.message
    assert "a@b.c" not in run.message
    names, states = zip(*steps(run), strict=True)
    done = names.index("orders.0003_import_users")
    assert states == ("done",) * done + ("failed",) + ("pending",) * (len(names) - done - 1)
    assert run.applied_after is not None
    assert len(run.applied_after.keys) == done > 0


def test_work__partial_is_recorded(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_failing_nonatomic")
    run = migrate(make_tenant("globex"))
    assert (run.state, run.failed_step, run.error_class) == ("partial", "orders.0003_archive", "ValueError")


def test_work__password_in_an_error_is_not_recorded(broken: Choose, make_tenant: MakeTenant, settings: Any) -> None:
    broken(orders="orders_failing_data")
    tenant = make_tenant("globex")
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "other": {"PASSWORD": "has no channel"}}
    assert migrate(tenant).message == "ValueError: an order ***"


def test_work__faked_steps_are_recorded_as_such(make_tenant: MakeTenant) -> None:
    run = carry_out(ask(make_tenant(), "users", options={"fake": True}))
    assert {state for _, state in steps(run)} == {"faked"}


def test_applied_set__is_stored_once_for_all_tenants(make_tenant: MakeTenant) -> None:
    for tenant_id in ("acme", "globex"):
        migrate(make_tenant(tenant_id), "users", "0001")
    assert AppliedSet.objects.count() == 2
    assert MigrationRun.objects.values("applied_before", "applied_after").distinct().order_by().count() == 1


def test_work__plan_that_changed_is_not_carried_out(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    run = carry_out(ask(tenant, expected_digest="0" * 64))
    assert (run.state, run.error_code, steps(run)) == ("failed", exceptions.PlanChanged.code, [])
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == set()


def test_work__conflict_fails_the_run_and_not_the_worker(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_conflict")
    assert migrate(make_tenant()).error_code == exceptions.ConflictingMigrations.code


def test_work__missing_dependency_fails_the_run_and_not_the_worker(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_missing_dependency")
    run = migrate(make_tenant())
    assert (run.state, run.error_code) == ("failed", exceptions.UnloadableMigrations.code)
    assert "0099_missing" in run.message


@pytest.mark.parametrize("state", ["running", "succeeded", "failed", "partial", "canceled", "skipped"])
def test_work__of_a_run_that_is_not_to_be_done_does_nothing(make_tenant: MakeTenant, state: str) -> None:
    tenant = make_tenant()
    run = ask(tenant)
    MigrationRun.objects.filter(pk=run.pk).update(state=state, attempt=7)
    told: list[Event] = []
    carry_out(run, emit=told.append)
    assert (run.state, run.attempt, told) == (state, 7, [])
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == set()


def test_claim__by_many_workers_goes_to_one(make_tenant: MakeTenant) -> None:
    run = ask(make_tenant())
    claimed: list[MigrationRun | None] = []
    together = threading.Barrier(4)

    def claim() -> None:
        together.wait()
        claimed.append(records.claim(run.pk, lease=30))
        connections.close_all()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [won.attempt for won in claimed if won is not None] == [1]


def recorder_of_an_old_attempt(tenant: Tenant) -> tuple[MigrationRun, Recorder, list[Event]]:
    """A run in the hands of attempt 2, whose step 1 is running, and the recorder of attempt 1."""
    told: list[Event] = []
    run = ask(tenant)
    old = records.claim(run.pk, lease=30)
    assert old is not None
    recorder = Recorder(old, emit=told.append, should_stop=never)
    recorder.planned(make_plan(source_for(tenant.isolation), frozenset(), Target()))
    run.steps.filter(position=1).update(state="running")
    take_over(run)
    told.clear()
    return run, recorder, told


def written(run: MigrationRun) -> tuple[Any, ...]:
    return (
        MigrationRun.objects.filter(pk=run.pk).values().get(),
        list(RunStep.objects.filter(run=run).values()),
    )


def test_fencing__an_old_attempt_can_write_nothing(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    run, recorder, told = recorder_of_an_old_attempt(tenant)
    before = written(run)
    plan = make_plan(source_for(tenant.isolation), frozenset({("users", "0001_initial")}), Target())
    first = make_plan(source_for(tenant.isolation), frozenset(), Target()).steps[0]
    for write in (
        lambda: recorder.planned(plan),
        lambda: recorder.step_started(first),
        lambda: recorder.step_finished(StepResult(step=first, faked=False, seconds=1.0)),
    ):
        with pytest.raises(AttemptLost):
            write()
    failure = Failure(code="migration_failed", error_class="ValueError", message="old", step=str(first))
    for end in End:
        recorder.ended(Outcome(end=end, before=plan.applied, after=plan.applied, failure=failure))
    recorder.finish("fail", failure)
    assert written(run) == before
    assert [event for event in told if isinstance(event, RunEnded)] == []


def test_fencing__a_worker_that_was_taken_over_stops_at_the_next_step(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    run = ask(tenant, "users")

    def emit(event: Event) -> None:
        if isinstance(event, StepFinished) and "0002" in event.file:
            take_over(run)

    carry_out(run, emit=emit)
    assert (run.state, run.attempt) == ("running", 2)
    rows = catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)
    assert rows == [("users", "0001_initial"), ("users", "0002_email_unique")]


def test_transient__waits_with_its_cause_and_tries_again(make_tenant: MakeTenant, impatient: Any) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    seen: list[tuple[str, str]] = []
    run = ask(tenant, "users")
    with locked_users(tenant) as other:

        def emit(event: Event) -> None:
            if isinstance(event, RunWaiting):
                seen.append(MigrationRun.objects.values_list("state", "waiting_cause").get(pk=run.pk))
                other.close()

        carry_out(run, emit=emit)
    assert [state for state, _ in seen] == ["waiting"]
    assert "lock timeout" in seen[0][1]
    assert (run.state, run.attempt, run.waiting_cause, run.error_code) == ("succeeded", 2, "", "")


def test_transient__again_and_again_fails_with_the_last_attempt(make_tenant: MakeTenant, impatient: Any) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    with locked_users(tenant):
        run = migrate(tenant, "users")
    assert (run.state, run.attempt, run.sqlstate) == ("failed", 3, "55P03")
    assert run.failed_step == "users.0002_email_unique"


def test_transient__what_an_earlier_attempt_did_stays_in_the_record(make_tenant: MakeTenant, impatient: Any) -> None:
    tenant = make_tenant()
    run = ask(tenant, "users")
    plan = make_plan(source_for(tenant.isolation), frozenset(), Target(app_label="users"))
    others: list[psycopg2.extensions.connection] = []

    def emit(event: Event) -> None:
        if isinstance(event, StepFinished) and "0001" in event.file:
            other = psycopg2.connect(**catalog.tenant_dsn(tenant))
            table = sql.Identifier(tenant.schema_name, "users_user")
            other.cursor().execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
            others.append(other)
        if isinstance(event, RunWaiting):
            others.pop().close()

    carry_out(run, emit=emit)
    assert (run.state, run.attempt) == ("succeeded", 2)
    assert steps(run) == [(str(step), "done") for step in plan.steps]
    assert run.applied_before is not None
    assert run.applied_before.keys == frozenset()
    assert run.plan_digest == plan.digest


def test_pinned_plan__is_carried_on_after_a_transient_error(make_tenant: MakeTenant, impatient: Any) -> None:
    tenant = make_tenant()
    plan = make_plan(source_for(tenant.isolation), frozenset(), Target(app_label="users"))
    run = ask(tenant, "users", expected_digest=plan.digest)
    others: list[psycopg2.extensions.connection] = []

    def emit(event: Event) -> None:
        if isinstance(event, StepFinished) and "0001" in event.file:
            other = psycopg2.connect(**catalog.tenant_dsn(tenant))
            table = sql.Identifier(tenant.schema_name, "users_user")
            other.cursor().execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
            others.append(other)
        if isinstance(event, RunWaiting):
            others.pop().close()

    carry_out(run, emit=emit)
    assert (run.state, run.error_code) == ("succeeded", "")


def test_permanent__counts_at_once(broken: Choose, make_tenant: MakeTenant, impatient: Any) -> None:
    broken(orders="orders_failing_data")
    told: list[Event] = []
    run = carry_out(ask(make_tenant("globex")), emit=told.append)
    assert (run.state, run.attempt) == ("failed", 1)
    assert not [event for event in told if isinstance(event, RunWaiting)]


def test_locked__waits_with_the_holder_named_and_never_fails(make_tenant: MakeTenant, impatient: Any) -> None:
    tenant = make_tenant()
    causes: list[str] = []
    run = ask(tenant, "users")
    key = lock_key(impatient.SHOP, tenant.schema_name)
    with catalog.cursor({**catalog.tenant_dsn(tenant), "application_name": "somebody else"}) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [key])

        def emit(event: Event) -> None:
            if isinstance(event, RunWaiting):
                causes.append(event.cause)

        carry_out(run, emit=emit)
    assert len(causes) == 2
    assert "somebody else" in causes[0]
    assert (run.state, run.error_code) == ("canceled", exceptions.TenantLocked.code)
    assert "somebody else" in run.message


def test_waiting__run_that_is_canceled_is_not_taken_up_again(make_tenant: MakeTenant, impatient: Any) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    run = ask(tenant, "users")
    with locked_users(tenant) as other:

        def emit(event: Event) -> None:
            if isinstance(event, RunWaiting):
                MigrationRun.objects.filter(pk=run.pk).transition("cancel")
                other.close()

        carry_out(run, emit=emit)
    assert (run.state, run.attempt) == ("canceled", 1)
    assert len(catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)) == 1


def test_waiting__stops_when_asked(make_tenant: MakeTenant, impatient: Any) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    stop = threading.Event()

    def emit(event: Event) -> None:
        if isinstance(event, RunWaiting):
            stop.set()

    with locked_users(tenant):
        run = carry_out(ask(tenant, "users"), emit=emit, should_stop=stop.is_set)
    assert (run.state, run.attempt) == ("canceled", 1)


def test_stop__between_two_steps_is_recorded(make_tenant: MakeTenant) -> None:
    done: list[Event] = []

    def emit(event: Event) -> None:
        if isinstance(event, StepFinished):
            done.append(event)

    run = carry_out(ask(make_tenant(), "users"), emit=emit, should_stop=lambda: len(done) == 2)
    assert (run.state, run.error_code) == ("canceled", "canceled")
    assert [state for _, state in steps(run)] == ["done", "done", "pending", "pending", "pending"]
    assert run.applied_after is not None
    assert len(run.applied_after.keys) == 2


def test_heartbeat__renews_the_lease_while_a_statement_runs(make_tenant: MakeTenant, settings: Any) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    settings.TENANT_MIGRATIONS = {"lease": 5, "heartbeat": 0.05, "lock_timeout": 20, "attempts": 1}
    run = ask(tenant, "users")
    leases: set[Any] = set()
    waiting = threading.Event()

    plane = catalog.dsn(settings.DATABASES["default"])

    def watch(other: psycopg2.extensions.connection) -> None:
        waiting.wait(60)
        while len(leases) < 4:
            lease = "SELECT lease_expires_at FROM migrations_api_migrationrun WHERE id = %s"
            leases.update(catalog.query(plane, lease, [run.pk]))
        other.close()

    with locked_users(tenant) as other:
        watcher = threading.Thread(target=watch, args=(other,))
        watcher.start()
        carry_out(run, emit=lambda event: waiting.set() if isinstance(event, StepStarted) else None)
        watcher.join()
    assert run.state == "succeeded"
    assert None not in {lease for (lease,) in leases}


def test_unprovisioned__fails_a_run_of_its_own(make_tenant: MakeTenant) -> None:
    run = migrate(make_tenant(provision=False))
    assert (run.state, run.error_code) == ("failed", "unprovisioned")


def test_request__while_a_run_is_unfinished_is_refused_by_its_id(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    run = ask(tenant)
    with pytest.raises(exceptions.RunActive, match=f"'acme' has an unfinished run: {run.pk}"):
        ask(tenant)
    carry_out(run)
    assert ask(tenant).pk != run.pk


@pytest.mark.parametrize(
    "options",
    [
        {"options": {"prune": True}},
        {"app_label": "users", "name": "0001", "options": {"prune": True}},
        {"app_label": "users", "options": {"prune": True, "fake": True}},
        {"options": {"fake": True, "fake_initial": True}},
    ],
)
def test_request__options_that_do_not_go_together(make_tenant: MakeTenant, options: dict[str, Any]) -> None:
    with pytest.raises(exceptions.InvalidOptions):
        ask(make_tenant(), **options)
    assert not MigrationRun.objects.exists()


def test_commit__whose_reply_was_lost_is_a_done_step_in_the_record(make_tenant: MakeTenant) -> None:
    tenant = make_tenant(isolation=Isolation.SCHEMA)
    run = ask(tenant, "users")
    claimed = records.claim(run.pk, lease=30)
    assert claimed is not None
    recorder = Recorder(claimed, emit=lambda event: None, should_stop=never)
    plan = make_plan(source_for(tenant.isolation), frozenset(), Target(app_label="users"))
    recorder.planned(plan)
    recorder.step_started(plan.steps[0])
    result = StepResult(step=plan.steps[0], faked=False, seconds=0.0)
    failure = Failure(code="unreachable", error_class="OperationalError", message="lost", step=str(plan.steps[0]))
    after = frozenset({("users", "0001_initial")})
    recorder.ended(Outcome(end=End.FAILED, before=frozenset(), after=after, results=(result,), failure=failure))
    assert steps(run)[0] == ("users.0001_initial", "done")


def test_commit__whose_reply_was_lost_stays_in_the_record_of_the_next_attempt(
    make_tenant: MakeTenant, impatient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = make_tenant()
    run = ask(tenant, "users")
    real = DatabaseWrapper._commit
    cut: list[bool] = []

    def commit(self: DatabaseWrapper) -> None:
        real(self)
        if not cut and "users_user" in catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name):
            cut.append(True)
            self.connection.close()
            raise OperationalError from psycopg2.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(DatabaseWrapper, "_commit", commit)
    carry_out(run)
    assert (run.state, run.attempt) == ("succeeded", 2)
    done = [str(step) for step in make_plan(source_for(tenant.isolation), frozenset(), Target(app_label="users")).steps]
    assert steps(run) == [(step, "done") for step in done]


def cut_session_with_control_plane() -> None:
    """Ended while it is idle: the client has not heard of it."""
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    plane = catalog.dsn(configured.DATABASES["default"])
    assert catalog.query(plane, "SELECT pg_terminate_backend(%s, 10000)", [pid]) == [(True,)]


def test_claim__by_a_new_session_after_the_last_was_cut(make_tenant: MakeTenant) -> None:
    run = ask(make_tenant(), "users")
    cut_session_with_control_plane()
    claimed = records.claim(run.pk, lease=30)
    assert claimed is not None
    assert (claimed.state, claimed.attempt) == ("running", 1)


def test_work__bounds_transactions_of_the_session_that_replaces_one_that_was_cut(
    make_tenant: MakeTenant, settings: Any
) -> None:
    settings.TENANT_MIGRATIONS = {"lease": 31}
    runs = [ask(make_tenant(tenant_id), "users", "0001") for tenant_id in ("acme", "globex")]
    carry_out(runs[0])
    cut_session_with_control_plane()
    work(runs[1].pk, emit=lambda event: None, should_stop=never)
    with connection.cursor() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        assert cursor.fetchone() == ("31s",)
    runs[1].refresh_from_db()
    assert (runs[1].state, runs[1].attempt) == ("succeeded", 1)


def test_heartbeat__renews_the_lease_while_the_run_waits(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lease": 5, "heartbeat": 0.05, "lock_wait": 0, "attempts": 2, "backoff": 1}
    tenant = make_tenant()
    run = ask(tenant, "users")
    leases: list[Any] = []
    stop: list[bool] = []

    def should_stop() -> bool:
        if MigrationRun.objects.filter(pk=run.pk, state="waiting").exists():
            leases.append(MigrationRun.objects.values_list("lease_expires_at", flat=True).get(pk=run.pk))
        return bool(stop)

    with catalog.cursor(catalog.tenant_dsn(tenant)) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [lock_key(settings.SHOP, tenant.schema_name)])
        carry_out(run, should_stop=should_stop)
    assert len(set(leases)) > 1


@pytest.mark.parametrize("lose", [Proxy.refuse, Proxy.hush], ids=["refuses", "says nothing"])
def test_heartbeat__renews_the_lease_while_the_tenants_server_takes_no_request_to_cancel(
    make_tenant: MakeTenant, settings: Any, lose: Callable[[Proxy], None]
) -> None:
    settings.TENANT_MIGRATIONS = {"lease": 5, "heartbeat": 0.05}
    tenant = make_tenant()
    run = ask(tenant, "users")
    claimed = records.claim(run.pk, lease=5)
    assert claimed is not None
    MigrationRun.objects.filter(pk=run.pk).update(interrupt_requested=True)
    server = settings.TENANT_DATABASES["shop"]
    impatient = {**server, "OPTIONS": {**server["OPTIONS"], "connect_timeout": 2}}
    with proxy(impatient) as shop, closing(open_connection(shop.settings)) as session:
        session.ensure_connection()
        lose(shop)
        attempts = {run.pk: claimed.attempt}
        with (
            heartbeat(attempts, load_conf()) as pulse,
            pulse.working_on(run.pk),
            tenant_as_default(tenant, session),
        ):
            before = _lease(run)
            wait_until(lambda: _lease(run) > before)


def _lease(run: MigrationRun) -> Any:
    with control_plane():
        return MigrationRun.objects.get(pk=run.pk).lease_expires_at


def test_transient__lock_that_is_met_before_the_first_step_is_waited_for(
    make_tenant: MakeTenant, impatient: Any
) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    with closing(psycopg2.connect(**catalog.tenant_dsn(tenant))) as other:
        other.cursor().execute("LOCK TABLE public_acme.django_migrations IN ACCESS EXCLUSIVE MODE")

        def emit(event: Event) -> None:
            if isinstance(event, RunWaiting):
                other.close()

        run = carry_out(ask(tenant, "users"), emit=emit)
    assert (run.state, run.attempt) == ("succeeded", 2)
