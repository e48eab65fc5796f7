"""A tenant that is copied from a template is indistinguishable from one that stock Django migrated."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings as configured
from psycopg2 import sql

from migrations_api.executor import Options
from migrations_api.models import AppliedSet, MigrationRun, RequestedVia, TenantTemplate
from migrations_api.orchestrator import sources
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.states import RunState
from tenants.models import Isolation, Tenant
from tests import catalog, stock
from tests.http_api import carry_out
from tests.test_invariant import everything_else, let_stock_try_again, Migrate, snapshot

MakeTenant = Callable[..., Tenant]
SHOP = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "examples.shop.users",
    "examples.shop.products",
    "examples.shop.orders",
    "examples.shop.plans",
]
CONTRIB = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.admin",
    "django.contrib.sessions",
    "django.contrib.sites",
]
NAMED = {"template_data": ["users", "products", "orders", "plans.0002_seed_plans"]}


@pytest.fixture(autouse=True)
def _sources() -> Iterator[None]:
    yield
    sources._load.cache_clear()


@pytest.fixture
def shop(settings: Any) -> None:
    settings.TENANT_APPS = SHOP
    settings.TENANT_MIGRATIONS = {**configured.TENANT_MIGRATIONS, **NAMED}


def copy(tenant: Tenant) -> MigrationRun:
    return carry_out(request_run(tenant, Request(options=Options(template=True), via=RequestedVia.API)).pk)


def copied(run: MigrationRun) -> bool:
    assert run.state == RunState.SUCCEEDED, run.message
    return not any(finding["code"] == "not_copied" for finding in run.findings)


def why_not(run: MigrationRun) -> str:
    assert run.state == RunState.SUCCEEDED, run.message
    return "".join(finding["detail"] for finding in run.findings if finding["code"] == "not_copied")


@functools.cache
def stock_snapshot(*apps: str) -> dict[str, Any]:
    name = f"twin{stock_snapshot.cache_info().misses}_templates_{configured.SUFFIX}"
    database = {**configured.TENANT_DATABASES["shop"], "NAME": name}
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
    catalog.query(catalog.dsn(configured.DATABASES["default"]), statement)
    stock.migrate(database, "public", list(apps), "--skip-checks")
    return snapshot(catalog.dsn(database), "public")


@pytest.mark.parametrize("isolation", [Isolation.SCHEMA, Isolation.DATABASE])
@pytest.mark.parametrize("apps", [SHOP, CONTRIB], ids=["shop", "contrib"])
def test_copy__leaves_what_stock_django_leaves(
    isolation: str, apps: list[str], shop: None, make_tenant: MakeTenant, settings: Any
) -> None:
    settings.INSTALLED_APPS = list(dict.fromkeys([*apps, *settings.INSTALLED_APPS]))
    settings.TENANT_APPS = apps
    expected = stock_snapshot(*apps)
    first, second = make_tenant("acme", isolation), make_tenant("globex", isolation)
    outside = everything_else(first)

    assert copied(copy(first)), why_not(MigrationRun.objects.get())
    assert copied(copy(second))

    assert TenantTemplate.objects.get().content is not None
    for tenant in (first, second):
        assert snapshot(catalog.tenant_dsn(tenant), tenant.schema_name) == expected
    if isolation == Isolation.DATABASE:
        assert everything_else(first) == outside
