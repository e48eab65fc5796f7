from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from migrations_api.executor.lock import lock_key
from migrations_api.models import MigrationRun, Rollout, RunStep, TenantObservation, records
from migrations_api.orchestrator import progress, settling
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.advance import advance
from migrations_api.orchestrator.heartbeat import heartbeat
from migrations_api.orchestrator.recorder import Recorder
from migrations_api.orchestrator.requests import Request, request_rollout, request_run
from migrations_api.orchestrator.rollout_verbs import cancel_rollout, pause
from migrations_api.orchestrator.sources import source_for
from migrations_api.orchestrator.verbs import cancel_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import Plan, Target, make_plan
from tenants.conf import load_conf
from tenants.models import Isolation, Tenant
from tests import catalog

MakeTenant = Callable[..., Tenant]


@pytest.fixture(autouse=True)
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PACE", 0.0)


def never() -> bool:
    return False


def migrate(tenant: Tenant, app_label: str, name: str) -> None:
    run = request_run(tenant, Request(target=Target(app_label=app_label, migration_name=name)))
    work(run.pk, emit=lambda event: None, should_stop=never)


def applied(tenant: Tenant) -> frozenset[tuple[str, str]]:
    try:
        return frozenset(catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name))
    except catalog.psycopg2.errors.UndefinedTable:
        return frozenset()


def abandon(tenant: Tenant, target: Target, *, in_step: bool) -> tuple[MigrationRun, Plan]:
    """A run whose worker died before its first step, or in it, and whose lease has run out."""
    run = request_run(tenant, Request(target=target))
    return run, lose_worker(run, target, in_step=in_step)


def lose_worker(run: MigrationRun, target: Target, *, in_step: bool) -> Plan:
    tenant = run.tenant
    claimed = records.claim(run.pk, lease=30)
    assert claimed is not None
    recorder = Recorder(claimed, emit=lambda event: None, should_stop=never)
    plan = make_plan(source_for(tenant.isolation), applied(tenant), target)
    recorder.planned(plan)
    if in_step:
        recorder.step_started(plan.steps[0])
    expire(run)
    return plan


def expire(run: MigrationRun) -> None:
    MigrationRun.objects.filter(pk=run.pk).update(lease_expires_at=Now() - timedelta(seconds=1))


def settle(run: MigrationRun) -> MigrationRun:
    settle_abandoned()
    run.refresh_from_db()
    return run


def first_step(run: MigrationRun) -> RunStep:
    return run.steps.order_by("position")[0]


USERS = Target(app_label="users")


def test_settle__died_before_the_first_step(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    run, _ = abandon(tenant, USERS, in_step=False)
    settle(run)
    assert (run.state, run.error_code, run.failed_step) == ("failed", "worker_lost", "")
    assert "between two steps" in run.message
    assert run.applied_after is not None
    assert run.applied_after.keys == {("users", "0001_initial")}
    assert (run.attempt, run.lease_expires_at) == (2, None)
    assert run.finished_at is not None


def test_settle__died_in_an_atomic_step(make_tenant: MakeTenant) -> None:
    run, _ = abandon(make_tenant(), USERS, in_step=True)
    settle(run)
    assert (run.state, run.failed_step, first_step(run).state) == ("failed", "users.0001_initial", "failed")
    assert run.applied_after is not None
    assert run.applied_after.keys == frozenset()


def test_settle__died_in_a_non_atomic_step(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "orders", "0003")
    run, _ = abandon(tenant, Target(app_label="orders"), in_step=True)
    build_index(run)
    settle(run)
    assert (run.state, run.failed_step) == ("partial", "orders.0004_status_index")
    assert "may have stopped half-way" in run.message


def test_settle__died_in_a_non_atomic_step_that_has_left_nothing(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "orders", "0003")
    run, _ = abandon(tenant, Target(app_label="orders"), in_step=True)
    settle(run)
    assert (run.state, run.error_code, run.failed_step) == ("failed", "worker_lost", "orders.0004_status_index")


def build_index(run: MigrationRun) -> None:
    """Do what the one operation of orders.0004_status_index does, and say so in the journal."""
    table = f"{run.tenant.schema_name}.orders_order"
    create = f"CREATE INDEX orders_status_placed_idx ON {table} (status, placed_at)"
    catalog.query(catalog.tenant_dsn(run.tenant), create)
    run.steps.filter(state="running").update(operation=0, statements=1)


@pytest.mark.parametrize(("app_label", "name", "before"), [("users", "0001", None), ("orders", "0004", "0003")])
def test_settle__died_after_the_commit_and_before_its_record(
    make_tenant: MakeTenant, app_label: str, name: str, before: str | None
) -> None:
    tenant = make_tenant()
    if before:
        migrate(tenant, app_label, before)
    run, plan = abandon(tenant, Target(app_label=app_label, migration_name=name), in_step=True)
    MigrationRun.objects.filter(pk=run.pk).update(state="canceled")
    migrate(tenant, app_label, name)
    MigrationRun.objects.filter(pk=run.pk).update(state="running")
    settle(run)
    assert (run.state, run.failed_step, first_step(run).state) == ("failed", "", "done")
    assert run.applied_after is not None
    assert (plan.steps[0].app_label, plan.steps[0].name) in run.applied_after.keys


def test_settle__died_while_it_undid_a_step(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0002")
    run, _ = abandon(tenant, Target(app_label="users", migration_name="0001"), in_step=True)
    settle(run)
    assert (run.state, run.failed_step, first_step(run).state) == ("failed", "users.0002_email_unique", "failed")


def test_settle__tenant_that_cannot_be_reached_stays_and_says_so(make_tenant: MakeTenant, settings: Any) -> None:
    tenant = make_tenant()
    run, _ = abandon(tenant, USERS, in_step=True)
    reachable = settings.TENANT_DATABASES
    down = {**reachable["shop"], "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    settings.TENANT_DATABASES = {**reachable, "shop": down}
    settle(run)
    assert (run.state, run.attempt, run.finished_at) == ("running", 1, None)
    assert run.waiting_cause == "The database server refused the connection."
    settings.TENANT_DATABASES = reachable
    assert settle(run).state == "failed"


def test_settle__schema_that_is_gone(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    run, _ = abandon(tenant, USERS, in_step=True)
    catalog.query(catalog.tenant_dsn(tenant), f'DROP SCHEMA "{tenant.schema_name}" CASCADE')
    assert settle(run).state == "failed"
    assert run.applied_after is not None
    assert run.applied_after.keys == frozenset()


def test_settle__lock_held_by_a_living_session_is_left_alone(make_tenant: MakeTenant, settings: Any) -> None:
    tenant = make_tenant()
    run, _ = abandon(tenant, USERS, in_step=True)
    with catalog.cursor(catalog.tenant_dsn(tenant)) as worker:
        worker.execute("SELECT pg_advisory_lock(%s)", [lock_key(settings.SHOP, tenant.schema_name)])
        settle(run)
        assert (run.state, run.attempt, first_step(run).state) == ("running", 1, "running")
    assert settle(run).state == "failed"


def test_settle__lease_that_has_not_run_out_is_left_alone(make_tenant: MakeTenant) -> None:
    run, _ = abandon(make_tenant(), USERS, in_step=True)
    MigrationRun.objects.filter(pk=run.pk).update(lease_expires_at=Now() + timedelta(seconds=60))
    assert settle(run).state == "running"


def test_settle__only_the_tenants_asked_for(make_tenant: MakeTenant) -> None:
    runs = [abandon(make_tenant(tenant_id), USERS, in_step=True)[0] for tenant_id in ("acme", "globex")]
    # The second request settled nothing of the first tenant's.
    assert MigrationRun.objects.filter(state="running").count() == 2
    settle_abandoned(["globex"])
    assert [MigrationRun.objects.get(pk=run.pk).state for run in runs] == ["running", "failed"]


@pytest.mark.parametrize("state", ["pending", "waiting"])
def test_settle__never_started_is_canceled(make_tenant: MakeTenant, state: str) -> None:
    run = request_run(make_tenant(), Request())
    MigrationRun.objects.filter(pk=run.pk).update(state=state)
    expire(run)
    settle(run)
    assert (run.state, run.error_code) == ("canceled", "abandoned")


def test_settle__what_the_api_asked_for_waits_however_long(make_tenant: MakeTenant) -> None:
    run = request_run(make_tenant(), Request(via="api"))
    assert run.lease_expires_at is None
    assert settle(run).state == "pending"


def test_settle__a_worker_that_was_only_late_can_write_nothing(make_tenant: MakeTenant) -> None:
    run, plan = abandon(make_tenant(), USERS, in_step=True)
    late = MigrationRun.objects.select_related("tenant").get(pk=run.pk)
    recorder = Recorder(late, emit=lambda event: None, should_stop=never)
    settle(run)
    recorder.finish("succeed")
    run.refresh_from_db()
    assert run.state == "failed"
    assert plan.steps


def test_settle__a_tenant_can_be_migrated_again(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    abandon(tenant, USERS, in_step=True)
    # The request settles by itself what stands in its way.
    run = request_run(tenant, Request(target=USERS))
    work(run.pk, emit=lambda event: None, should_stop=never)
    run.refresh_from_db()
    assert run.state == "succeeded"


def abandoned_rollout(make_tenant: MakeTenant) -> Rollout:
    """A rollout whose driver died when it had claimed the first of its two runs."""
    for tenant_id in ("acme", "globex"):
        make_tenant(tenant_id)
    rollout = request_rollout(Tenant.objects.all(), Request(target=USERS))
    (first,) = advance(rollout, limit=1, lease=30)
    records.claim(first, lease=30)
    Rollout.objects.filter(pk=rollout.pk).update(lease_expires_at=Now() - timedelta(seconds=1))
    return rollout


def states(rollout: Rollout) -> list[str]:
    return list(rollout.runs.order_by("tenant_id").values_list("state", flat=True))


def test_rollout__whose_driver_died_ends(make_tenant: MakeTenant) -> None:
    rollout = abandoned_rollout(make_tenant)
    rollout.runs.filter(state="running").update(lease_expires_at=Now() - timedelta(seconds=1))
    settle_abandoned()
    rollout.refresh_from_db()
    # Neither had been begun.
    assert (rollout.state, states(rollout)) == ("failed", ["canceled", "canceled"])
    assert rollout.finished_at is not None
    assert rollout.lease_expires_at is None


def test_rollout__whose_driver_died_ends_with_its_last_worker(make_tenant: MakeTenant) -> None:
    rollout = abandoned_rollout(make_tenant)
    settle_abandoned()
    rollout.refresh_from_db()
    assert (rollout.state, states(rollout)) == ("running", ["running", "canceled"])
    rollout.runs.filter(state="running").transition("succeed")
    settle_abandoned()
    rollout.refresh_from_db()
    assert rollout.state == "failed"


def test_rollout__driver_that_is_busy_with_one_tenant_keeps_its_lease(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lease": 5, "heartbeat": 0.05}
    rollout = abandoned_rollout(make_tenant)
    run = rollout.runs.get(state="running")
    with heartbeat({run.pk: run.attempt}, load_conf()):
        while not Rollout.objects.filter(pk=rollout.pk, lease_expires_at__gt=Now()).exists():
            pass
    settle_abandoned()
    assert states(rollout) == ["running", "pending"]


@pytest.mark.parametrize("isolation", [Isolation.DATABASE, Isolation.SHARED])
def test_settle__every_kind_of_tenant(make_tenant: MakeTenant, isolation: str) -> None:
    run, _ = abandon(make_tenant(isolation=isolation), Target(), in_step=True)
    assert (settle(run).state, run.error_code) == ("failed", "worker_lost")


def test_settle__tenant_that_cannot_be_read_holds_no_other_up(make_tenant: MakeTenant) -> None:
    torn, other = make_tenant("acme"), make_tenant("globex")
    migrate(torn, "users", "0001")
    runs = [abandon(tenant, USERS, in_step=False)[0] for tenant in (torn, other)]
    catalog.query(catalog.tenant_dsn(torn), "ALTER TABLE public_acme.django_migrations RENAME COLUMN name TO was")
    assert [settle(run).state for run in runs] == ["running", "failed"]
    assert "is not Django's table" in runs[0].waiting_cause


def test_settle__waits_while_the_migrations_cannot_be_loaded(make_tenant: MakeTenant, broken: Any) -> None:
    run, _ = abandon(make_tenant(), USERS, in_step=True)
    broken(orders="does_not_exist")
    assert settle(run).state == "running"


def of_the_api(tenant: Tenant) -> MigrationRun:
    return request_run(tenant, Request(target=USERS, via="api"))


def of_a_rollout(tenant: Tenant) -> MigrationRun:
    request = Request(target=USERS, via="api")
    return start(request_rollout([tenant], request))


def of_a_living_command(tenant: Tenant) -> MigrationRun:
    return start(request_rollout([tenant], Request(target=USERS)))


def of_a_dead_command(tenant: Tenant) -> MigrationRun:
    run = of_a_living_command(tenant)
    Rollout.objects.filter(runs=run).update(lease_expires_at=Now() - timedelta(seconds=1))
    return run


def of_a_command_for_one(tenant: Tenant) -> MigrationRun:
    return request_run(tenant, Request(target=USERS))


def start(rollout: Rollout) -> MigrationRun:
    advance(rollout, limit=1, lease=30)
    return rollout.runs.get()


Make = Callable[[Tenant], MigrationRun]
CARRIED_ON = [of_the_api, of_a_rollout, of_a_living_command]
NOBODYS = [of_a_dead_command, of_a_command_for_one]


@pytest.mark.parametrize("in_step", [False, True], ids=["before-a-step", "in-a-step"])
@pytest.mark.parametrize("make", CARRIED_ON)
def test_requeue__a_run_that_somebody_carries_on_with_is_pending_again(
    make_tenant: MakeTenant, make: Make, in_step: bool
) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    run = make(tenant)
    lose_worker(run, USERS, in_step=in_step)
    settle(run)
    assert (run.state, run.attempt, run.lease_expires_at, run.finished_at) == ("pending", 1, None, None)
    assert (run.error_code, run.message, run.waiting_cause) == ("", "", "")
    late = MigrationRun.objects.select_related("tenant").get(pk=run.pk)
    work(run.pk, emit=lambda event: None, should_stop=never)
    run.refresh_from_db()
    assert (run.state, run.attempt) == ("succeeded", 2)
    assert set(run.steps.values_list("state", flat=True)) == {"done"}
    # The worker that was lost, should it wake up, is too late.
    Recorder(late, emit=lambda event: None, should_stop=never).finish("fail")
    run.refresh_from_db()
    assert run.state == "succeeded"


@pytest.mark.parametrize("make", NOBODYS)
def test_requeue__where_nobody_is_left_the_run_has_failed(make_tenant: MakeTenant, make: Make) -> None:
    run = make(make_tenant())
    lose_worker(run, USERS, in_step=True)
    settle(run)
    assert (run.state, run.error_code, run.failed_step) == ("failed", "worker_lost", "users.0001_initial")


@pytest.mark.parametrize("make", CARRIED_ON)
def test_requeue__not_after_the_last_attempt(make_tenant: MakeTenant, settings: Any, make: Make) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "attempts": 2}
    run = make(make_tenant())
    for expected in ("pending", "failed"):
        lose_worker(run, USERS, in_step=True)
        assert settle(run).state == expected
    assert run.error_code == "worker_lost"


@pytest.mark.parametrize("make", [*CARRIED_ON, *NOBODYS])
def test_requeue__not_what_was_to_be_canceled(make_tenant: MakeTenant, make: Make) -> None:
    run = make(make_tenant())
    lose_worker(run, USERS, in_step=True)
    cancel_run(run)
    assert settle(run).state == "canceled"
    assert run.finished_at is not None


@pytest.mark.parametrize("make", CARRIED_ON)
def test_requeue__not_what_stands_between_two_migrations(make_tenant: MakeTenant, make: Make) -> None:
    tenant = make_tenant()
    migrate(tenant, "orders", "0003")
    run = make(tenant)
    MigrationRun.objects.filter(pk=run.pk).update(app_label="orders")
    lose_worker(run, Target(app_label="orders"), in_step=True)
    build_index(run)
    settle(run)
    assert (run.state, run.failed_step) == ("partial", "orders.0004_status_index")
    # What is to be canceled is no less half done.
    MigrationRun.objects.filter(pk=run.pk).update(state="running", attempt=1, cancel_requested=True)
    run.steps.filter(position=1).update(state="running")
    expire(run)
    assert settle(run).state == "partial"


@pytest.mark.parametrize(
    ("make", "cancel_requested", "state"),
    [
        *[(make, False, "pending") for make in CARRIED_ON],
        *[(make, False, "canceled") for make in NOBODYS],
        *[(make, True, "canceled") for make in [*CARRIED_ON, *NOBODYS]],
    ],
)
def test_requeue__of_a_worker_that_was_lost_while_it_waited(
    make_tenant: MakeTenant, make: Make, cancel_requested: bool, state: str
) -> None:
    run = make(make_tenant())
    records.claim(run.pk, lease=30)
    MigrationRun.objects.filter(pk=run.pk).transition("wait", cancel_requested=cancel_requested, waiting_cause="locked")
    assert settle(run).state == "waiting"
    expire(run)
    assert settle(run).state == state
    assert run.lease_expires_at is None


def test_requeue__stores_where_the_tenant_stands(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    run = of_the_api(tenant)
    plan = lose_worker(run, USERS, in_step=True)
    MigrationRun.objects.filter(pk=run.pk).update(state="canceled")
    migrate(tenant, "users", "0001")
    TenantObservation.objects.all().delete()
    MigrationRun.objects.filter(pk=run.pk).update(state="running")
    assert (settle(run).state, first_step(run).state) == ("pending", "done")
    seen = TenantObservation.objects.get(pk=tenant.pk)
    assert seen.applied is not None
    assert seen.applied.keys == {("users", "0001_initial")}
    work(run.pk, emit=lambda event: None, should_stop=never)
    assert [(str(step), step.state) for step in run.steps.all()] == [(str(step), "done") for step in plan.steps]


def test_requeue__in_a_rollout_that_is_paused_meanwhile(make_tenant: MakeTenant) -> None:
    run = of_a_rollout(make_tenant())
    lose_worker(run, USERS, in_step=True)
    rollout = Rollout.objects.get()
    pause(rollout, reason="lunch")
    assert settle(run).state == "pending"
    advance(rollout, limit=1, lease=30)
    rollout.refresh_from_db()
    assert rollout.state == "paused"
    assert records.claim(run.pk, lease=30) is None


def test_requeue__not_in_a_rollout_that_is_canceled_meanwhile(make_tenant: MakeTenant) -> None:
    run = of_a_rollout(make_tenant())
    lose_worker(run, USERS, in_step=True)
    cancel_rollout(Rollout.objects.get())
    assert settle(run).state == "canceled"
    advance(Rollout.objects.get(), limit=1, lease=30)
    assert Rollout.objects.get().state == "canceled"


def test_transient__a_step_that_is_not_atomic_is_not_tried_again_by_itself(
    make_tenant: MakeTenant, settings: Any
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "lock_timeout": 0.1, "attempts": 3}
    tenant = make_tenant()
    migrate(tenant, "orders", "0003")
    run = request_run(tenant, Request(target=Target(app_label="orders", migration_name="0004"), via="api"))
    with closing(catalog.psycopg2.connect(**catalog.tenant_dsn(tenant))) as other:
        other.cursor().execute("LOCK TABLE public_acme.orders_order IN ACCESS EXCLUSIVE MODE")
        work(run.pk, emit=lambda event: None, should_stop=never)
    run.refresh_from_db()
    assert (run.attempt, run.sqlstate, run.failed_step) == (1, "55P03", "orders.0004_status_index")
    assert run.state in {"failed", "partial"}


def test_give_up__ends_a_run_whose_tenant_nobody_can_read(make_tenant: MakeTenant, settings: Any) -> None:
    tenant = make_tenant()
    run, _ = abandon(tenant, USERS, in_step=True)
    settings.TENANT_DATABASES = {"shop": {**settings.TENANT_DATABASES["shop"], "NAME": "nowhere"}}
    MigrationRun.objects.filter(pk=run.pk).update(waiting_cause="It cannot be read.")
    cancel_run(run)
    assert settled(run) == ("running", "")
    cancel_run(run, interrupt=True)
    assert settled(run) == ("partial", "outcome_unknown")


def settled(run: MigrationRun) -> tuple[str, str]:
    run.refresh_from_db()
    return run.state, run.error_code


def test_settle__that_comes_too_late_leaves_the_steps_to_whoever_has_the_run(
    make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read the tenant; before it writes, another settles the run, and a worker begins it anew."""
    tenant = make_tenant()
    run, plan = abandon(tenant, Target(app_label="users"), in_step=True)
    read = settling._read_under_lock

    def then_others(late: MigrationRun, source: Any) -> Any:
        found = read(late, source)
        monkeypatch.setattr(settling, "_read_under_lock", read)
        settle_abandoned()
        assert records.claim(run.pk, lease=30) is not None
        again = Recorder(MigrationRun.objects.get(pk=run.pk), emit=lambda event: None, should_stop=never)
        again.planned(plan)
        again.step_started(plan.steps[0])
        return found

    MigrationRun.objects.filter(pk=run.pk).update(requested_via="api")
    monkeypatch.setattr(settling, "_read_under_lock", then_others)
    settle_abandoned()

    run.refresh_from_db()
    assert (run.state, run.attempt) == ("running", 2)
    assert [step.state for step in run.steps.order_by("position")] == ["running"] + ["pending"] * (len(plan.steps) - 1)


def test_settle__takes_two_questions_where_no_lease_has_run_out(
    make_tenant: MakeTenant, django_assert_num_queries: Any
) -> None:
    request_rollout([make_tenant("acme"), make_tenant("globex")], Request())
    with django_assert_num_queries(2):
        settle_abandoned()
    assert set(MigrationRun.objects.values_list("state", flat=True)) == {"pending"}
