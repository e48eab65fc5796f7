"""The states of the models that the first tenant has passed, and that the next ones follow on."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import pytest
from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations, models
from django.db.migrations.operations.base import Operation
from django.db.models.signals import pre_migrate

from migrations_api.executor import repertoire
from tests.registries import registries
from tests.small_app import Code, MakeTenant, add_field, migrate, migration, query, standing_at_first

WIDTH = "SELECT atttypmod - 4 FROM pg_attribute WHERE attrelid = 'orders_order'::regclass AND attname = 'number'"


@contextmanager
def worked_out() -> Iterator[list[str]]:
    """The fields whose models are rendered with them meanwhile."""
    found: list[str] = []
    forwards = migrations.AddField.state_forwards

    def noted(self: Any, *given: Any) -> None:
        found.append(self.name)
        forwards(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations.AddField, "state_forwards", noted)
        yield found


def test_states__that_the_first_tenant_has_passed_are_the_next_ones(make_tenant: MakeTenant, code: Code) -> None:
    code(
        m2=migration("m2", add_field("total"), migrations.RunPython(lambda apps, editor: apps.get_models())),
        m3=migration("m3", add_field("count"), after="m2"),
    )
    tenants = standing_at_first(make_tenant, 3)
    with worked_out() as found:
        assert [migrate(tenant).state for tenant in tenants] == ["succeeded"] * 3
    assert found == ["total", "count"]


def test_states__of_a_tenant_that_has_failed_are_nobodys(make_tenant: MakeTenant, code: Code) -> None:
    code(m2=migration("m2", add_field("total")), m3=migration("m3", add_field("count"), after="m2"))
    tenants = standing_at_first(make_tenant, 3)
    query(tenants[0], "ALTER TABLE orders_order ADD COLUMN count int; SELECT 1")
    assert [migrate(tenant).state for tenant in tenants] == ["failed", "succeeded", "succeeded"]


def widen(apps: Any) -> None:
    apps.get_model("orders", "Order")._meta.get_field("number").max_length = 20


class Widen(Operation):
    def __init__(self, act: Callable[..., None]) -> None:
        self.act = act

    def state_forwards(self, app_label: str, state: Any) -> None: ...

    def database_forwards(self, app_label: str, editor: Any, before: Any, after: Any) -> None:
        self.act(after.apps, editor)


@pytest.mark.parametrize("by", [migrations.RunPython, Widen, pre_migrate])
def test_states__that_were_changed_for_the_first_tenant_are_nobody_elses(
    make_tenant: MakeTenant, code: Code, by: Any
) -> None:
    """Where the models say already that the column is that wide, Django does not alter it."""
    widened = []

    def act(apps: Any, *given: Any, **named: Any) -> None:
        if not widened and "orders" in apps.all_models:
            widened.append(apps)
            widen(apps)

    wide = models.CharField(max_length=20, unique=True)
    code(
        m2=migration("m2", *([] if by is pre_migrate else [by(act)])),
        m3=migration("m3", migrations.AlterField("Order", "number", wide), after="m2"),
    )
    tenants = standing_at_first(make_tenant, 4)
    if by is pre_migrate:
        pre_migrate.connect(act)
    try:
        assert [migrate(tenant).state for tenant in tenants] == ["succeeded"] * 4
    finally:
        pre_migrate.disconnect(act)
    assert [query(tenant, WIDTH) for tenant in tenants] == [[(10,)], [(20,)], [(20,)], [(20,)]]


def test_states__of_a_migration_without_a_transaction_are_rendered_once(make_tenant: MakeTenant, code: Code) -> None:
    indexes = [models.Index(fields=["number"], name=name) for name in ("by_number", "by_number_once_more")]
    code(
        m2=migration(
            "m2",
            add_field("total"),
            migrations.RenameField("Order", "total", "sum"),
            *(AddIndexConcurrently("Order", index) for index in indexes),
            RemoveIndexConcurrently("Order", "by_number_once_more"),
            atomic=False,
        )
    )
    tenants = standing_at_first(make_tenant, 4)
    assert [migrate(tenant).state for tenant in tenants[:2]] == ["succeeded"] * 2
    with registries() as rendered:
        assert [migrate(tenant).state for tenant in tenants[2:]] == ["succeeded"] * 2
    assert not rendered
    named = "SELECT attname FROM pg_attribute WHERE attrelid = 'orders_order'::regclass AND attname IN ('total', 'sum')"
    assert [query(tenant, named) for tenant in tenants] == [[("sum",)]] * 4
    indexed = "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('by_number') AND indisvalid"
    assert [query(tenant, indexed) for tenant in tenants] == [[(1,)]] * 4
    dropped = "SELECT to_regclass('by_number_once_more') IS NULL"
    assert [query(tenant, dropped) for tenant in tenants] == [[(True,)]] * 4


class Counted(models.IntegerField):
    """Somebody's own, that keeps count of what it was asked."""

    asked: list[bool] = []

    def db_type(self, connection: Any) -> Any:
        self.asked.append(hasattr(self, "counted"))
        self.counted = True
        return super().db_type(connection)


def test_states__that_a_field_has_changed_without_a_transaction_are_rendered_anew(
    make_tenant: MakeTenant, code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    code(m2=migration("m2", migrations.AddField("Order", "total", Counted(null=True)), atomic=False))
    found = []
    for tenant in standing_at_first(make_tenant, 4):
        monkeypatch.setattr(Counted, "asked", [])
        assert migrate(tenant).state == "succeeded"
        found.append(Counted.asked)
    assert found == [found[0]] * 4


def test_states__that_are_no_longer_kept_are_collected(make_tenant: MakeTenant, code: Code) -> None:
    code(m2=migration("m2", add_field("total")))
    [tenant] = standing_at_first(make_tenant, 1)
    assert migrate(tenant).state == "succeeded"
    *_, rehearsal = repertoire._rehearsals.values()
    model = ref(rehearsal.chain.last.apps.get_model("orders", "Order"))
    del rehearsal
    repertoire.clear()
    gc.collect()
    assert model() is None
