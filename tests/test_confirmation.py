"""What is up to date is settled by one look at many tenants, and only if it really is."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from psycopg2 import sql

from migrations_api.events import Event, RunEnded
from migrations_api.models import MigrationRun, Rollout
from migrations_api.models.runs import RECORDING
from migrations_api.orchestrator import confirmation, driver
from migrations_api.orchestrator.advance import advance
from migrations_api.orchestrator.coordinator import _UnreadWaves
from migrations_api.orchestrator.driver import drive
from migrations_api.orchestrator.requests import Request, request_rollout
from migrations_api.orchestrator.rollout_verbs import pause
from migrations_api.orchestrator.selection import Selector, select
from migrations_api.orchestrator.share import work_on
from migrations_api.plan import Target
from tenants.models import Tenant
from tests import catalog

MakeTenant = Callable[..., Tenant]


def roll_out(tenants: list[Tenant], target: Target | None = None, **options: Any) -> Rollout:
    return request_rollout(tenants, Request(target=target or Target(), **options))


def migrated(make_tenant: MakeTenant, *names: str, **values: Any) -> list[Tenant]:
    tenants = [make_tenant(name, **values) for name in names]
    carried_out(roll_out(tenants))
    return tenants


def carried_out(rollout: Rollout) -> list[Event]:
    told: list[Event] = []
    drive(rollout, executor="sequential", max_concurrency=1, emit=told.append, should_stop=lambda: False)
    return told


@pytest.fixture
def worked_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tenants that a worker was started for."""
    tenant_ids = []

    def work(run_ids: Sequence[int], **options: Any) -> None:
        tenant_ids.extend(MigrationRun.objects.get(pk=run_id).tenant_id for run_id in run_ids)
        work_on(run_ids, **options)

    monkeypatch.setattr(driver, "work", work)
    return tenant_ids


def test_confirmation__needs_no_worker_and_leaves_a_record(make_tenant: MakeTenant, worked_on: list[str]) -> None:
    tenants = migrated(make_tenant, "acme", "globex")
    assert worked_on == ["acme", "globex"]
    rollout = roll_out(tenants)
    told = carried_out(rollout)
    assert worked_on == ["acme", "globex"]
    rollout.refresh_from_db()
    assert rollout.state == "succeeded"
    for run in rollout.runs.all():
        assert (run.state, run.attempt, run.steps.count()) == ("succeeded", 1, 0)
        assert run.applied_after == run.tenant.observation.applied
        assert run.applied_before is not None
        assert run.plan_digest
        assert run.started_at is not None
        assert run.finished_at is not None
    assert [event.tenant_id for event in told if isinstance(event, RunEnded)] == ["acme", "globex"]


def test_confirmation__one_that_has_something_to_do_is_worked_on(make_tenant: MakeTenant, worked_on: list[str]) -> None:
    done, behind = migrated(make_tenant, "acme", "globex")
    carried_out(roll_out([behind], Target(app_label="orders", migration_name="0001")))
    worked_on.clear()
    carried_out(roll_out([done, behind]))
    assert worked_on == ["globex"]


def test_confirmation__reads_the_tenant_and_not_the_stored_picture(
    make_tenant: MakeTenant, worked_on: list[str]
) -> None:
    [tenant] = migrated(make_tenant, "acme")
    statement = sql.SQL("DELETE FROM {}.django_migrations WHERE app = 'orders'; SELECT 1")
    catalog.query(catalog.tenant_dsn(tenant), statement.format(sql.Identifier(tenant.schema_name)))
    worked_on.clear()
    rollout = roll_out([tenant])
    carried_out(rollout)
    assert worked_on == ["acme"]
    assert rollout.runs.get().state == "failed"


@pytest.mark.parametrize("state", ["failed", "canceled", "partial"])
def test_confirmation__not_after_a_run_that_has_not_succeeded(make_tenant: MakeTenant, state: str) -> None:
    """Its last step may be recorded and receivers of post_migrate not told."""
    tenants = migrated(make_tenant, "acme")
    rollout = roll_out(tenants)
    advance(rollout, limit=1, lease=30)
    MigrationRun.objects.filter(state="succeeded").update(state=state)
    assert confirmation.confirm_up_to_date(rollout, emit=lambda event: None) == 0


@pytest.mark.parametrize("values", [{"options": {name: True}} for name in RECORDING] + [{"action": "rollback"}])
def test_confirmation__not_after_a_run_that_has_told_nobody(make_tenant: MakeTenant, values: dict[str, Any]) -> None:
    tenants = migrated(make_tenant, "acme")
    rollout = roll_out(tenants)
    advance(rollout, limit=1, lease=30)
    last = MigrationRun.objects.filter(state="succeeded")
    last.update(options={"allow_backwards": False})
    before = confirmation._batches(rollout)
    assert [run.tenant_id for batch in before for run in batch] == ["acme"]
    last.update(**values)
    assert confirmation.confirm_up_to_date(rollout, emit=lambda event: None) == 0


def test_confirmation__not_of_a_tenant_that_only_somebody_else_has_migrated(make_tenant: MakeTenant) -> None:
    tenants = migrated(make_tenant, "acme")
    MigrationRun.objects.all().delete()
    rollout = roll_out(tenants)
    advance(rollout, limit=1, lease=30)
    assert confirmation.confirm_up_to_date(rollout, emit=lambda event: None) == 0


def test_confirmation__not_while_the_rollout_is_paused(make_tenant: MakeTenant) -> None:
    rollout = roll_out(migrated(make_tenant, "acme"))
    advance(rollout, limit=1, lease=30)
    pause(rollout, reason="")
    assert confirmation.confirm_up_to_date(rollout, emit=lambda event: None) == 0
    assert rollout.runs.get().state == "pending"


def test_confirmation__only_of_open_waves(make_tenant: MakeTenant) -> None:
    rollout = roll_out(migrated(make_tenant, "acme", "globex"))
    rollout.runs.filter(tenant="globex").update(wave=2)
    advance(rollout, limit=1, lease=30)
    assert confirmation.confirm_up_to_date(rollout, emit=lambda event: None) == 1
    assert rollout.runs.get(tenant="globex").state == "pending"


def test_confirmation__leaves_databases_to_the_workers(make_tenant: MakeTenant, worked_on: list[str]) -> None:
    tenants = migrated(make_tenant, "acme", isolation="database")
    carried_out(roll_out(tenants))
    assert worked_on == ["acme", "acme"]


def test_confirmation__one_that_a_worker_has_claimed_is_its_own(make_tenant: MakeTenant) -> None:
    rollout = roll_out(migrated(make_tenant, "acme"))
    advance(rollout, limit=1, lease=30)
    runs = list(confirmation._batches(rollout))
    rollout.runs.update(state="running", attempt=1)
    [(plan, after, idle)] = confirmation._idle(rollout, runs[0], {})
    assert confirmation._end(rollout, idle, plan, after, lambda event: None) == 0
    assert rollout.runs.get().state == "running"


def test_confirmation__takes_as_many_queries_for_many_tenants_as_for_few(
    make_tenant: MakeTenant, django_assert_num_queries: Any
) -> None:
    for names in (["acme"], [f"t{number}" for number in range(5)]):
        rollout = roll_out(migrated(make_tenant, *names))
        advance(rollout, limit=1, lease=30)
        with django_assert_num_queries(7):
            assert confirmation.confirm_up_to_date(rollout, emit=lambda event: None) == len(names)


def test_rollout__of_what_is_up_to_date_takes_few_queries_however_many_there_are(make_tenant: MakeTenant) -> None:
    taken = set()
    for names in (["acme"], [f"t{number}" for number in range(5)]):
        tenants = migrated(make_tenant, *names)
        with CaptureQueriesContext(connection) as captured:
            carried_out(roll_out(select(Selector(tenant_ids=tuple(tenant.pk for tenant in tenants)))))
        taken.add(len(captured))
    assert taken == {36}


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_confirmation__reaches_all_of_them_batch_by_batch(
    batch: int, make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch, worked_on: list[str]
) -> None:
    tenants = migrated(make_tenant, "acme", "globex", "initech")
    worked_on.clear()
    monkeypatch.setattr(confirmation, "BATCH", batch)
    rollout = roll_out(tenants)
    carried_out(rollout)
    assert worked_on == []
    assert set(rollout.runs.values_list("state", flat=True)) == {"succeeded"}


def test_coordinator__looks_at_each_wave_once(make_tenant: MakeTenant) -> None:
    tenants = migrated(make_tenant, "acme")
    rollout = roll_out(tenants, via="api")
    advance(rollout, limit=1, lease=30)
    waves = _UnreadWaves()
    assert waves.exist()
    waves.confirm()
    assert rollout.runs.get().state == "succeeded"
    assert not waves.exist()
