import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import django
import pytest
from django.db.migrations.exceptions import InconsistentMigrationHistory, NodeNotFoundError
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from migrations_api import exceptions
from migrations_api.orchestrator import sources
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import (
    Applied,
    Key,
    Plan,
    Target,
    check_target,
    fingerprint,
    full_order,
    make_plan,
    prunable,
    require_reversible,
)
from tenants.models import Isolation

SHOP = {"users": 5, "products": 5, "orders": 5}
REPLACED = [
    ("products", "0001_initial"),
    ("products", "0002_seed_categories"),
    ("products", "0003_price_check"),
    ("products", "0004_labels"),
    ("products", "0005_label_to_tag"),
]
SQUASHED = ("products", "0001_squashed_0005_label_to_tag")
Choose = Callable[..., None]


def plan_from(applied: Any = (), app_label: str | None = None, name: str | None = None) -> Plan:
    target = Target(app_label=app_label, migration_name=name)
    return make_plan(source_for(Isolation.SCHEMA), frozenset(applied), target)


def steps(plan: Plan) -> list[tuple[Key, bool]]:
    return [((step.app_label, step.name), step.backwards) for step in plan.steps]


def everything() -> list[Key]:
    return full_order(plan_from().loader)


def until(app_label: str, name: str) -> list[Key]:
    """What an empty tenant has after being migrated to that migration."""
    return [key for key, _ in steps(plan_from((), app_label, name))]


def django_steps(applied: Applied, target: Target) -> list[tuple[Key, bool]]:
    """What Django's own `migrate` would plan, with `applied` as the rows of django_migrations."""
    connection: Any = SimpleNamespace(alias="default")
    with patch.object(MigrationRecorder, "applied_migrations", lambda self: dict.fromkeys(applied)):
        executor = MigrationExecutor(connection)
        loader = executor.loader
        loader.check_consistent_history(connection)
        leaves = [key for key in loader.graph.leaf_nodes() if key[0] in SHOP]
        if target.app_label is None:
            targets: list[Any] = leaves
        elif target.migration_name is None:
            targets = [key for key in leaves if key[0] == target.app_label]
        elif target.migration_name == "zero":
            targets = [(target.app_label, None)]
        else:
            found = (target.app_label, loader.get_migration_by_prefix(target.app_label, target.migration_name).name)
            if found not in loader.graph.nodes and found in loader.replacements:
                found = loader.replacements[found].replaces[-1]
            targets = [found]
        plan = executor.migration_plan(targets)
        return [((migration.app_label, migration.name), backwards) for migration, backwards in plan]


def our_steps(applied: Applied, target: Target) -> list[tuple[Key, bool]] | type[Exception]:
    try:
        return steps(make_plan(source_for(Isolation.SCHEMA), applied, target))
    except exceptions.InconsistentHistory:
        return InconsistentMigrationHistory
    except (exceptions.UnloadableMigrations, exceptions.UnknownMigration):
        return NodeNotFoundError


@pytest.mark.parametrize(
    "package",
    ["", "products_squashed", "products_squashed_only", "products_run_before"],
    ids=lambda name: name or "shop",
)
@hypothesis_settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=strategies.data())
def test_plan__is_the_one_of_django_from_any_applied_set(package: str, broken: Choose, data: Any) -> None:
    broken(**({"products": package} if package else {}))
    on_disk = sorted(source_for(Isolation.SCHEMA).migrations)
    rows = sorted({*on_disk, *REPLACED})
    # A chain per app, as tenants have it, from which single rows are missing or to which some are added.
    chain = [
        key
        for app in SHOP
        for key in [row for row in rows if row[0] == app][: data.draw(strategies.integers(0, 7), label=app)]
    ]
    stray = data.draw(strategies.lists(strategies.sampled_from(rows), max_size=2), label="stray")
    applied = frozenset(chain) ^ frozenset(stray)
    targets = [Target(), *(Target(app_label=app) for app in SHOP)]
    targets += [Target(app_label=app, migration_name="zero") for app in SHOP]
    targets += [Target(app_label=app, migration_name=name) for app, name in on_disk]
    target = data.draw(strategies.sampled_from(targets), label="target")
    try:
        expected: Any = django_steps(applied, target)
    except (InconsistentMigrationHistory, NodeNotFoundError) as error:
        expected = type(error)
    assert our_steps(applied, target) == expected


def test_plan__of_an_empty_tenant_has_every_migration_after_its_dependencies() -> None:
    plan = plan_from()
    order = [key for key, _ in steps(plan)]
    assert set(order) == set(source_for(Isolation.SCHEMA).migrations)
    for migration, _ in plan.migrations:
        place = order.index((migration.app_label, migration.name))
        assert all(order.index((app, name)) < place for app, name in migration.dependencies)


def test_plan__of_an_up_to_date_tenant_is_empty() -> None:
    assert steps(plan_from(everything())) == []


def test_plan__undoes_what_depends_on_it_first() -> None:
    undone = steps(plan_from(everything(), "users", "zero"))
    assert all(backwards for _, backwards in undone)
    assert undone.index((("orders", "0001_initial"), True)) < undone.index((("users", "0001_initial"), True))
    assert not any(key[0] == "products" for key, _ in undone)


def test_plan__to_a_middle_target_undoes_only_its_children() -> None:
    assert steps(plan_from(everything(), "products", "0003")) == [
        (("products", "0005_label_to_tag"), True),
        (("products", "0004_labels"), True),
    ]


def test_plan__of_a_squashed_migration_fresh(broken: Choose) -> None:
    broken(products="products_squashed")
    products = [key for key, _ in steps(plan_from()) if key[0] == "products"]
    assert products == [SQUASHED]


def test_plan__of_a_squashed_migration_partly_applied(broken: Choose) -> None:
    broken(products="products_squashed")
    plan = plan_from(REPLACED[:2], "products")
    assert [key for key, _ in steps(plan)] == REPLACED[2:]
    assert plan.replacements == ()


def test_plan__of_a_squashed_migration_wholly_applied(broken: Choose) -> None:
    broken(products="products_squashed")
    plan = plan_from(REPLACED, "products")
    assert steps(plan) == []
    assert plan.replacements == (SQUASHED,)
    assert plan_from([*REPLACED, SQUASHED], "products").replacements == ()


def test_plan__of_a_squashed_migration_whose_parts_are_gone(broken: Choose) -> None:
    broken(products="products_squashed_only")
    assert plan_from(REPLACED).unknown == ()
    with pytest.raises(exceptions.UnloadableMigrations, match="products"):
        plan_from(REPLACED[:2])


def test_plan__of_a_replaced_migration_that_the_tenant_does_not_have(broken: Choose) -> None:
    broken(products="products_squashed")
    check_target(source_for(Isolation.SCHEMA), Target(app_label="products", migration_name="0003"))
    if django.VERSION >= (6, 1):
        assert len(steps(plan_from((), "products", "0003"))) == 3
    else:
        with pytest.raises(exceptions.UnknownMigration, match=r"0003_price_check is replaced by products\.0001_squash"):
            plan_from((), "products", "0003")
    assert len(steps(plan_from(REPLACED, "products", "0003"))) == 2


def test_plan__respects_run_before(broken: Choose) -> None:
    broken(products="products_run_before")
    order = everything()
    assert order.index(("products", "0006_supplier")) < order.index(("orders", "0001_initial"))


def test_plan__refuses_conflicts_by_name(broken: Choose) -> None:
    broken(orders="orders_conflict")
    with pytest.raises(exceptions.ConflictingMigrations, match=r"0003_channel, 0003_note in orders"):
        plan_from()


def test_plan__refuses_a_missing_dependency_by_name(broken: Choose) -> None:
    broken(orders="orders_missing_dependency")
    with pytest.raises(exceptions.UnloadableMigrations, match=r"users.*0099_missing"):
        plan_from()


def test_plan__refuses_an_inconsistent_history_by_name() -> None:
    with pytest.raises(
        exceptions.InconsistentHistory, match=r"users.0003_full_name is applied before its dependency users.0002"
    ):
        plan_from([("users", "0001_initial"), ("users", "0003_full_name")])


def test_plan__names_unknown_applied_migrations() -> None:
    plan = plan_from([*everything(), ("users", "0099_future")])
    assert plan.unknown == ("users.0099_future",)
    assert steps(plan) == []


def test_plan__leaves_rows_of_other_apps_out_of_account() -> None:
    with_others = plan_from([*until("users", "0002"), ("auth", "0001_initial"), ("elsewhere", "0001")])
    assert with_others.unknown == ()
    assert with_others.digest == plan_from(until("users", "0002")).digest


@pytest.mark.parametrize(
    ("app_label", "name", "error", "message"),
    [
        ("nowhere", None, exceptions.UnknownApp, "'nowhere' is not installed; choose from: orders, products, users"),
        ("auth", None, exceptions.UnknownApp, "'auth' is not one of the tenant's apps"),
        ("plans", None, exceptions.UnknownApp, "'plans' is not one of the tenant's apps"),
        ("users", "0099", exceptions.UnknownMigration, "matching '0099' from app 'users'"),
        ("users", "000", exceptions.AmbiguousMigration, "More than one migration matches '000' in app 'users'"),
        (None, "0001", exceptions.UnknownMigration, "'0001' needs the label of its app"),
    ],
)
def test_target__refused(app_label: str | None, name: str | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_target(source_for(Isolation.SCHEMA), Target(app_label=app_label, migration_name=name))


@pytest.mark.parametrize("name", ["0002", "0002_email", "0002_email_unique"])
def test_target__a_prefix_that_only_one_migration_has(name: str) -> None:
    assert plan_from((), "users", name).nodes == (("users", "0002_email_unique"),)


def test_target__zero_of_an_app_of_which_nothing_is_applied() -> None:
    assert steps(plan_from((), "orders", "zero")) == []


def test_target__app_without_migrations(settings: Any) -> None:
    settings.MIGRATION_MODULES = {"orders": None}
    assert "orders" in plan_from().unmigrated_apps
    assert {key[0] for key in everything()} == {"users", "products"}
    with pytest.raises(exceptions.AppWithoutMigrations, match="App 'orders' does not have migrations"):
        plan_from((), "orders")


@pytest.fixture
def orders_alone(settings: Any) -> Iterator[Any]:
    """A project whose tenants get `orders`, though it depends on `users` and `products`."""
    settings.TENANT_APPS = ["examples.shop.orders"]
    yield settings
    sources._load.cache_clear()


def test_outside__apps_that_a_tenant_does_not_receive_are_refused_by_name(orders_alone: Any) -> None:
    with pytest.raises(exceptions.UnloadableMigrations, match=r"orders\.0001_initial depends on users") as caught:
        plan_from()
    assert "depends on products" in caught.value.message
    assert "extra_search_path" in caught.value.message


def test_outside__apps_that_another_schema_holds_count_as_applied(orders_alone: Any) -> None:
    orders_alone.TENANT_MIGRATIONS = {"extra_search_path": ("public",)}
    plan = plan_from()
    assert {key[0] for key, _ in steps(plan)} == {"orders"}
    assert plan.applied == frozenset()
    assert steps(plan_from([key for key, _ in steps(plan)])) == []
    with pytest.raises(exceptions.UnknownApp):
        plan_from((), "users")


def test_outside__apps_that_no_tenant_needs_are_not_read(settings: Any) -> None:
    settings.MIGRATION_MODULES = {"sessions": "gone.migrations"}
    assert steps(plan_from())


@pytest.fixture
def orders_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Callable[[str], None]]:
    """Replace the migrations of `orders` by one file of that text."""
    name = f"migrations_of_{tmp_path.name}".replace("-", "_")
    package = tmp_path / name
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    settings.MIGRATION_MODULES = {"orders": name}

    def write(text: str) -> None:
        (package / "__init__.py").write_text("")
        (package / "0001_initial.py").write_text(text)
        for module in [module for module in sys.modules if module.startswith(name)]:
            del sys.modules[module]
        sources._load.cache_clear()

    yield write
    sources._load.cache_clear()


EMPTY_MIGRATION = "from django.db import migrations\n\nclass Migration(migrations.Migration):\n    pass\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import a_module_that_is_nowhere", "a_module_that_is_nowhere"),
        ("class Migration(:", "SyntaxError"),
        ("nothing = 1", "no Migration class"),
        ("raise RuntimeError('not today')", "not today"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_source__a_file_that_cannot_be_imported(orders_package: Callable[[str], None], text: str, reason: str) -> None:
    orders_package(text)
    with pytest.raises(exceptions.UnloadableMigrations, match=reason):
        plan_from()


def test_digest__changes_with_the_applied_set_and_the_target() -> None:
    plans = [
        plan_from(),
        plan_from(until("users", "0001")),
        plan_from((), "users"),
        plan_from((), "users", "0002"),
        plan_from(everything(), "users", "zero"),
        plan_from(everything()),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)
    assert plan_from().digest == plan_from().digest


def test_digest__changes_with_the_content_of_a_file(orders_package: Callable[[str], None]) -> None:
    orders_package(EMPTY_MIGRATION)
    before = plan_from()
    orders_package(EMPTY_MIGRATION + "    # edited\n")
    assert steps(plan_from()) == steps(before)
    assert plan_from().digest != before.digest


def test_digest__is_the_same_in_every_process() -> None:
    code = (
        "import django; django.setup();"
        "from migrations_api.orchestrator.sources import source_for; from migrations_api.plan import *;"
        "print(make_plan(source_for('schema'), frozenset([('users', '0001_initial')]), Target()).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {plan_from([("users", "0001_initial")]).digest}


def test_fingerprint__depends_on_the_set_alone() -> None:
    keys = everything()
    assert fingerprint(keys) == fingerprint(reversed(keys)) == fingerprint(frozenset(keys))
    assert fingerprint(keys) != fingerprint(keys[1:])
    assert fingerprint([("a", "b")]) != fingerprint([("b", "a")])


def test_full_order__holds_each_migration_once_whatever_is_applied() -> None:
    orders = [full_order(plan_from(applied).loader) for applied in (everything(), frozenset())]
    assert orders[0] == orders[1] == [key for key, _ in steps(plan_from())]


def test_require_reversible__names_every_blocked_step(broken: Choose) -> None:
    broken(orders="orders_irreversible")
    applied = everything()
    with pytest.raises(exceptions.IrreversibleMigration, match=r"orders\.0003_ship_paid"):
        require_reversible(plan_from(applied, "orders", "zero"))
    require_reversible(plan_from((), "orders"))


def test_prunable__what_is_gone_from_disk() -> None:
    plan = plan_from([*everything(), ("users", "0099_gone"), ("orders", "0098_gone")], "users")
    assert prunable(plan, source_for(Isolation.SCHEMA), "users") == [("users", "0099_gone")]


def test_prunable__not_while_a_squashed_migration_needs_the_rows(broken: Choose) -> None:
    broken(products="products_squashed_only")
    with pytest.raises(exceptions.CannotPrune, match=r"products\.0001_squashed_0005_label_to_tag"):
        prunable(plan_from(REPLACED, "products"), source_for(Isolation.SCHEMA), "products")
