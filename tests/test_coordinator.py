import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings as configured
from django.utils import timezone

from migrations_api.exceptions import InvalidTransition, RunActive
from migrations_api.models import Coordinator, MigrationRun, RequestedVia, Rollout, TenantObservation
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.coordinator import ready_runs
from migrations_api.orchestrator.progress import PACE
from migrations_api.orchestrator.requests import Request, request_rollout, request_run
from migrations_api.orchestrator.verbs import cancel_run, retry_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target
from migrations_api.states import RunState
from tenants.models import Tenant
from tests import catalog
from tests.broken.orders_slow import GATE
from tests.processes import GIVE_UP, Process, output, processes, wait_until

MakeTenant = Callable[..., Tenant]
Start = Callable[..., Process]
SLOW = {"orders": "orders_slow"}


@pytest.fixture
def start(plane: None, tmp_path: Path) -> Iterator[Start]:
    with processes(tmp_path) as start:
        yield lambda **options: start("coordinate", **options)


def ask(tenant: Tenant, *target: str, **values: Any) -> MigrationRun:
    request = Request(target=Target(**dict(zip(("app_label", "migration_name"), target, strict=False))), via="api")
    return request_run(tenant, request, **values)


def state(run: MigrationRun | Rollout) -> str:
    run.refresh_from_db()
    return run.state


def steps(run: MigrationRun) -> list[str]:
    return [f"{step} {step.state}" for step in run.steps.all()]


def leaders() -> list[int]:
    """The processes that lead, by their rows."""
    names = Coordinator.objects.filter(leading=True).values_list("name", flat=True)
    return [int(name.rpartition(":")[2]) for name in names]


@contextmanager
def closed_gate() -> Iterator[None]:
    """While this lasts, orders.0003_gate of orders_slow does not come to its end in a schema tenant."""
    with catalog.cursor(catalog.dsn(configured.TENANT_DATABASES["shop"])) as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [GATE])
        yield


def is_at_gate(run: MigrationRun) -> bool:
    return run.steps.filter(name="0003_gate", state="running").exists()


def end(process: Process) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(GIVE_UP)


def test_coordinator__carries_out_what_the_api_asked_for(make_tenant: MakeTenant, start: Start) -> None:
    run = ask(make_tenant("acme"))
    coordinator = start()
    wait_until(lambda: state(run) == "succeeded")
    rollout = request_rollout([make_tenant("globex"), make_tenant("shop", "shared")], Request(via="api"))
    wait_until(lambda: state(rollout) == "succeeded")

    assert [run.state for run in rollout.runs.all()] == ["succeeded"] * 2
    assert end(coordinator) == 0
    assert not Coordinator.objects.exists()


def test_coordinator__a_failing_tenant_fails_its_rollout_and_no_other(make_tenant: MakeTenant, start: Start) -> None:
    rollout = request_rollout([make_tenant("acme"), make_tenant("globex")], Request(via="api"))
    start(broken={"orders": "orders_failing_data"})
    wait_until(lambda: state(rollout) == "failed")
    assert dict(rollout.runs.values_list("tenant_id", "state")) == {"acme": "succeeded", "globex": "failed"}


def test_coordinator__looks_at_tenants_and_settles_what_is_abandoned(make_tenant: MakeTenant, start: Start) -> None:
    tenant = make_tenant()
    run = ask(tenant)
    past = timezone.now() - timedelta(seconds=1)
    MigrationRun.objects.filter(pk=run.pk).update(state="running", attempt=1, lease_expires_at=past)
    start()
    # Nothing had been done, so that the run is carried on with.
    wait_until(lambda: state(run) == "succeeded")
    assert run.attempt == 2

    seen = TenantObservation.objects.get().observed_at
    wait_until(lambda: TenantObservation.objects.get().observed_at > seen)


def test_failover__a_killed_leader_is_followed_by_the_one_that_stands_by(make_tenant: MakeTenant, start: Start) -> None:
    tenant = make_tenant()
    pair = [start(), start()]
    wait_until(lambda: len(leaders()) == 1 and Coordinator.objects.count() == 2)
    [first] = leaders()

    os.kill(first, signal.SIGKILL)
    second = next(process for process in pair if process.pid != first)
    wait_until(lambda: second.pid in leaders())
    run = ask(tenant)
    wait_until(lambda: state(run) == "succeeded")


def test_failover__a_leader_whose_session_ends_leads_no_more(make_tenant: MakeTenant, start: Start) -> None:
    """Both may carry out what is asked for once one of them leads again; the one without the lock does not."""
    tenant = make_tenant()
    start()
    wait_until(leaders)
    plane = catalog.dsn(configured.DATABASES["default"])
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE '%% coordinator'"
    )
    assert catalog.query(plane, kill, []) == [(True,)]
    run = ask(tenant)
    wait_until(lambda: state(run) == "succeeded")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stop__the_next_one_carries_on_between_two_steps(
    make_tenant: MakeTenant, start: Start, how: signal.Signals
) -> None:
    """Nothing is done twice, nobody canceled anything, and what was done before is still in the record."""
    run = ask(make_tenant(), "orders")
    first = start(broken=SLOW)
    with closed_gate():
        wait_until(lambda: is_at_gate(run))
        first.send_signal(how)
        if how == signal.SIGTERM:
            wait_until(lambda: "finishing" in output(first))
        else:
            # Only then does its worker see that it is gone, which must not be after the last step.
            first.wait(GIVE_UP)
    assert first.wait(GIVE_UP) == (0 if how == signal.SIGTERM else -how)
    wait_until(lambda: state(run) == "pending")
    assert (run.cancel_requested, run.finished_at, run.error_code, run.lease_expires_at) == (False, None, "", None)
    assert steps(run)[-2:] == ["orders.0003_gate done", "orders.0004_note pending"]

    second = start(broken=SLOW)
    wait_until(lambda: state(run) == "succeeded")
    assert end(second) == 0
    assert [step.rpartition(" ")[2] for step in steps(run)] == ["done"] * len(steps(run))
    assert run.attempt == 2
    ledger = catalog.query(catalog.tenant_dsn(run.tenant), "SELECT count(*) FROM public_acme.ledger")
    assert ledger == [(1,)]


def test_stop__a_plan_that_was_agreed_to_is_still_the_one_that_is_carried_out(
    make_tenant: MakeTenant, broken: Callable[..., None]
) -> None:
    """New code has another plan for the rest than the one that was agreed to."""
    broken(orders="orders_slow")
    run = ask(make_tenant(), "orders")
    MigrationRun.objects.filter(pk=run.pk).update(expected_digest=plan_digest(run))
    answers = iter([False, False, True])
    work(run.pk, emit=lambda event: None, should_stop=lambda: next(answers), requeues=True)
    assert state(run) == "pending"
    assert [step.rpartition(" ")[2] for step in steps(run)][:3] == ["done", "done", "pending"]

    broken(orders="orders_failing_data")
    work(run.pk, emit=lambda event: None, should_stop=lambda: False, requeues=True)

    assert (state(run), run.error_code) == ("failed", "plan_changed")


def plan_digest(run: MigrationRun) -> str:
    from migrations_api.orchestrator.fleet import plan_for

    return plan_for(run.tenant, Target(app_label=run.app_label or None)).digest


def test_cancel__a_running_one_ends_between_two_steps(make_tenant: MakeTenant, start: Start) -> None:
    run = ask(make_tenant(), "orders")
    start(broken=SLOW)
    with closed_gate():
        wait_until(lambda: is_at_gate(run))
        cancel_run(run)
        assert state(run) == "running"
        # A worker asks no more often than that.
        time.sleep(PACE)
    wait_until(lambda: state(run) == "canceled")
    assert run.error_code == "canceled"
    assert steps(run)[-2:] == ["orders.0003_gate done", "orders.0004_note pending"]


def test_cancel__wins_over_a_coordinator_that_goes_down(make_tenant: MakeTenant) -> None:
    run = ask(make_tenant())
    MigrationRun.objects.filter(pk=run.pk).update(cancel_requested=True)
    work(run.pk, emit=lambda event: None, should_stop=lambda: True, requeues=True)
    assert state(run) == "canceled"


@pytest.mark.parametrize("before", RunState.values)
def test_cancel__by_state(make_tenant: MakeTenant, before: str) -> None:
    run = ask(make_tenant())
    MigrationRun.objects.filter(pk=run.pk).update(state=before)
    if before in {"pending", "waiting", "running"}:
        cancel_run(run)
        assert (state(run), run.cancel_requested) == ("running" if before == "running" else "canceled", True)
    else:
        with pytest.raises(InvalidTransition, match=f"^Run {run.pk} is {before} and can no longer be canceled.$"):
            cancel_run(run)
        assert (state(run), run.cancel_requested) == (before, False)


@pytest.mark.parametrize("before", RunState.values)
def test_retry__by_state(make_tenant: MakeTenant, before: str) -> None:
    run = ask(make_tenant(), "orders", "0002")
    MigrationRun.objects.filter(pk=run.pk).update(state=before, options={"fake": True}, requested_by="ann")
    run.refresh_from_db()
    if before in {"failed", "canceled", "skipped"}:
        again = retry_run(run, by="bob", via=RequestedVia.API)
        assert (again.retry_of_id, again.state, again.requested_by) == (run.pk, "pending", "bob")
        assert (again.app_label, again.migration_name, again.options) == ("orders", "0002", {"fake": True})
        with pytest.raises(RunActive):
            retry_run(run, by="bob")
    else:
        needs = "needs a repair first" if before == "partial" else f"is {before}"
        with pytest.raises(InvalidTransition, match=needs):
            retry_run(run, by="bob")
        assert MigrationRun.objects.count() == 1


def slots(room: int, held: frozenset[int] = frozenset(), *, free: int | None = None) -> Any:
    """What a dispatcher says of itself."""
    return SimpleNamespace(room=room, free=room if free is None else free, held=held)


def test_ready_runs__what_one_caller_waits_for_comes_first(make_tenant: MakeTenant) -> None:
    rollout = request_rollout([make_tenant("a1"), make_tenant("a2")], Request(via="api"))
    single, other = ask(make_tenant("z1")), ask(make_tenant("z2"))
    request_run(make_tenant("mine"), Request())
    request_rollout([make_tenant("ours")], Request())
    first, second = rollout.runs.order_by("tenant_id").values_list("pk", flat=True)

    assert ready_runs(slots(10)) == [single.pk, other.pk, first, second]
    assert ready_runs(slots(3, frozenset([single.pk]))) == [other.pk, first, second]
    assert ready_runs(slots(1)) == [single.pk]
    assert ready_runs(slots(0)) == []


def test_ready_runs__a_free_slot_goes_to_the_rollout_with_the_fewest_in_flight(make_tenant: MakeTenant) -> None:
    large = request_rollout([make_tenant("a1"), make_tenant("a2")], Request(via="api"))
    small = request_rollout([make_tenant("z1")], Request(via="api"))
    first = ready_runs(slots(1))
    assert first == [large.runs.get(tenant="a1").pk]
    assert ready_runs(slots(1, frozenset(first))) == [small.runs.get().pk]


def test_ready_runs__more_wait_than_are_begun_where_nothing_depends_on_how_a_run_ends(make_tenant: MakeTenant) -> None:
    tenants = [make_tenant(name) for name in ("acme", "globex", "initech")]
    rollout = request_rollout(tenants, Request(via="api"))
    runs = list(rollout.runs.order_by("pk").values_list("pk", flat=True))
    assert ready_runs(slots(1, free=10)) == runs
    Rollout.objects.filter(pk=rollout.pk).update(strategy={**rollout.strategy, "on_error": "pause"})
    assert ready_runs(slots(1, free=10)) == runs[:1]


def test_ready_runs__a_rollout_that_cannot_be_read_stops_no_other(make_tenant: MakeTenant) -> None:
    unreadable = request_rollout([make_tenant("a1")], Request(via="api"))
    other = request_rollout([make_tenant("z1")], Request(via="api"))
    Rollout.objects.filter(pk=unreadable.pk).update(strategy={"from_a_newer_version": 1})
    assert ready_runs(slots(2)) == [other.runs.get().pk]


def test_ready_runs__a_canceled_rollout_ends(make_tenant: MakeTenant) -> None:
    rollout = request_rollout([make_tenant()], Request(via="api"))
    Rollout.objects.update(state="canceling")
    rollout.runs.update(state="canceled")
    assert ready_runs(slots(10)) == []
    assert state(rollout) == "canceled"


@pytest.mark.parametrize(
    ("via", "before", "after"),
    [
        ("api", "waiting", "pending"),
        ("api", "pending", "pending"),
        ("command", "waiting", "canceled"),
        ("command", "pending", "canceled"),
    ],
)
def test_settle__what_the_api_asked_for_is_not_lost_with_its_worker(
    make_tenant: MakeTenant, via: str, before: str, after: str
) -> None:
    rollout = request_rollout([make_tenant()], Request(via=via))
    past = timezone.now() - timedelta(seconds=1)
    Rollout.objects.update(lease_expires_at=past)
    rollout.runs.update(state=before, lease_expires_at=past if before == "waiting" else None)
    settle_abandoned()
    assert rollout.runs.get().state == after
