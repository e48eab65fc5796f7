from collections.abc import Callable

import psycopg2
import pytest

from migrations_api.exceptions import InvalidOptions, InvalidTransition, RepairImpossible
from migrations_api.models import MigrationRun
from migrations_api.orchestrator import repairs
from migrations_api.orchestrator.fleet import standings
from migrations_api.orchestrator.recorder import Recorder
from migrations_api.orchestrator.repairs import diagnosis_of, request_repair
from migrations_api.orchestrator.requests import Request, request_rollout
from migrations_api.orchestrator.sources import source_for
from migrations_api.orchestrator.verbs import retry_run
from migrations_api.plan import Target
from tenants.models import Tenant
from tests import catalog, halves
from tests.halves import BEFORE, PLACES, STEP

MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]
DIRECTIONS = [False, True]


def names(backwards: object) -> str:
    return "backwards" if backwards else "forwards"


@pytest.fixture
def stepping(broken: Choose, make_tenant: MakeTenant) -> Callable[[bool], tuple[Tenant, MigrationRun]]:
    """A tenant before the step, or after it, and a run that is to carry it out, or to undo it."""
    broken(orders="orders_step")

    def make(backwards: bool) -> tuple[Tenant, MigrationRun]:
        tenant = make_tenant()
        halves.migrate(tenant, STEP[1] if backwards else BEFORE[1])
        return tenant, halves.ask(tenant, BEFORE[1] if backwards else STEP[1])

    return make


Stepping = Callable[[bool], tuple[Tenant, MigrationRun]]


def number_of(place: int, *, backwards: bool) -> int:
    return len(PLACES) - 1 - place if backwards else place


def status(tenant: Tenant) -> str:
    return str(standings([tenant])[0].status)


@pytest.mark.parametrize("carried_out", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("backwards", DIRECTIONS, ids=names)
@pytest.mark.parametrize("place", PLACES)
def test_repair__after_the_worker_died_in_any_operation(
    stepping: Stepping, place: int, backwards: bool, carried_out: bool
) -> None:
    """Before the first statement of the operation was sent, and after its last one was carried out."""
    # Each operation is repaired in both ways, the one after the one death and the other after the other.
    way = "redo" if (place + backwards + carried_out) % 2 else "undo"
    tenant, run = stepping(backwards)
    number = number_of(place, backwards=backwards)
    at = (number + 1, 0) if carried_out else (number, 1)
    halves.abandoned(run, at=at, instead=carried_out)
    if number == 0 and not carried_out and run.state == "failed":
        # The catalog says that the first operation has left nothing: there is nothing to repair.
        assert status(tenant) != "partial"
        return
    assert (run.state, run.error_code) == ("partial", "worker_lost")
    state, operation, statements = halves.journal_of(run)
    assert (state, operation, statements > 0) == ("failed", number, True)
    possible = halves.require_true(run)
    known = place in halves.TOLD_BY_THE_CATALOG
    # A column that was being dropped and is still there may have lost what pointed to it.
    risky = place in {1, 9} and not carried_out and backwards == (place == 1)
    last = number == len(PLACES) - 1 and carried_out and known
    assert possible == {
        "record": last,
        "redo": known and not last,
        "undo": known and not risky,
        "mark": True,
    }
    before = catalog.fingerprint(catalog.tenant_dsn(tenant))
    for refused in [each for each, is_possible in possible.items() if not is_possible]:
        impossible = halves.repair(run, refused)
        assert (impossible.state, impossible.error_code) == ("failed", "repair_impossible")
        assert catalog.fingerprint(catalog.tenant_dsn(tenant)) == before
        assert status(tenant) == "partial"
    if not possible[way]:
        return
    repaired = halves.repair(run, way)
    assert (repaired.state, repaired.message) == ("succeeded", "")
    applied = backwards == (way == "undo")
    halves.require_boundary(tenant, STEP if applied else BEFORE)
    assert status(tenant) == "pending"
    halves.migrate(tenant, "0003_after")


def test_repair__a_crash_between_the_last_operation_and_the_record(stepping: Stepping) -> None:
    tenant, run = stepping(False)
    halves.abandoned(run, at=(len(PLACES), 0))
    assert halves.require_true(run) == {"record": True, "redo": False, "undo": True, "mark": True}
    assert halves.repair(run, "record").state == "succeeded"
    halves.require_boundary(tenant, STEP)
    assert status(tenant) == "pending"


def test_repair__a_crash_between_the_last_undone_operation_and_the_record(stepping: Stepping) -> None:
    tenant, run = stepping(True)
    halves.abandoned(run, at=(len(PLACES), 0))
    assert halves.require_true(run) == {"record": True, "redo": False, "undo": True, "mark": True}
    assert halves.repair(run, "record").state == "succeeded"
    halves.require_boundary(tenant, BEFORE)


@pytest.mark.parametrize("then", ["redo", "undo"])
@pytest.mark.parametrize("way", ["redo", "undo"])
@pytest.mark.parametrize("backwards", DIRECTIONS, ids=names)
def test_repair__of_a_repair_that_was_killed(stepping: Stepping, backwards: bool, way: str, then: str) -> None:
    """Its own journal says from where the next one goes on, and in which direction."""
    tenant, run = stepping(backwards)
    halves.abandoned(run, at=(5, 0))
    repairing = request_repair(run, way, reason="", by="ops", via="command")
    halves.abandoned(repairing, at=(7, 0))
    assert (repairing.state, repairing.error_code) == ("partial", "worker_lost")
    assert status(tenant) == "partial"
    halves.require_true(repairing)
    again = halves.repair(repairing, then)
    assert (again.state, again.message) == ("succeeded", "")
    applied = (backwards == (way == "undo")) == (then == "redo")
    halves.require_boundary(tenant, STEP if applied else BEFORE)


@pytest.mark.parametrize("way", ["redo", "undo"])
def test_repair__killed_at_its_very_end_has_succeeded(
    stepping: Stepping, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, run = stepping(False)
    halves.abandoned(run, at=(5, 0))
    repairing = request_repair(run, way, reason="", by="ops", via="command")
    monkeypatch.setattr(Recorder, "repaired", lambda self, step: halves.die())
    with pytest.raises(halves.WorkerDied):
        halves.carry_out(repairing)
    halves.settle(repairing)
    assert repairing.state == "succeeded"
    assert [step.state for step in repairing.steps.all()] == ["done"]
    assert status(tenant) == "pending"
    assert standing_keys(tenant) == ([BEFORE, STEP] if way == "redo" else [BEFORE])


@pytest.mark.parametrize("way", ["redo", "mark"])
def test_repair__killed_before_it_began_changes_nothing(
    stepping: Stepping, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, run = stepping(False)
    halves.abandoned(run, at=(5, 0))
    repairing = request_repair(run, way, reason="by hand", by="ops", via="command")
    monkeypatch.setattr(repairs, "tenant_lock", lambda *args, **options: halves.die())
    with pytest.raises(halves.WorkerDied):
        halves.carry_out(repairing)
    monkeypatch.undo()
    halves.settle(repairing)
    assert (repairing.state, repairing.error_code) == ("failed", "worker_lost")
    assert f"stands as run {run.pk} left it" in repairing.message
    assert status(tenant) == "partial"
    assert halves.repair(run, "redo").state == "succeeded"
    halves.require_boundary(tenant, STEP)


def test_repair__that_fails_leaves_a_journal(stepping: Stepping) -> None:
    tenant, run = stepping(False)
    halves.abandoned(run, at=(4, 0))
    halves.run_sql(tenant, "CREATE TABLE orders_tray ()")
    failed = halves.repair(run, "redo")
    assert (failed.state, failed.error_code, failed.failed_step) == ("partial", "migration_failed", "orders.0002_step")
    assert halves.journal_of(failed) == ("running", 7, 0)
    with pytest.raises(InvalidTransition, match=f"Run {failed.pk} has changed tenant 'acme' since"):
        halves.repair(run, "redo")
    halves.run_sql(tenant, "DROP TABLE orders_tray")
    assert halves.repair(failed, "redo").state == "succeeded"
    halves.require_boundary(tenant, STEP)


def test_repair__an_index_that_the_data_still_forbid(stepping: Stepping) -> None:
    tenant, run = stepping(False)
    halves.run_sql(tenant, "INSERT INTO orders_order (status, reference) VALUES ('open', 1), ('open', 1)")
    halves.carry_out(run)
    diagnosis = diagnosis_of(run)
    assert diagnosis.invalid_indexes == ("orders_reference_key",)
    assert diagnosis.way("redo").does == ("Drops orders_reference_key, then does the 2 operations that are left.")
    failed = halves.repair(run, "redo")
    assert (failed.state, failed.sqlstate) == ("partial", "23505")
    assert diagnosis_of(failed).invalid_indexes == ("orders_reference_key",)
    halves.run_sql(tenant, "UPDATE orders_order SET reference = id")
    assert halves.repair(failed, "redo").state == "succeeded"
    assert invalid_indexes(tenant) == []
    assert halves.shown(tenant) == [True] * len(PLACES)


def test_repair__an_index_that_a_whole_run_left_invalid(stepping: Stepping) -> None:
    """As a RunPython does that builds it and lets the error pass."""
    tenant, run = stepping(False)
    halves.carry_out(run)
    halves.run_sql(tenant, "INSERT INTO orders_slip DEFAULT VALUES; INSERT INTO orders_slip DEFAULT VALUES")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        halves.run_sql(tenant, "CREATE UNIQUE INDEX CONCURRENTLY orders_one_idx ON orders_slip ((1))")
    MigrationRun.objects.filter(pk=run.pk).update(state="partial", error_code="invalid_index")
    run.refresh_from_db()
    assert halves.require_true(run) == {"record": False, "redo": True, "undo": False, "mark": True}
    failed = halves.repair(run, "redo")
    assert (failed.state, failed.sqlstate) == ("partial", "23505")
    halves.run_sql(tenant, "DELETE FROM orders_slip")
    assert halves.repair(failed, "redo").state == "succeeded"
    assert invalid_indexes(tenant) == []


def test_repair__mark_takes_a_reason_and_changes_nothing(stepping: Stepping) -> None:
    tenant, run = stepping(False)
    halves.abandoned(run, at=(3, 1))
    with pytest.raises(InvalidOptions, match="takes a reason"):
        halves.repair(run, "mark")
    before = catalog.fingerprint(catalog.tenant_dsn(tenant))
    marked = halves.repair(run, "mark", reason="looked at it")
    assert (marked.state, marked.repair_reason, marked.repair_of) == ("succeeded", "looked at it", run)
    assert catalog.fingerprint(catalog.tenant_dsn(tenant)) == before
    assert status(tenant) == "pending"


def test_repair__of_a_run_that_is_not_partial(stepping: Stepping) -> None:
    _, run = stepping(False)
    with pytest.raises(InvalidTransition, match=f"Run {run.pk} is pending; only one that is partial needs a repair"):
        halves.repair(run, "redo")
    halves.carry_out(run)
    with pytest.raises(InvalidTransition, match=f"Run {run.pk} is succeeded"):
        diagnosis_of(run)


def test_repair__what_cannot_be_undone_is_refused(stepping: Stepping, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant, run = stepping(False)
    step = source_for(tenant.isolation).migrations[STEP].operations[2]
    monkeypatch.setattr(step, "reverse_code", None)
    halves.abandoned(run, at=(5, 0))
    assert diagnosis_of(run).way("undo").does == "Cannot be undone: Raw Python operation."
    before = halves.shown(tenant)
    assert halves.repair(run, "undo").error_code == "repair_impossible"
    assert halves.shown(tenant) == before


def test_repair__a_step_that_is_not_in_the_code_any_more(stepping: Stepping, broken: Choose) -> None:
    _, run = stepping(False)
    halves.abandoned(run, at=(5, 0))
    broken(orders="orders_conflict")
    with pytest.raises(RepairImpossible, match="0002_step is not in this code any more"):
        diagnosis_of(run)


def test_retry__of_a_partial_run_says_how_to_repair(stepping: Stepping) -> None:
    _, run = stepping(False)
    halves.abandoned(run, at=(5, 0))
    with pytest.raises(InvalidTransition) as refused:
        retry_run(run, by="ops")
    assert str(refused.value) == (
        f"Run {run.pk} left its tenant between two migrations; that needs a repair first: "
        f"manage.py repairtenant --run={run.pk}, or /runs/{run.pk}/repair."
    )


def test_rollout__that_leaves_a_partial_tenant_out_says_how_to_repair(stepping: Stepping) -> None:
    tenant, run = stepping(False)
    halves.abandoned(run, at=(5, 0))
    rollout = request_rollout([tenant], Request(target=Target(app_label="orders")))
    left_out = rollout.runs.get()
    assert (left_out.state, left_out.error_code) == ("skipped", "partial")
    assert left_out.message == (
        "The tenant stands between two migrations and has to be repaired: "
        f"manage.py repairtenant --run={run.pk}, or /runs/{run.pk}/repair."
    )


def invalid_indexes(tenant: Tenant) -> list[tuple[object, ...]]:
    return catalog.query(catalog.tenant_dsn(tenant), "SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid")


def standing_keys(tenant: Tenant) -> list[tuple[str, str]]:
    return catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)
