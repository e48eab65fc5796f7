"""Models that are lent to one tenant's Python code after another's: each finds them as if they had been made for it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from django.db import migrations, models

from tests.registries import registries
from tests.small_app import Code, MakeTenant, add_field, migrate, migration, query, standing_at_first

# What code keeps from one time to the next.
Kept = list[Any]


def use_rows(apps: Any, editor: Any) -> None:
    order = apps.get_model("orders", "Order")
    order.objects.bulk_create([order(number="b"), order(number="c")])
    made, _ = order.objects.get_or_create(number="a")
    made.another = order.objects.create(number="d")
    made.another.another = made
    for each in order.objects.exclude(number="d").order_by("-number").iterator():
        each.save(update_fields=["changed_at"])
    assert order.objects.values("changed_at").annotate(models.Count("pk"))
    order.objects.filter(number__in=order.objects.filter(number="c").values("number")).delete()
    assert apps.get_models()


def test_code__that_only_works_with_rows_is_lent_the_same_models(make_tenant: MakeTenant, code: Code) -> None:
    code(m2=migration("m2", migrations.RunPython(use_rows)))
    tenants = standing_at_first(make_tenant, 5)
    assert [migrate(tenant).state for tenant in tenants[:2]] == ["succeeded"] * 2
    with registries() as rendered:
        assert [migrate(tenant).state for tenant in tenants[2:]] == ["succeeded"] * 3
    assert not rendered
    for tenant in tenants:
        assert query(tenant, "SELECT number FROM orders_order ORDER BY 1") == [("a",), ("b",), ("d",)]


def alter_field(order: Any, apps: Any, kept: Kept) -> Any:
    field = order._meta.get_field("changed_at")
    found, field.auto_now = field.auto_now, False
    return found


def alter_options(order: Any, apps: Any, kept: Kept) -> Any:
    found, order._meta.ordering = list(order._meta.ordering), ["number"]
    return found


def extend_list(order: Any, apps: Any, kept: Kept) -> Any:
    found = len(order._meta.constraints)
    order._meta.constraints.append(models.UniqueConstraint(fields=["number"], name="one"))
    return found


def add_method(order: Any, apps: Any, kept: Kept) -> Any:
    found = hasattr(order, "shout")
    order.shout = lambda self: self.number.upper()
    return found


def replace_method(order: Any, apps: Any, kept: Kept) -> Any:
    found = order.save.__qualname__
    order.save = alter_field
    return found


def remove_manager(order: Any, apps: Any, kept: Kept) -> Any:
    found = hasattr(order, "objects")
    if found:
        del order.objects
    return found


def declare_model(order: Any, apps: Any, kept: Kept) -> Any:
    found = [model.__name__ for model in apps.get_models()]
    fields = {"order": models.ForeignKey(order, models.CASCADE, related_name="lines")}
    meta = type("Meta", (), {"apps": order._meta.apps, "app_label": "orders"})
    type("Line", (models.Model,), {"__module__": __name__, "Meta": meta, **fields})
    return found


def remember_by_model(order: Any, apps: Any, kept: Kept) -> Any:
    """As `functools.cache` does."""
    found = order in kept
    kept.append(order)
    return found


def remember_by_registry(order: Any, apps: Any, kept: Kept) -> Any:
    found = apps in kept
    kept.append(apps)
    return found


def keep_instance(order: Any, apps: Any, kept: Kept) -> Any:
    found = any(isinstance(each, order) for each in kept)
    kept.append(order(number="a"))
    return found


def keep_queryset(order: Any, apps: Any, kept: Kept) -> Any:
    found = any(each.model is order for each in kept)
    kept.append(order.objects.all())
    return found


@pytest.mark.parametrize(
    "act",
    [
        alter_field,
        alter_options,
        extend_list,
        add_method,
        replace_method,
        remove_manager,
        declare_model,
        remember_by_model,
        remember_by_registry,
        keep_instance,
        keep_queryset,
    ],
)
def test_code__finds_nothing_that_it_did_for_another_tenant(
    make_tenant: MakeTenant, code: Code, act: Callable[[Any, Any, Kept], Any]
) -> None:
    kept: Kept = []
    found = []

    def run(apps: Any, editor: Any) -> None:
        found.append(act(apps.get_model("orders", "Order"), apps, kept))

    code(m2=migration("m2", migrations.RunPython(run)))
    assert [migrate(make_tenant(f"t{number}")).state for number in range(5)] == ["succeeded"] * 5
    assert found == [found[0]] * 5


def test_answers__that_are_kept_by_registry_are_each_tenants_own(make_tenant: MakeTenant, code: Code) -> None:
    @cache
    def first_number(apps: Any) -> str:
        return str(apps.get_model("orders", "Order").objects.get().number)

    found = []
    code(m2=migration("m2", migrations.RunPython(lambda apps, editor: found.append(first_number(apps)))))
    tenants = standing_at_first(make_tenant, 5)
    for tenant in tenants:
        query(tenant, f"INSERT INTO orders_order (number, changed_at) VALUES ('{tenant.tenant_id}', now()) RETURNING 1")
        assert migrate(tenant).state == "succeeded"
    assert found == [tenant.tenant_id for tenant in tenants]


class Numbering(models.Manager[Any]):
    use_in_migrations = True

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, dict[int, int]] = {"orders": {0: 0}}

    def next(self) -> int:
        given = self.given["orders"]
        given[len(given)] = 0
        return len(given)


def test_managers__of_the_projects_own_are_made_for_each_tenant(make_tenant: MakeTenant, code: Code) -> None:
    found = []
    code(
        m2=migration("m2", migrations.AlterModelManagers("Order", [("objects", Numbering())])),
        m3=migration(
            "m3",
            migrations.RunPython(
                lambda apps, editor: found.append(apps.get_model("orders", "Order").objects.given is not None)
            ),
            after="m2",
        ),
    )
    tenants = standing_at_first(make_tenant, 4)
    assert [migrate(tenant).state for tenant in tenants[:3]] == ["succeeded"] * 3
    with registries() as rendered:
        assert migrate(tenants[3]).state == "succeeded"
    assert rendered
    assert found == [True] * 4


def test_failure__of_one_tenants_code_leaves_the_next_one_models_of_its_own(
    make_tenant: MakeTenant, code: Code
) -> None:
    found = []

    def run(apps: Any, editor: Any) -> None:
        order = apps.get_model("orders", "Order")
        found.append(order._meta.get_field("changed_at").auto_now)
        order._meta.get_field("changed_at").auto_now = False
        assert not order.objects.exists(), "There are orders."

    code(m2=migration("m2", migrations.RunPython(run)), m3=migration("m3", add_field("total"), after="m2"))
    tenants = standing_at_first(make_tenant, 4)
    for tenant in tenants[1:3]:
        query(tenant, "INSERT INTO orders_order (number, changed_at) VALUES ('a', now()) RETURNING 1")
    assert [migrate(tenant).state for tenant in tenants] == ["succeeded", "failed", "failed", "succeeded"]
    assert found == [True] * 4


class Seed(migrations.RunPython):
    """As some packages have it: another way to write RunPython, and no other way to run it."""

    def __init__(self) -> None:
        super().__init__(self.seed)

    def seed(self, apps: Any, editor: Any) -> None:
        apps.get_model("orders", "Order").objects.create(number="a")


def test_code__by_another_name_is_lent_its_models(make_tenant: MakeTenant, code: Code) -> None:
    code(m2=migration("m2", Seed()))
    tenants = standing_at_first(make_tenant, 3)
    assert [migrate(tenant).state for tenant in tenants[:2]] == ["succeeded"] * 2
    with registries() as rendered:
        assert migrate(tenants[2]).state == "succeeded"
    assert not rendered
    assert [query(tenant, "SELECT number FROM orders_order") for tenant in tenants] == [[("a",)]] * 3
