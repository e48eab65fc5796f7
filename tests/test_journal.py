from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql

from migrations_api.executor.journal import SESSION, may_commit
from migrations_api.models import MigrationRun, RunStep
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.progress import Progress
from tenants.binding import control_plane
from tenants.models import Tenant
from tests import catalog, halves
from tests.halves import BEFORE, PLACES, STEP
from tests.processes import processes
from tests.small_app import Code, MakeTenant, add_field, migrate, migration, standing_at_first

Choose = Callable[..., None]

# What makes the server refuse an operation, and what takes that away again.
SPOILERS = {
    0: ("CREATE TABLE orders_parcel ()", "DROP TABLE orders_parcel"),
    1: ("ALTER TABLE orders_order ADD channel int", "ALTER TABLE orders_order DROP channel"),
    2: (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON ledger FOR EACH ROW WHEN (NEW.migration = 'data 2')"
        " EXECUTE FUNCTION refuse()",
        "DROP FUNCTION refuse CASCADE",
    ),
    3: ("CREATE TABLE orders_lid ()", "DROP TABLE orders_lid"),
    4: ("CREATE INDEX orders_new_idx ON orders_slip (id)", "DROP INDEX orders_new_idx"),
    6: ("CREATE INDEX orders_state_idx ON orders_slip (id)", "DROP INDEX orders_state_idx"),
    7: ("CREATE TABLE orders_tray ()", "DROP TABLE orders_tray"),
    8: (
        "INSERT INTO orders_order (status, reference) VALUES ('open', 1), ('open', 1)",
        "DELETE FROM orders_order",
    ),
}
# Another session reads this table, and does not end its transaction.
READ_TABLES = {5: "orders_order", 9: "orders_slip"}
BEGUN = {2: 1, 3: 1}
LEFT_INVALID = {5: "orders_old_idx", 8: "orders_reference_key"}


@pytest.fixture
def tenant(broken: Choose, make_tenant: MakeTenant, settings: Any) -> Tenant:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "lock_timeout": 0.2}
    broken(orders="orders_step")
    tenant = make_tenant()
    halves.migrate(tenant, BEFORE[1])
    return tenant


@contextmanager
def spoiled(tenant: Tenant, place: int) -> Iterator[None]:
    if place in SPOILERS:
        spoil, mend = SPOILERS[place]
        halves.run_sql(tenant, spoil)
        yield
        halves.run_sql(tenant, mend)
        return
    connection = psycopg2.connect(**catalog.tenant_dsn(tenant))

    def read() -> None:
        with connection.cursor() as cursor:
            table = sql.Identifier(tenant.schema_name, READ_TABLES[place])
            cursor.execute(sql.SQL("SELECT FROM {}").format(table))

    with halves.interrupted(read, at=(place, 0)):
        yield
    connection.close()


@pytest.mark.parametrize("place", PLACES)
def test_journal__of_a_refused_operation_says_what_the_catalog_shows(tenant: Tenant, place: int) -> None:
    with spoiled(tenant, place):
        run = halves.carry_out(halves.ask(tenant, STEP[1]))
        assert run.state == ("partial" if place else "failed"), run.message
        assert (run.error_code, run.failed_step) == ("migration_failed", "orders.0002_step")
        assert halves.journal_of(run)[1:] == (place, BEGUN.get(place, 0))
        invalid = LEFT_INVALID.get(place)
        assert ("left invalid indexes" in run.message) == bool(invalid)
        assert invalid is None or invalid in run.message
        if place:
            possible = halves.require_true(run)
            assert possible["redo"] == possible["undo"] == (place not in BEGUN)
    if place and place not in BEGUN:
        assert halves.repair(run, "redo").state == "succeeded"
        if place == 8:
            halves.run_sql(tenant, "ALTER SEQUENCE orders_order_id_seq RESTART")
        halves.require_boundary(tenant, STEP)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_journal__of_a_session_that_was_ended(tenant: Tenant, place: int, backwards: bool) -> None:
    if backwards:
        halves.migrate(tenant, STEP[1])
    run = halves.ask(tenant, BEFORE[1] if backwards else STEP[1])
    with halves.interrupted(halves.terminate, at=(place, 1)):
        halves.carry_out(run)
    assert run.pk is not None
    run.refresh_from_db()
    _, operation, statements = halves.journal_of(run)
    assert operation == place
    if run.state == "partial":
        assert place or statements
        halves.require_true(run)
    else:
        # Of the first operation, the catalog says that nothing is there.
        assert (run.state, place) == ("failed", 0)
        assert halves.shown(tenant) == [backwards] * len(PLACES)


def test_journal__survives_a_worker_that_is_killed(tenant: Tenant, tmp_path: Path) -> None:
    """In the middle of a RunPython that has written something."""
    with processes(tmp_path) as start:
        halves.run_sql(tenant, "CREATE TABLE kill_the_worker ()")
        process = start(
            "migratetenant",
            "--tenant-id=acme",
            "orders",
            "0002",
            "--no-input",
            broken={"orders": "orders_step"},
            lease=1,
        )
        assert process.wait(60) == -9
    run = MigrationRun.objects.get(tenant=tenant, state="running")
    MigrationRun.objects.filter(pk=run.pk).update(lease_expires_at="2000-01-01T00:00Z")
    settle_abandoned()
    run.refresh_from_db()
    assert (run.state, run.error_code) == ("partial", "worker_lost")
    assert halves.journal_of(run) == ("failed", 2, 1)
    assert halves.require_true(run) == {"record": False, "redo": False, "undo": False, "mark": True}


@pytest.mark.parametrize(
    ("statement", "commits"),
    [
        ("INSERT INTO a VALUES (1)", False),
        ("UPDATE a SET b = CASE WHEN c THEN 1 END", False),
        ("UPDATE a SET b = 1; COMMIT; UPDATE a SET c = 1", True),
        ("UPDATE a SET b = 1; END; UPDATE a SET c = 1", True),
        ("CALL fill()", True),
        ("DO $$ BEGIN COMMIT; END $$", True),
        ("DO $$ BEGIN PERFORM 1; END $$", False),
        ("ALTER TABLE a DETACH PARTITION b CONCURRENTLY", True),
    ],
)
def test_commits__what_is_refused_may_have_been_done_in_part(statement: str, commits: bool) -> None:
    assert may_commit(statement) == commits


@pytest.mark.parametrize(
    ("statement", "of_the_session"),
    [('SAVEPOINT "s1"', True), ("SET lock_timeout = 0", True), ("SET a = 1; DELETE FROM b", False), ("DELETE", False)],
)
def test_session__what_leaves_nothing_in_the_tenant(statement: str, of_the_session: bool) -> None:
    assert bool(SESSION.match(statement)) == of_the_session


def test_beat__tells_of_no_step_without_its_journal(
    make_tenant: MakeTenant, code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step that runs and has no journal, nobody would know that nothing was sent."""
    code(m2=migration("m2", add_field("total"), atomic=False))
    [tenant] = standing_at_first(make_tenant, 1)
    seen = []
    started = Progress.started

    def beat_at_once(progress: Progress, position: int, **kept: bool) -> None:
        started(progress, position, **kept)
        with control_plane():
            progress.write(is_between_steps=False)
            seen.extend(RunStep.objects.filter(state="running").values_list("operation", "statements"))

    monkeypatch.setattr(Progress, "started", beat_at_once)
    assert migrate(tenant).state == "succeeded"
    assert seen == [(0, 0)]
