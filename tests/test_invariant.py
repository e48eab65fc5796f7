"""After a run, a tenant is indistinguishable from one that stock Django migrated, and nothing else has changed."""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.conf import settings as configured
from django.core.management import call_command
from psycopg2 import sql

from migrations_api.orchestrator import sources
from tenants.backends import backend_for
from tenants.models import Tenant
from tests import catalog, stock

APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "examples.shop.users",
    "examples.shop.products",
    "examples.shop.orders",
    "examples.shop.plans",
]


@dataclass(frozen=True)
class Migrate:
    """One call of `migrate`, with what MIGRATION_MODULES has at that time."""

    arguments: tuple[str, ...] = ()
    modules: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Sql:
    """What somebody does to the tenant between two migrations."""

    statements: str


MakeTenant = Callable[..., Tenant]
Steps = tuple[Migrate | Sql, ...]

ALL = Migrate()
SQUASHED = (("products", "tests.broken.products_squashed"),)
UNMIGRATED = (("plans", None),)
OLD_DATA = Sql(
    "INSERT INTO users_user (email, first_name, last_name, created_at) VALUES"
    " ('ada@example.com', 'Ada', 'Lovelace', now()), ('bob@example.com', 'Bob', '', now());"
    "INSERT INTO products_product (sku, name, price, category_id) SELECT 'b-1', 'Book', 10, max(id)"
    " FROM products_category;"
    "INSERT INTO orders_order (status, placed_at, user_id) SELECT 'paid', now(), id FROM users_user;"
    "INSERT INTO orders_orderline (quantity, unit_price, order_id, product_id)"
    " SELECT 3, 2.50, o.id, p.id FROM orders_order o, products_product p"
)
# Each step is compared with stock Django's, so that one history tests several rules.
HISTORIES: dict[str, Steps] = {
    "forwards": (ALL, ALL),
    "one_app": (Migrate(("products",)), ALL),
    "middle": (Migrate(("orders", "0003")), Migrate(("orders", "0002")), ALL, Migrate(("products", "0003"))),
    "zero": (ALL, Migrate(("users", "zero")), ALL),
    "zero_of_all": (
        ALL,
        *[Migrate((app, "zero")) for app in ("plans", "orders", "products", "users", "auth", "contenttypes")],
    ),
    "data": (Migrate(("orders", "0002")), Migrate(("products", "0002")), OLD_DATA, ALL, Migrate(("users", "0002"))),
    "fake": (Migrate(("auth",)), Migrate(("--fake",)), ALL),
    "fake_to_middle": (Migrate(("orders", "0003", "--fake")),),
    "fake_backwards": (ALL, Migrate(("orders", "0002", "--fake"))),
    "fake_initial": (Migrate(("orders", "0001")), Sql("DELETE FROM django_migrations"), Migrate(("--fake-initial",))),
    "fake_initial_of_nothing": (Migrate(("--fake-initial",)),),
    "run_syncdb": (Migrate((), UNMIGRATED), Migrate(("--run-syncdb",), UNMIGRATED)),
    "run_syncdb_twice": (Migrate(("--run-syncdb",), UNMIGRATED), Migrate(("--run-syncdb",), UNMIGRATED)),
    "prune": (
        ALL,
        Sql("INSERT INTO django_migrations (app, name, applied) VALUES ('products', '0099_gone', now())"),
        Migrate(("products", "--prune")),
    ),
    "squashed": (Migrate((), SQUASHED), Migrate(("products", "zero"), SQUASHED)),
    "squashed_when_all_is_applied": (ALL, Migrate((), SQUASHED)),
    "squashed_when_some_is_applied": (Migrate(("products", "0003")), Migrate((), SQUASHED)),
}


@pytest.fixture(autouse=True)
def _tenant_apps(settings: Any) -> Iterator[None]:
    settings.TENANT_APPS = APPS
    yield
    sources._load.cache_clear()


@pytest.mark.parametrize("history", HISTORIES)
def test_run__leaves_what_stock_django_leaves(tenant: Tenant, history: str, settings: Any) -> None:
    steps = HISTORIES[history]
    outside = everything_else(tenant)

    for count, step in enumerate(steps, 1):
        carry_out(tenant, step, settings)
        left = snapshot(catalog.tenant_dsn(tenant), tenant.schema_name)
        assert left == stock_snapshot(steps[:count])

    assert everything_else(tenant) == outside
    let_stock_try_again(tenant, steps[-1])
    assert snapshot(catalog.tenant_dsn(tenant), tenant.schema_name) == left


@pytest.mark.parametrize("history", HISTORIES)
def test_run__that_follows_another_tenants_leaves_the_same(
    make_tenant: MakeTenant, history: str, settings: Any, caplog: Any
) -> None:
    """The first of those that stand at one place is migrated in Django's own way, the others by what that has shown.

    The second one's statements are held against the first one's; the third is sent what both have agreed on.
    """
    tenants = [make_tenant(name) for name in ("first", "second", "third")]
    for count, step in enumerate(HISTORIES[history], 1):
        for tenant in tenants:
            carry_out(tenant, step, settings)
        for tenant in tenants[1:]:
            left = snapshot(catalog.tenant_dsn(tenant), tenant.schema_name)
            assert left == stock_snapshot(HISTORIES[history][:count])
    assert "is not what it was for other tenants" not in caplog.text


def carry_out(tenant: Tenant, step: Migrate | Sql, settings: Any) -> None:
    if isinstance(step, Sql):
        execute(catalog.tenant_dsn(tenant), tenant.schema_name, step)
        return
    settings.MIGRATION_MODULES = dict(step.modules)
    call_command("migratetenant", f"--tenant-id={tenant.tenant_id}", *step.arguments, verbosity=0)


@functools.cache
def stock_snapshot(steps: Steps) -> dict[str, Any]:
    return snapshot(catalog.dsn(twin(steps)), "public")


@functools.cache
def twin(steps: Steps) -> dict[str, Any]:
    """A database that stock Django took through `steps`: a copy of the one for all steps but the last."""
    name = f"twin{twin.cache_info().misses}_{configured.SUFFIX}"
    database = {**configured.TENANT_DATABASES["shop"], "NAME": name}
    before = twin(steps[:-1])["NAME"] if steps else "template0"
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(before))
    catalog.query(catalog.dsn(configured.DATABASES["default"]), statement)
    if steps and isinstance(steps[-1], Sql):
        execute(catalog.dsn(database), "public", steps[-1])
    elif steps:
        stock.migrate(database, "public", APPS, *steps[-1].arguments, modules=dict(steps[-1].modules))
    return database


def execute(arguments: dict[str, Any], schema: str, step: Sql) -> None:
    path = sql.SQL("SET search_path TO {}; ").format(sql.Identifier(schema))
    catalog.query(arguments, path + sql.SQL(step.statements))


def snapshot(arguments: dict[str, Any], schema: str) -> dict[str, Any]:
    """All that can be told of a schema, but for its name and the time of day."""
    sequences = "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = %s ORDER BY 1"
    return {
        "migrations": catalog.migrations(arguments, schema),
        "rows": catalog.rows(arguments, schema),
        "sequences": catalog.query(arguments, sequences, [schema]),
        # How many empty lines there are depends on whether the schema is `public`.
        "dump": [line for line in catalog.dump(arguments, schema).splitlines() if line],
    }


def everything_else(tenant: Tenant) -> list[Any]:
    """The databases that are there, and what is in the tenant's own, the server's and the control plane's."""
    plane = [
        item
        for item in catalog.fingerprint(catalog.dsn(configured.DATABASES["default"]))
        if not (len(item) == 3 and item[1].startswith("migrations_api_"))
    ]
    schema_of_shop = "" if tenant.database_name else tenant.schema_name
    twins = re.compile(r"twin\d+_")
    return [
        {name for name in catalog.databases() if not twins.match(name)},
        catalog.fingerprint(catalog.tenant_dsn(tenant), without=tenant.schema_name),
        catalog.fingerprint(catalog.dsn(configured.TENANT_DATABASES["shop"]), without=schema_of_shop),
        plane,
    ]


AGAIN = """
from django.core.management import call_command
call_command("migrate", *{target}, check_unapplied=True, verbosity=0)
call_command("migrate", *{target}, verbosity=0)
"""


def let_stock_try_again(tenant: Tenant, last: Migrate | Sql) -> None:
    """Stock Django finds nothing to do on our tenant, or `migrate --check` would end its process with 1."""
    assert isinstance(last, Migrate)
    target = [] if "--prune" in last.arguments else [word for word in last.arguments if not word.startswith("--")]
    database = backend_for(tenant).connection_settings(tenant)
    shell = ["shell", "--no-imports", "-c", AGAIN.format(target=target)]
    result = stock.manage(database, tenant.schema_name, APPS, *shell, modules=dict(last.modules))
    assert result.returncode == 0, result.stdout + result.stderr
