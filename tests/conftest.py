from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings
from django.contrib.admin import site
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.servers.basehttp import WSGIServer
from psycopg2 import sql
from rest_framework.test import APIClient

from migrations_api.executor import repertoire
from migrations_api.models import ApiToken, Role
from migrations_api.orchestrator import sources
from tenants.backends import backend_for
from tenants.kept import close_kept
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant
from tests import catalog, small_app, soak

# Those who ask at the same time stand in line before Django's own server, and are not turned away.
WSGIServer.request_queue_size = 128


def pytest_unconfigure(config: pytest.Config) -> None:
    if getattr(settings, "TEST_SERVER", None):
        settings.TEST_SERVER.destroy()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What a soak has measured, beside what it was to be."""
    if not soak.IS_WHOLE:
        return
    terminalreporter.section("measured")
    terminalreporter.line(f"{'goal':44} {'figure':28} measured")
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for goal, told in report.user_properties:
            figure, found = told if isinstance(told, list) else ("", told)
            terminalreporter.line(f"{goal:44} {figure:28} {found}")


@pytest.fixture(autouse=True)
def admin_as_it_was() -> Iterator[None]:
    """An app that only one test installs registers its models with the admin for all that follow."""
    before = dict(site._registry)
    yield
    site._registry = before


@pytest.fixture(autouse=True)
def watches_end() -> Iterator[None]:
    """What a process keeps for the next run would keep a test's databases from being dropped."""
    yield
    close_kept()


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """The control plane's name stays as it is: a worker of pytest-xdist has a suffix already."""


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """The server `shop` beside the control plane, and nothing left behind on either."""
    server = catalog.dsn({**settings.DATABASES["default"], "NAME": "postgres"})
    catalog.query(server, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(settings.SHOP)))
    yield
    mine = "SELECT datname FROM pg_database WHERE datname ~* %s"
    for (name,) in catalog.query(server, mine, [catalog.of_this_run()]):
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


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What tenants share in this process begins and ends with the test."""
    repertoire.clear()
    yield
    repertoire.clear()


@pytest.fixture
def code(forgotten: None, monkeypatch: pytest.MonkeyPatch, settings: Any) -> small_app.Code:
    """Have the tenants' only app consist of the first migration and those."""

    def is_now(**kinds: Any) -> None:
        settings.TENANT_APPS = [small_app.APP]
        source = small_app.source_of({"0001_initial": small_app.First, **kinds})
        monkeypatch.setattr(sources, "_load", lambda *key: source)

    return is_now


@pytest.fixture
def roles(db: None) -> None:
    """The groups that a migration makes, and that a test with real commits leaves truncated."""
    for role in Role:
        Group.objects.get_or_create(name=role)


@pytest.fixture
def token_of(roles: None) -> Callable[..., tuple[ApiToken, str]]:
    """A new token and its key, of the user who is called like the role and has just that role."""

    def make(role: str, **values: Any) -> tuple[ApiToken, str]:
        user, _ = get_user_model().objects.get_or_create(username=role)
        user.groups.add(Group.objects.get(name=role))
        return ApiToken.objects.create_key(**{"user": user, "name": role, "scope": role, **values})

    return make


@pytest.fixture
def client_of(token_of: Callable[..., tuple[ApiToken, str]]) -> Callable[[str | None], APIClient]:
    """A client with a bearer token: client_of("operator"); client_of(None) is nobody."""

    def make(role: str | None) -> APIClient:
        client = APIClient()
        if role is not None:
            client.credentials(HTTP_AUTHORIZATION=f"Bearer {token_of(role)[1]}")
        return client

    return make


@pytest.fixture
def viewer(client_of: Callable[[str | None], APIClient]) -> APIClient:
    return client_of("viewer")


@pytest.fixture
def operator(client_of: Callable[[str | None], APIClient]) -> APIClient:
    return client_of("operator")


@pytest.fixture
def admin(client_of: Callable[[str | None], APIClient]) -> APIClient:
    return client_of("admin")
