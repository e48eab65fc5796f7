"""What tenants that stand at the same place share in one process, and that nothing else passes from one to the next."""

from dataclasses import replace
from datetime import date
from typing import Any
from uuid import uuid4

import pytest
from django.db import migrations, models
from django.db.models.signals import pre_migrate
from psycopg2 import sql

from migrations_api.executor import repertoire
from migrations_api.orchestrator import sources
from migrations_api.plan import Target
from migrations_api.plan.source import load_source
from tenants import watch
from tests import catalog
from tests.registries import registries
from tests.schema_editors import schema_editors
from tests.small_app import Code, MakeTenant, migrate, migration, query, standing_at_first


def test_departure__a_constraint_of_another_name_is_dropped_all_the_same(
    make_tenant: MakeTenant, code: Code, caplog: Any
) -> None:
    plain = models.CharField(max_length=10)
    code(m2=migration("m2", migrations.AlterField("Order", "number", plain)))
    tenants = standing_at_first(make_tenant, 3)
    [[name]] = query(
        tenants[1], "SELECT conname FROM pg_constraint WHERE conrelid = 'orders_order'::regclass AND contype = 'u'"
    )
    query(tenants[1], f'ALTER TABLE orders_order RENAME CONSTRAINT "{name}" TO by_hand; SELECT 1')
    caplog.set_level("INFO")
    assert [migrate(tenant).state for tenant in tenants] == ["succeeded"] * 3
    for tenant in tenants:
        assert not query(
            tenant, "SELECT 1 FROM pg_constraint WHERE conrelid = 'orders_order'::regclass AND contype = 'u'"
        )
    assert "orders.m2 is not what it was for other tenants" in caplog.text


def test_departure__goes_on_to_the_end_of_the_plan(make_tenant: MakeTenant, code: Code) -> None:
    plain = models.CharField(max_length=10)
    code(
        m2=migration("m2", migrations.AlterField("Order", "number", plain)),
        m3=migration("m3", migrations.AddField("Order", "total", models.IntegerField(null=True)), after="m2"),
    )
    tenants = standing_at_first(make_tenant, 4)
    [[name]] = query(
        tenants[1], "SELECT conname FROM pg_constraint WHERE conrelid = 'orders_order'::regclass AND contype = 'u'"
    )
    query(tenants[1], f'ALTER TABLE orders_order RENAME CONSTRAINT "{name}" TO by_hand; SELECT 1')
    assert [migrate(tenant).state for tenant in tenants] == ["succeeded"] * 4


def test_failure__of_one_tenant_is_its_own(make_tenant: MakeTenant, code: Code) -> None:
    code(m2=migration("m2", migrations.AddField("Order", "total", models.IntegerField(null=True))))
    tenants = standing_at_first(make_tenant, 4)
    query(tenants[2], "ALTER TABLE orders_order ADD COLUMN total int; SELECT 1")
    runs = [migrate(tenant) for tenant in tenants]
    assert [(run.state, run.sqlstate) for run in runs] == [
        ("succeeded", ""),
        ("succeeded", ""),
        ("failed", "42701"),
        ("succeeded", ""),
    ]


def test_models__that_a_data_migration_has_changed_are_new_for_the_next_tenant(
    make_tenant: MakeTenant, code: Code
) -> None:
    seen = []

    def keep_times(apps: Any, editor: Any) -> None:
        field = apps.get_model("orders", "Order")._meta.get_field("changed_at")
        seen.append(field.auto_now)
        field.auto_now = False

    code(m2=migration("m2", migrations.RunPython(keep_times)))
    assert [migrate(make_tenant(f"t{number}")).state for number in range(3)] == ["succeeded"] * 3
    assert seen == [True] * 3


def test_models__are_as_they_were_at_that_operation(make_tenant: MakeTenant, code: Code) -> None:
    seen = []

    def look(apps: Any, editor: Any) -> None:
        seen.append(sorted(field.name for field in apps.get_model("orders", "Order")._meta.get_fields()))

    code(
        m2=migration(
            "m2",
            migrations.RunPython(look),
            migrations.AddField("Order", "total", models.IntegerField(null=True)),
            migrations.RunPython(look),
            migrations.RenameField("Order", "total", "sum"),
            migrations.RunPython(look),
        )
    )
    for number in range(2):
        assert migrate(make_tenant(f"t{number}")).state == "succeeded"
    base = ["changed_at", "id", "number"]
    assert seen == [base, sorted([*base, "total"]), sorted([*base, "sum"])] * 2


def test_defaults__that_differ_each_time_differ_for_each_tenant(make_tenant: MakeTenant, code: Code) -> None:
    numbers = iter(range(100))
    field = models.IntegerField(default=lambda: next(numbers))
    code(m2=migration("m2", migrations.AddField("Order", "serial", field)))
    tenants = standing_at_first(make_tenant, 3)
    for tenant in tenants:
        query(tenant, "INSERT INTO orders_order (number, changed_at) VALUES ('a', now()); SELECT 1")
        assert migrate(tenant).state == "succeeded"
    found = [query(tenant, "SELECT serial FROM orders_order")[0][0] for tenant in tenants]
    assert len(set(found)) == 3


def test_script__is_sent_to_those_that_come_after_two_that_agreed(make_tenant: MakeTenant, code: Code) -> None:
    total = models.IntegerField(default=7, db_index=True)
    code(
        m2=migration("m2", migrations.AddField("Order", "total", total)),
        m3=migration("m3", migrations.AlterModelOptions("Order", {"ordering": ["number"]}), after="m2"),
    )
    tenants = standing_at_first(make_tenant, 4)
    for tenant in tenants:
        query(tenant, "INSERT INTO orders_order (number, changed_at) VALUES ('a', now()); SELECT 1")
    written = []
    for tenant in tenants:
        with schema_editors() as found:
            assert [step.state for step in migrate(tenant).steps.all()] == ["done", "done"]
        written.append(len(found))
    assert written[0] == written[1] > 0
    assert written[2:] == [0, 0]
    for tenant in tenants:
        assert query(tenant, "SELECT total FROM orders_order") == [(7,)]
        assert query(tenant, "SELECT name FROM django_migrations ORDER BY id") == [("0001_initial",), ("m2",), ("m3",)]
        indexes = query(tenant, "SELECT 1 FROM pg_indexes WHERE schemaname = current_schema() AND indexdef ~ 'total'")
        assert len(indexes) == 1


class Money(models.IntegerField):
    """Somebody's own: what it is in the database might be decided for each tenant."""


TODAY = models.DateField(default=date.today)
SINCE = models.DateField(auto_now_add=True)


def test_defaults__that_are_computed_as_text_are_no_departure(make_tenant: MakeTenant, code: Code, caplog: Any) -> None:
    caplog.set_level("INFO")
    key = models.UUIDField(default=uuid4)
    code(
        m2=migration("m2", migrations.AddField("Order", "key", key)),
        m3=migration("m3", migrations.AlterField("Order", "number", models.CharField(max_length=12)), after="m2"),
    )
    tenants = standing_at_first(make_tenant, 4)
    for tenant in tenants:
        query(tenant, "INSERT INTO orders_order (number, changed_at) VALUES ('a', now()) RETURNING 1")
    assert [migrate(tenant).state for tenant in tenants[:2]] == ["succeeded"] * 2
    with registries() as rendered:
        assert [migrate(tenant).state for tenant in tenants[2:]] == ["succeeded"] * 2
    assert not rendered
    assert "is not what it was" not in caplog.text
    assert len({query(tenant, "SELECT key FROM orders_order")[0][0] for tenant in tenants}) == 4


def test_departure__beside_a_computed_default(make_tenant: MakeTenant, code: Code, caplog: Any) -> None:
    """What varies is only the value: a name that is another one is found out all the same."""
    caplog.set_level("INFO")
    key, plain = models.UUIDField(default=uuid4), models.CharField(max_length=10)
    code(m2=migration("m2", migrations.AddField("Order", "key", key), migrations.AlterField("Order", "number", plain)))
    tenants = standing_at_first(make_tenant, 3)
    unique = "SELECT conname FROM pg_constraint WHERE conrelid = 'orders_order'::regclass AND contype = 'u'"
    [[name]] = query(tenants[1], unique)
    query(tenants[1], f'ALTER TABLE orders_order RENAME CONSTRAINT "{name}" TO by_hand; SELECT 1')
    assert [migrate(tenant).state for tenant in tenants] == ["succeeded"] * 3
    assert "orders.m2 is not what it was for other tenants" in caplog.text
    assert [query(tenant, unique) for tenant in tenants] == [[]] * 3


@pytest.mark.parametrize(
    "operation",
    [
        migrations.AddField("Order", "on", TODAY),
        migrations.AddField("Order", "since", SINCE, preserve_default=False),
        migrations.AddField("Order", "price", Money(null=True)),
        migrations.AlterField("Order", "number", models.CharField(max_length=12, unique=True)),
        migrations.RunSQL("ALTER TABLE orders_order ADD COLUMN raw int"),
        migrations.RenameModel("Order", "Purchase"),
    ],
    ids=["default", "auto_now_add", "own field", "unique", "sql", "rename"],
)
def test_script__is_only_what_nothing_about_a_tenant_could_change(
    make_tenant: MakeTenant, code: Code, operation: Any
) -> None:
    code(m2=migration("m2", operation))
    for tenant in standing_at_first(make_tenant, 4):
        with schema_editors() as found:
            assert migrate(tenant).state == "succeeded"
        assert found


def test_script__that_fails_leaves_nothing_of_the_migration(make_tenant: MakeTenant, code: Code) -> None:
    fields = [migrations.AddField("Order", name, models.IntegerField(null=True)) for name in ("one", "two")]
    code(m2=migration("m2", *fields))
    tenants = standing_at_first(make_tenant, 4)
    query(tenants[3], "ALTER TABLE orders_order ADD COLUMN two int; SELECT 1")
    *_, run = [migrate(tenant) for tenant in tenants]
    assert (run.state, run.sqlstate, run.failed_step) == ("failed", "42701", "orders.m2")
    columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'orders_order'::regclass AND attname IN ('one', 'two')"
    assert query(tenants[3], columns) == [("two",)]
    assert query(tenants[3], "SELECT name FROM django_migrations") == [("0001_initial",)]


def test_faults__that_a_tenant_of_a_departed_plan_had_before_are_not_the_runs(
    make_tenant: MakeTenant, code: Code
) -> None:
    numbers = iter(range(100))
    total = migrations.AddField("Order", "total", models.IntegerField(null=True))
    serial = migrations.AddField("Order", "serial", models.IntegerField(default=lambda: next(numbers)))
    code(m2=migration("m2", total), m3=migration("m3", serial, after="m2"))
    tenants = standing_at_first(make_tenant, 3)
    for tenant in tenants:
        query(tenant, "ALTER TABLE orders_order ADD CONSTRAINT old CHECK (id > 0) NOT VALID; SELECT 1")
        run = migrate(tenant)
        assert (run.state, run.findings) == ("succeeded", [])


def test_receivers__may_add_operations_for_each_tenant(make_tenant: MakeTenant, code: Code) -> None:
    added = []

    def add(plan: Any, **values: Any) -> None:
        for planned, _ in plan:
            planned.operations.append(migrations.RunPython(lambda apps, editor, name=planned.name: added.append(name)))

    code(m2=migration("m2", migrations.AddField("Order", "total", models.IntegerField(null=True))))
    tenants = standing_at_first(make_tenant, 3)
    pre_migrate.connect(add)
    try:
        assert [migrate(tenant).state for tenant in tenants[:2]] == ["succeeded"] * 2
    finally:
        pre_migrate.disconnect(add)
    assert added == ["m2", "m2"]
    assert migrate(tenants[2]).state == "succeeded"
    assert added == ["m2", "m2"]


def test_rehearsals__are_few(make_tenant: MakeTenant, code: Code, monkeypatch: Any) -> None:
    monkeypatch.setattr(repertoire, "KEPT", 2)
    code(m2=migration("m2", migrations.AddField("Order", "total", models.IntegerField(null=True))))
    for number, name in enumerate(("0001_initial", "m2", "0001_initial")):
        migrate(make_tenant(f"t{number}"), Target(app_label="orders", migration_name=name))
    assert len(repertoire._rehearsals) == 2


def test_watch__that_the_server_has_ended_is_opened_again(make_tenant: MakeTenant, code: Code) -> None:
    code()
    tenant = make_tenant()
    assert migrate(tenant).state == "succeeded"
    session = watch.watch_of(tenant)
    assert session is not None
    pid = session.connection.connection.info.backend_pid
    catalog.query(catalog.tenant_dsn(tenant), sql.SQL("SELECT pg_terminate_backend({})").format(sql.Literal(pid)))
    assert migrate(tenant).state == "succeeded"
    assert session.connection.connection.info.backend_pid != pid


def test_watch__can_change_nothing(make_tenant: MakeTenant) -> None:
    session = watch.watch_of(make_tenant())
    assert session is not None
    with session.connection.cursor() as cursor, pytest.raises(Exception, match="read-only transaction"):
        cursor.execute("CREATE SCHEMA made_by_the_watch")


def test_watch__of_one_database_serves_all_its_schemas(make_tenant: MakeTenant) -> None:
    assert watch.watch_of(make_tenant("one")) is watch.watch_of(make_tenant("two"))
    assert watch.watch_of(make_tenant("three", isolation="database")) is None


@pytest.fixture
def with_content_types(code: Code, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Code:
    """As `code`, of tenants that keep the content types of their models."""

    def is_now(**kinds: Any) -> None:
        code(**kinds)
        orders, types = sources._load(), load_source(frozenset({"contenttypes"}), outside_allowed=False)
        migrations = {**types.migrations, **orders.migrations}
        both = replace(orders, labels=orders.labels | types.labels, migrations=migrations)
        monkeypatch.setattr(sources, "_load", lambda *key: both)
        settings.TENANT_APPS = ["django.contrib.contenttypes", *settings.TENANT_APPS]

    return is_now


def test_renamed_models__take_their_content_types_along(make_tenant: MakeTenant, with_content_types: Code) -> None:
    total = migrations.AddField("Purchase", "total", models.IntegerField(null=True))
    with_content_types(
        m2=migration("m2", migrations.RenameModel("Order", "Purchase"), total),
        m3=migration("m3", migrations.RenameModel("Purchase", "Sale"), after="m2"),
    )
    tenants = standing_at_first(make_tenant, 5)
    named = "SELECT id, model FROM django_content_type WHERE app_label = 'orders'"
    for tenant in tenants:
        migrate(tenant, Target(app_label="contenttypes"))
        [[number, model]] = query(tenant, named)
        assert model == "order"
        with registries() as rendered:
            assert migrate(tenant).state == "succeeded"
        assert query(tenant, named) == [(number, "sale")]
        if tenant in tenants[2:]:
            assert not rendered


def test_renamed_models__and_operations_of_somebody_elses(make_tenant: MakeTenant, with_content_types: Code) -> None:
    added = []

    def add(plan: Any, app_config: Any, **values: Any) -> None:
        if app_config.label == "orders":
            plan[-1][0].operations.append(migrations.RunPython(lambda apps, editor: added.append("run")))

    with_content_types(m2=migration("m2", migrations.RenameModel("Order", "Purchase")))
    tenants = standing_at_first(make_tenant, 3)
    for tenant in tenants:
        migrate(tenant, Target(app_label="contenttypes"))
    pre_migrate.connect(add)
    try:
        assert [migrate(tenant).state for tenant in tenants] == ["succeeded"] * 3
    finally:
        pre_migrate.disconnect(add)
    assert added == ["run"] * 3
