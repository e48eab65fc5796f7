import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db.migrations import CreateModel, RunSQL
from django.db.migrations.state import ModelState, ProjectState
from django.db.models import BigAutoField

from migrations_api.exceptions import MissingRecord
from migrations_api.executor import Outcome
from migrations_api.executor.applied import TenantRecorder
from migrations_api.executor.verification import (
    COLUMN_SQL,
    FAULTS,
    PRESENT,
    VALID_SQL,
    Faults,
    absent_tables,
    faults,
    first_tables,
    has_column,
    index_validity,
    present_tables,
    table_name,
)
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Target, make_plan
from tenants.models import Isolation, Tenant
from tenants.sessions import tenant_session
from tenants.watch import OwnSession
from tests import catalog, halves
from tests.command_line import manage
from tests.test_executor import migrate

MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]
TWINS = ("public_acme", "public_acme_", "public_acm")
# A row breaks the constraint, and the index cannot be unique.
FAULTY = """
CREATE TABLE {0}.book (id int, title text) PARTITION BY RANGE (id);
CREATE TABLE {0}.book_1 PARTITION OF {0}.book FOR VALUES FROM (0) TO (100);
CREATE INDEX book_title ON ONLY {0}.book (title);
INSERT INTO {0}.book VALUES (1, ''), (2, '');
ALTER TABLE {0}.book_1 ADD CONSTRAINT titled CHECK (title <> '') NOT VALID;
CREATE TABLE {0}.shelf (id int); INSERT INTO {0}.shelf VALUES (1), (1);
"""


@pytest.fixture
def twins(make_tenant: MakeTenant) -> Iterator[dict[str, Any]]:
    """Three schemas with like names, each with the same faults, and public with them as well."""
    tenant = make_tenant("acme")
    arguments = catalog.tenant_dsn(tenant)
    for schema in TWINS:
        catalog.query(arguments, f"CREATE SCHEMA IF NOT EXISTS {schema}")
    yield arguments
    for schema in TWINS[1:]:
        catalog.query(arguments, f"DROP SCHEMA {schema} CASCADE")


def faults_of(tenant: Tenant, schema: str = "") -> Faults:
    with tenant_session(tenant, application_name="test of the verification") as connection:
        return faults(OwnSession(connection), schema or tenant.schema_name)


def make_faulty(arguments: dict[str, Any], schema: str) -> None:
    catalog.query(arguments, FAULTY.format(schema))
    with pytest.raises(catalog.psycopg2.errors.UniqueViolation):
        catalog.query(arguments, f"CREATE UNIQUE INDEX CONCURRENTLY shelf_id ON {schema}.shelf (id)")


@pytest.mark.parametrize("faulty", TWINS)
def test_faults__are_those_of_that_schema(twins: dict[str, Any], faulty: str) -> None:
    tenant = Tenant.objects.get()
    make_faulty(twins, faulty)
    for schema in TWINS:
        found = faults_of(tenant, schema)
        assert found.invalid_indexes == ({"book_title", "shelf_id"} if schema == faulty else frozenset())
        assert found.unvalidated == ({"titled"} if schema == faulty else frozenset())


def test_faults__in_public_of_a_tenant_with_a_database_of_its_own(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme", Isolation.DATABASE)
    make_faulty(catalog.tenant_dsn(tenant), "public")
    assert faults_of(tenant) == Faults(
        invalid_indexes=frozenset({"book_title", "shelf_id"}), unvalidated=frozenset({"titled"})
    )


def test_faults__since_leaves_out_what_was_there() -> None:
    before = Faults(invalid_indexes=frozenset({"a"}), unvalidated=frozenset({"b"}))
    after = Faults(invalid_indexes=frozenset({"a", "c"}), unvalidated=frozenset({"b"}))
    assert after.since(before) == Faults(invalid_indexes=frozenset({"c"}))


def test_names__with_quotes_cases_and_at_their_longest(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")
    names = ["Order", "order", 'a"b', "with space", "x.y", "ä" * 31]
    with tenant_session(tenant, application_name="test") as connection, connection.cursor() as cursor:
        for name in names:
            quoted = name.replace('"', '""')
            cursor.execute(f'CREATE TABLE "{quoted}" ("{quoted}" int)')
            cursor.execute(f'CREATE INDEX "{quoted}!" ON "{quoted}" ("{quoted}")')
        assert present_tables(OwnSession(connection), tenant.schema_name, [*names, "ORDER", "missing"]) == set(names)
        assert absent_tables(OwnSession(connection), tenant.schema_name, [*names, "missing"]) == ["missing"]
        assert absent_tables(OwnSession(connection), tenant.schema_name, []) == []
        for name in names:
            assert has_column(connection, tenant.schema_name, name, name)
            assert not has_column(connection, tenant.schema_name, name, "other")
            assert index_validity(connection, tenant.schema_name, f"{name}!") is True
        assert index_validity(connection, tenant.schema_name, "missing") is None
        assert not has_column(connection, tenant.schema_name, "missing", "id")


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({}, "orders_book"),
        ({"db_table": "Book"}, "Book"),
        ({"db_table": '"quoted"'}, "quoted"),
        ({"db_table": "b" * 80}, "b" * 63),
        ({"db_table": "ä" * 40}, "ä" * 31),
    ],
)
def test_table_name__is_what_django_creates(options: dict[str, str], table: str, make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")
    state = ModelState("orders", "Book", [("id", BigAutoField(primary_key=True))], options)
    with tenant_session(tenant, application_name="test") as connection:
        named = table_name(state, connection)
        assert named == table
        with connection.schema_editor() as editor:
            project = ProjectState()
            project.add_model(state)
            editor.create_model(project.apps.get_model("orders", "Book"))
        assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == {named}


def test_tables__of_models_without_one_are_not_looked_for(make_tenant: MakeTenant, broken: Choose) -> None:
    broken(orders="orders_step")
    tenant = make_tenant("acme")
    source = source_for(tenant.isolation)
    initial = source.migrations["orders", "0001_initial"]
    field = [("id", BigAutoField(primary_key=True))]
    kept = list(initial.operations)
    initial.operations = [
        *kept,
        CreateModel("Unmanaged", field, {"managed": False}),
        CreateModel("Proxy", [], {"proxy": True}, bases=("orders.order",)),
        CreateModel("Swapped", field, {"swappable": "SOME_MODEL"}),
    ]
    plan = make_plan(source, frozenset(), Target(app_label="orders", migration_name="0001"))
    with tenant_session(tenant, application_name="test") as connection:
        assert first_tables(plan, connection) == {"ledger", "orders_order", "orders_slip"}
    initial.operations = initial.operations[:-1]
    assert migrate(tenant, "orders", "0001").end == "succeeded"


def test_run__recorded_tables_that_are_absent_leave_it_partial(
    make_tenant: MakeTenant, broken: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a migration drops the table again behind Django's back."""
    broken(orders="orders_step")
    tenant = make_tenant("acme")
    initial = source_for(tenant.isolation).migrations["orders", "0001_initial"]
    monkeypatch.setattr(initial, "operations", [*initial.operations, RunSQL("DROP TABLE orders_slip")])
    run = halves.carry_out(halves.ask(tenant, "0001"))
    assert (run.state, run.error_code) == ("partial", "missing_table")
    assert run.message == "Recorded, but the tables are not there: orders_slip."
    ways = {way.name: way.possible for way in halves.diagnosis_of(run).ways}
    assert ways == {"record": False, "redo": False, "undo": False, "mark": True}


def test_run__tells_of_constraints_that_it_left_not_valid(
    make_tenant: MakeTenant, broken: Choose, monkeypatch: pytest.MonkeyPatch, viewer: Any
) -> None:
    broken(orders="orders_step")
    tenant = make_tenant("acme")
    initial = source_for(tenant.isolation).migrations["orders", "0001_initial"]
    adding = RunSQL("ALTER TABLE orders_order ADD CONSTRAINT known CHECK (status <> '') NOT VALID")
    monkeypatch.setattr(initial, "operations", [*initial.operations, adding])
    result = manage("migratetenant", "--tenant-id=acme", "orders", "0001", "--no-input")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith(
        "Migrations completed successfully for tenant 'acme'.\n"
        "Note: the constraint known is NOT VALID; rows from before it may break it.\n"
    )
    run = MigrationRun.objects.get()
    assert run.findings == [{"code": "unvalidated_constraint", "detail": "known"}]
    assert viewer.get(f"/runs/{run.pk}").json()["findings"] == run.findings
    later = halves.migrate(tenant, "0002_step")
    assert later.findings == []


def unrecorded(make_tenant: MakeTenant, isolation: str) -> Tenant:
    tenant = make_tenant("acme", isolation)
    migrate(tenant)
    halves.run_sql(tenant, "DROP TABLE django_migrations")
    return tenant


@pytest.mark.parametrize("isolation", [Isolation.SCHEMA, Isolation.DATABASE])
def test_missing_record__is_refused_with_nothing_changed(make_tenant: MakeTenant, isolation: str) -> None:
    tenant = unrecorded(make_tenant, isolation)
    before = catalog.fingerprint(catalog.tenant_dsn(tenant))
    with pytest.raises(MissingRecord, match="but no record of its migrations in django_migrations"):
        migrate(tenant)
    assert catalog.fingerprint(catalog.tenant_dsn(tenant)) == before


def test_missing_record__fake_initial_goes_through(make_tenant: MakeTenant, broken: Choose) -> None:
    broken(orders="orders_step")
    tenant = make_tenant("acme")
    migrate(tenant, "orders", "0001")
    halves.run_sql(tenant, "DROP TABLE django_migrations")
    outcome: Outcome = migrate(tenant, "orders", "0001", fake_initial=True)
    assert (outcome.end, [result.faked for result in outcome.results]) == ("succeeded", [True])


def test_missing_record__a_table_of_somebody_else_is_none_of_ours(make_tenant: MakeTenant, broken: Choose) -> None:
    broken(orders="orders_step")
    tenant = make_tenant("acme")
    halves.run_sql(tenant, "CREATE TABLE public.orders_order (id int); CREATE TABLE legacy (id int)")
    try:
        assert migrate(tenant, "orders", "0001").end == "succeeded"
    finally:
        halves.run_sql(tenant, "DROP TABLE public.orders_order")


@pytest.fixture
def crowd(make_tenant: MakeTenant) -> Iterator[Tenant]:
    """A tenant among 300 schemas with tables."""
    tenant = make_tenant("acme")
    migrate(tenant)
    arguments = catalog.tenant_dsn(tenant)
    catalog.query(
        arguments,
        "DO $$ BEGIN FOR n IN 1..300 LOOP EXECUTE format('CREATE SCHEMA crowd_%s', n); FOR t IN 1..4 LOOP"
        " EXECUTE format('CREATE TABLE crowd_%s.t%s (id int PRIMARY KEY, name text CHECK (name <> %L))', n, t, '');"
        " END LOOP; END LOOP; END $$",
    )
    catalog.query(arguments, "ANALYZE pg_class; ANALYZE pg_index; ANALYZE pg_constraint; ANALYZE pg_depend")
    yield tenant
    for first in range(1, 301, 50):
        names = ", ".join(f"crowd_{number}" for number in range(first, first + 50))
        catalog.query(arguments, f"DROP SCHEMA {names} CASCADE")


def test_questions__cost_what_the_tenant_has(crowd: Tenant) -> None:
    schema = crowd.schema_name
    questions = [
        (FAULTS.statement, [schema]),
        (PRESENT.statement, [["orders_order", "users_user"], schema]),
        (VALID_SQL, [schema, "orders_status_placed_idx"]),
        (COLUMN_SQL, ["status", schema, "orders_order"]),
    ]
    with tenant_session(crowd, application_name="test") as connection, connection.cursor() as cursor:
        for question, parameters in questions:
            cursor.execute(f"EXPLAIN {question}", parameters)
            plan = "\n".join(line for (line,) in cursor.fetchall())
            assert not re.search(r"Seq Scan on pg_(class|index|constraint|depend|attribute)", plan), plan
        assert TenantRecorder(connection, schema).applied_keys()
        assert not faults(OwnSession(connection), schema).invalid_indexes
