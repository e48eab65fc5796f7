from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings
from psycopg2 import sql

from migrations_api.orchestrator import sources
from tenants.backends import backend_for
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant
from tests import catalog


def pytest_unconfigure(config: pytest.Config) -> None:
    if getattr(settings, "TEST_SERVER", None):
        settings.TEST_SERVER.destroy()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """The server `shop` beside the control plane, and nothing left behind on either."""
    server = catalog.dsn({**settings.DATABASES["default"], "NAME": "postgres"})
    catalog.query(server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(settings.SHOP)))
    yield
    mine = f"%{settings.SUFFIX}%"
    for (name,) in catalog.query(server, "SELECT datname FROM pg_database WHERE datname LIKE %s", [mine]):
        if name != settings.DATABASES["default"]["NAME"]:
            catalog.query(server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def plane(transactional_db: None) -> None:
    """The control plane, whose rows are really committed: other sessions and processes look at them."""


@pytest.fixture
def make_tenant(plane: None) -> Iterator[Callable[..., Tenant]]:
    """Create tenants on the server `shop`; what they have is dropped afterwards."""
    made: list[Tenant] = []

    def make(tenant_id: str = "acme", isolation: str = Isolation.SCHEMA, **values: Any) -> Tenant:
        given = {"name": tenant_id.title(), "database": "shop", **values}
        tenant = create_tenant(tenant_id=tenant_id, isolation=isolation, **given)
        made.append(tenant)
        return tenant

    yield make
    for tenant in made:
        if tenant.isolation == Isolation.SHARED:
            catalog.query(catalog.tenant_dsn(tenant), "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        else:
            backend_for(tenant).drop(tenant)


@pytest.fixture(params=[Isolation.SCHEMA, Isolation.DATABASE])
def tenant(request: pytest.FixtureRequest, make_tenant: Callable[..., Tenant]) -> Tenant:
    """An empty tenant, `acme`, once of each kind."""
    return make_tenant("acme", request.param)


@pytest.fixture
def broken(settings: Any) -> Iterator[Callable[..., None]]:
    """Choose broken migration packages: broken(orders="orders_conflict")."""

    def choose(**packages: str) -> None:
        settings.MIGRATION_MODULES = {app: f"tests.broken.{package}" for app, package in packages.items()}

    yield choose
    sources._load.cache_clear()
