"""The service carries out what the schema builder has written, and repairs it."""

from collections.abc import Callable
from typing import Any

import pytest

from migrations_api.orchestrator.fleet import plan_for
from migrations_api.orchestrator.recorder import Recorder
from migrations_api.orchestrator.repairs import diagnosis_of
from migrations_api.plan import Step, Target
from tenants.models import Tenant
from tests import halves, oracle, soak

MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]
BEFORE, STEP = "0002_ledger_entry", "0003_billing"


@pytest.fixture
def tenant(broken: Choose, make_tenant: MakeTenant) -> Tenant:
    broken(orders="orders_online")
    made = make_tenant()
    halves.migrate(made, BEFORE)
    return made


def boundaries() -> oracle.Boundaries:
    return oracle.boundaries(("orders", STEP), orders="orders_online")


def is_at(tenant: Tenant, name: str) -> bool:
    """Whether it stands where stock Django stands with that, and not with more."""
    found = oracle.truth(tenant)
    newest = max(name for app, name in found.applied if app == "orders")
    return newest == name and boundaries()[found.applied] == found.catalog and not found.invalid


def test_run__brings_a_tenant_where_stock_django_brings_it(tenant: Tenant) -> None:
    halves.migrate(tenant, STEP)
    assert is_at(tenant, STEP)
    halves.migrate(tenant, BEFORE)
    assert is_at(tenant, BEFORE)


def test_run__of_an_atomic_migration_says_what_to_do(tenant: Tenant, broken: Choose) -> None:
    broken(orders="orders_online_atomic")
    run = halves.carry_out(halves.ask(tenant, "0003_forgets"))
    assert (run.state, run.failed_step) == ("failed", "orders.0003_forgets")
    assert "set atomic = False on the migration, or ask for the plain form" in run.message
    assert is_at(tenant, BEFORE)


def told_while(act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the journal is told meanwhile: each operation, and each of its statements."""
    places: list[tuple[int, int]] = []
    write = Recorder.journal

    def journal(recorder: Recorder, step: Step, *, operation: int, statements: int) -> None:
        places.append((operation, statements))
        write(recorder, step, operation=operation, statements=statements)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "journal", journal)
        act()
    return places


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_repair__after_the_worker_died_at_any_statement(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, *, backwards: bool
) -> None:
    start, end = (STEP, BEFORE) if backwards else (BEFORE, STEP)
    halves.migrate(tenant, start)
    places = told_while(lambda: halves.migrate(tenant, end), monkeypatch)
    assert len(places) > 15
    repaired = set()
    # A third of them, each of both ways in turn; in a soak, all.
    for number, place in enumerate(places[:: 1 if soak.IS_WHOLE else 3]):
        halves.migrate(tenant, start)
        run = halves.abandoned(halves.ask(tenant, end), at=place)
        if run.state == "failed":
            assert is_at(tenant, start)
            continue
        assert (run.state, run.error_code) == ("partial", "worker_lost")
        possible = {way.name for way in diagnosis_of(run).ways if way.possible}
        # In turn it goes on and goes back, where it is known how.
        way = next(each for each in (["redo", "undo"] if number % 2 else ["undo", "redo"]) if each in possible)
        done = halves.repair(run, way)
        assert (done.state, done.message) == ("succeeded", ""), place
        assert is_at(tenant, end if way == "redo" else start), (place, way)
        repaired.add(way)
    assert repaired == {"redo", "undo"}


def test_plan__has_no_risk_that_it_was_written_to_avoid(tenant: Tenant) -> None:
    plan = plan_for(tenant, Target())
    (step,) = [step for step in plan.steps if str(step) == f"orders.{STEP}"]
    assert [(risk.kind, risk.operation) for risk in step.risks] == [
        ("blocking", "Alter field status on Order without blocking")
    ]
