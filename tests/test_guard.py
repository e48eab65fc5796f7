import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from migrations_api.executor import Outcome, guard, migrator
from migrations_api.executor.guard import LOCKED_SQL, UNLOCKED
from migrations_api.orchestrator.sources import source_for
from tenants.models import Isolation, Tenant
from tests import catalog, halves
from tests.processes import wait_until
from tests.test_executor import migrate

MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]
OTHER = "somebody_else"
# Each with what it changes.
REACHES = {
    "INSERT INTO somebody_else.book VALUES (1)": "somebody_else.book",
    "UPDATE somebody_else.book SET id = id": "somebody_else.book",
    "DELETE FROM somebody_else.book": "somebody_else.book",
    "TRUNCATE somebody_else.book": "somebody_else.book",
    "ALTER TABLE somebody_else.book ADD title text": "somebody_else.book",
    "CREATE INDEX book_id ON somebody_else.book (id)": "somebody_else.book",
    "DROP INDEX somebody_else.book_idx": "somebody_else.book",
    "CREATE TABLE somebody_else.shelf (id int)": "somebody_else.shelf",
    "DROP TABLE somebody_else.book CASCADE": "somebody_else.book",
    "CREATE VIEW somebody_else.readers AS SELECT 1": "somebody_else.readers",
    "CREATE OR REPLACE VIEW somebody_else.books AS SELECT 2 AS id": "somebody_else.books",
    "DROP VIEW somebody_else.books": "somebody_else.books",
    "CREATE SEQUENCE somebody_else.number": "somebody_else.number",
    "SELECT nextval('somebody_else.counter')": "somebody_else.counter",
    "DROP SEQUENCE somebody_else.counter": "somebody_else.counter",
    "ALTER TABLE orders_order ADD FOREIGN KEY (id) REFERENCES somebody_else.book (id)": "somebody_else.book",
    "CREATE TABLE public.landed (id int)": "public.landed",
    "CREATE SCHEMA another": "schema another",
    "ALTER SCHEMA somebody_else RENAME TO nobody": "schema nobody",
    "DROP SCHEMA spare": "schema spare",
    "GRANT USAGE ON SCHEMA somebody_else TO public": "schema somebody_else",
    "GRANT SELECT ON somebody_else.book TO public": "somebody_else.book",
    "CREATE FUNCTION somebody_else.two() RETURNS int LANGUAGE sql AS 'SELECT 2'": "somebody_else.two",
    "CREATE OR REPLACE FUNCTION somebody_else.one() RETURNS int LANGUAGE sql AS 'SELECT 2'": "somebody_else.one",
    "ALTER FUNCTION somebody_else.one() STABLE": "somebody_else.one",
    "DROP FUNCTION somebody_else.one()": "somebody_else.one",
    "CREATE TYPE somebody_else.size AS ENUM ('s')": "somebody_else.size",
    "ALTER TYPE somebody_else.mood ADD VALUE 'sad'": "somebody_else.mood",
    "DROP TYPE somebody_else.mood": "somebody_else.mood",
    "DO $$ BEGIN EXECUTE 'CREATE SCHEMA another'; END $$": "schema another",
}
INNOCENT = [
    "SELECT count(*) FROM somebody_else.book",
    "SELECT * FROM somebody_else.book FOR UPDATE",
    "CREATE TABLE copied AS SELECT * FROM somebody_else.book",
    "CREATE VIEW looking AS SELECT * FROM somebody_else.book",
    "CREATE FUNCTION own() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TYPE own_mood AS ENUM ('glad')",
    "CREATE TEMPORARY TABLE scratch (id int)",
    "DO $$ BEGIN CREATE TABLE own_table (id int); EXCEPTION WHEN duplicate_table THEN NULL; END $$",
]


@pytest.fixture
def make(broken: Choose, make_tenant: MakeTenant) -> Iterator[MakeTenant]:
    """A tenant that stands at orders.0001, in a database that somebody else lives in as well."""
    broken(orders="orders_reach")
    made = []

    def make(isolation: str = Isolation.SCHEMA, *statements: str) -> Tenant:
        tenant = make_tenant("acme", isolation)
        made.append(tenant)
        migrate(tenant, "orders", "0001")
        catalog.query(
            catalog.tenant_dsn(tenant),
            "CREATE SCHEMA somebody_else; CREATE SCHEMA spare;"
            "CREATE TABLE somebody_else.book (id bigint PRIMARY KEY); INSERT INTO somebody_else.book VALUES (7);"
            "CREATE INDEX book_idx ON somebody_else.book (id); CREATE SEQUENCE somebody_else.counter;"
            "CREATE VIEW somebody_else.books AS SELECT 1 AS id; CREATE TYPE somebody_else.mood AS ENUM ('glad');"
            "CREATE FUNCTION somebody_else.one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        )
        tell(tenant, *statements)
        return tenant

    yield make
    for tenant in made:
        catalog.query(
            catalog.tenant_dsn(tenant),
            "DROP SCHEMA IF EXISTS somebody_else CASCADE; DROP SCHEMA IF EXISTS spare",
        )


def tell(tenant: Tenant, *statements: str) -> None:
    halves.run_sql(tenant, "CREATE TABLE IF NOT EXISTS told (statement text); DELETE FROM told")
    for statement in statements:
        quoted = statement.replace("'", "''")
        halves.run_sql(tenant, f"INSERT INTO told VALUES ('{quoted}')")


def reach(tenant: Tenant) -> Outcome:
    return migrate(tenant, "orders", "0002")


@contextmanager
def other_sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Those in which it was asked what another transaction has dropped."""
    asked: list[object] = []

    def named(connection: Any, dropped: Any) -> Any:
        asked.append(connection)
        return guard.named_things(connection, dropped)

    with monkeypatch.context() as patch:
        patch.setattr(migrator, "named_things", named)
        yield asked


@pytest.mark.parametrize("isolation", [Isolation.SCHEMA, Isolation.DATABASE])
def test_guard__refuses_whatever_reaches_outside(make: MakeTenant, isolation: str) -> None:
    tenant = make(isolation)
    arguments = catalog.tenant_dsn(tenant)
    reached = {
        statement: named
        for statement, named in REACHES.items()
        if isolation == Isolation.SCHEMA or "public" not in statement
    }
    for statement, named in reached.items():
        tell(tenant, statement)
        before = catalog.fingerprint(arguments), catalog.schemas(arguments)
        outcome = reach(tenant)
        assert outcome.failure is not None, statement
        assert (outcome.end, outcome.failure.code) == ("failed", "outside_tenant"), (statement, outcome.failure)
        assert named in outcome.failure.message, (statement, outcome.failure.message)
        assert "It was rolled back." in outcome.failure.message
        assert (catalog.fingerprint(arguments), catalog.schemas(arguments)) == before, statement


@pytest.mark.parametrize("isolation", [Isolation.SCHEMA, Isolation.DATABASE])
def test_guard__lets_a_tenant_read_others_and_change_itself(make: MakeTenant, isolation: str) -> None:
    tenant = make(isolation, *INNOCENT)
    outcome = reach(tenant)
    assert (outcome.end, outcome.failure) == ("succeeded", None)


def test_guard__within_a_savepoint_that_is_kept(make: MakeTenant) -> None:
    tenant = make(Isolation.SCHEMA, "SAVEPOINT a", "CREATE SCHEMA another", "RELEASE SAVEPOINT a")
    outcome = reach(tenant)
    assert outcome.failure is not None
    assert "schema another" in outcome.failure.message


def test_guard__within_a_savepoint_that_is_rolled_back(make: MakeTenant) -> None:
    reaching = ["CREATE SCHEMA another", "DELETE FROM somebody_else.book", "DROP FUNCTION somebody_else.one()"]
    tenant = make(Isolation.SCHEMA, "SAVEPOINT a", *reaching, "ROLLBACK TO SAVEPOINT a")
    assert reach(tenant).end == "succeeded"


def test_guard__does_not_take_others_work_for_the_tenants(make: MakeTenant) -> None:
    """Another session makes things and commits them while the migration's transaction is open."""
    tenant = make(
        Isolation.SCHEMA, "CREATE TYPE own_mood AS ENUM ('glad')", "SELECT pg_advisory_lock_shared(7)", "SELECT 1"
    )
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted"

    def meanwhile() -> None:
        with catalog.cursor(catalog.tenant_dsn(tenant)) as cursor:
            cursor.execute("SELECT pg_advisory_lock(7)")
            locked.set()
            wait_until(lambda: catalog.query(catalog.tenant_dsn(tenant), waiting) == [(1,)])
            cursor.execute("CREATE TABLE somebody_else.late (id int); CREATE TYPE somebody_else.other AS ENUM ('a')")

    locked = threading.Event()
    thread = threading.Thread(target=meanwhile)
    thread.start()
    locked.wait()
    outcome = reach(tenant)
    thread.join()
    assert (outcome.end, outcome.failure) == ("succeeded", None)
    assert "late" in catalog.tables(catalog.tenant_dsn(tenant), OTHER)


def test_guard__extra_search_path_may_be_written_to(make: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "extra_search_path": [OTHER]}
    tenant = make(
        Isolation.SCHEMA,
        "ALTER TABLE orders_order ADD FOREIGN KEY (id) REFERENCES somebody_else.book (id)",
        "INSERT INTO somebody_else.book VALUES (8)",
        "CREATE FUNCTION somebody_else.two() RETURNS int LANGUAGE sql AS 'SELECT 2'",
    )
    assert reach(tenant).end == "succeeded"


def test_guard__dropping_its_own_takes_one_more_session_for_the_run(
    make: MakeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = make(Isolation.SCHEMA, "DROP SCHEMA IF EXISTS never_there")
    with other_sessions(monkeypatch) as asked:
        outcome = migrate(tenant, "orders", "0004")
    assert (outcome.end, outcome.failure) == ("succeeded", None)
    assert len(asked) >= 2
    assert len(set(map(id, asked))) == 1


def test_guard__a_step_that_drops_nothing_takes_no_more_session(
    make: MakeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = make(Isolation.SCHEMA)
    with other_sessions(monkeypatch) as asked:
        assert reach(tenant).end == "succeeded"
    assert asked == []


def test_guard__reads_no_catalog_that_grows_for_a_step_of_tables(make: MakeTenant) -> None:
    """However many schemas there are: pg_locks has what this transaction touches."""
    tenant = make(Isolation.SCHEMA)
    with catalog.cursor(catalog.tenant_dsn(tenant)) as cursor:
        cursor.execute("SET enable_seqscan = off")
        cursor.execute(f"EXPLAIN {LOCKED_SQL}")
        assert not re.search(r"Seq Scan on pg_(class|namespace)", "\n".join(line for (line,) in cursor.fetchall()))
    for ordinary in ("ALTER TABLE a ALTER b TYPE text", "CREATE TABLE a (id int)", "CREATE INDEX a ON b (c)"):
        assert not UNLOCKED.search(ordinary)


@pytest.mark.parametrize("has_its_own", [True, False])
def test_guard__of_a_migration_without_a_transaction_sees_those_that_an_operation_has(
    make: MakeTenant, monkeypatch: pytest.MonkeyPatch, has_its_own: bool
) -> None:
    """What is committed statement by statement shows too late to be refused."""
    tenant = make(Isolation.SCHEMA, "INSERT INTO somebody_else.book VALUES (8)")
    step = source_for(tenant.isolation).migrations["orders", "0002_reach"]
    monkeypatch.setattr(step, "atomic", False)
    monkeypatch.setattr(step.operations[1], "atomic", has_its_own)
    outcome = reach(tenant)
    books = catalog.query(catalog.tenant_dsn(tenant), "SELECT count(*) FROM somebody_else.book")
    assert (outcome.end, books) == (("partial", [(1,)]) if has_its_own else ("succeeded", [(2,)]))
    assert outcome.failure is None or outcome.failure.code == "outside_tenant"
