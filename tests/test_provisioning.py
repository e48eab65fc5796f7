import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import IntegrityError, connections
from django.test import override_settings
from django.utils import timezone
from psycopg2 import sql

from migrations_api.exceptions import RunActive
from migrations_api.orchestrator.registration import forget
from migrations_api.orchestrator.requests import Request, request_run
from tenants import exceptions
from tenants.backends import backend_for
from tenants.backends.schema import SchemaBackend
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant, forget_tenant
from tests import catalog
from tests.processes import wait_until
from tests.roles import role

MakeTenant = Callable[..., Tenant]
KINDS = [Isolation.SCHEMA, Isolation.DATABASE]


def create(isolation: str = Isolation.SCHEMA, tenant_id: str = "acme", **values: Any) -> Tenant:
    return create_tenant(tenant_id=tenant_id, isolation=isolation, **{"name": "Acme", "database": "shop", **values})


def query(server: dict[str, Any], statement: str, *names: str) -> list[tuple[Any, ...]]:
    return catalog.query(catalog.dsn(server), sql.SQL(statement).format(*map(sql.Identifier, names)))


def homes() -> set[str]:
    """Every schema of the shop and every database of the server."""
    return catalog.schemas(catalog.dsn(django_settings.TENANT_DATABASES["shop"])) | catalog.databases()


def make_home(tenant: Tenant, statement: str = "") -> None:
    """What the service would make, made by somebody else."""
    backend_for(tenant).provision(tenant)
    if statement:
        query(backend_for(tenant).connection_settings(tenant), statement, tenant.schema_name)


@pytest.fixture
def home(plane: None) -> Iterator[Callable[[str], Tenant]]:
    """An unsaved tenant `acme` of that kind; whatever is at its home afterwards is dropped."""
    found = []

    def at_home(isolation: str) -> Tenant:
        found.append(Tenant.at_home(tenant_id="acme", isolation=isolation, name="Acme", database="shop"))
        return found[-1]

    yield at_home
    for tenant in found:
        backend_for(tenant).drop(tenant)


def test_create__makes_an_empty_home_and_a_row(make_tenant: MakeTenant) -> None:
    before = homes()
    schema = make_tenant("acme", Isolation.SCHEMA, labels={"plan": "pro"})
    database = make_tenant("globex", Isolation.DATABASE)

    assert homes() - before == {"public_acme", f"globex_{django_settings.SUFFIX}_db"}
    for tenant in (schema, database):
        assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == set()
        assert tenant.provisioned_at is not None
    assert list(Tenant.objects.values_list("tenant_id", "isolation", "database_name", "schema_name", "labels")) == [
        ("acme", "schema", "", "public_acme", {"plan": "pro"}),
        ("globex", "database", f"globex_{django_settings.SUFFIX}_db", "public", {}),
    ]


def test_create__shared_takes_the_schema_that_is_there(make_tenant: MakeTenant) -> None:
    shop = catalog.dsn(django_settings.TENANT_DATABASES["shop"])
    catalog.query(shop, "CREATE TABLE public.kept AS SELECT 7 AS answer")
    tenant = make_tenant("shared", Isolation.SHARED)
    assert tenant.provisioned_at is not None
    assert catalog.rows(shop, "public") == {"kept": [(7,)]}


def test_create__without_a_name_takes_the_id(make_tenant: MakeTenant) -> None:
    assert make_tenant("acme", name="").name == "acme"


@pytest.mark.parametrize("isolation", KINDS)
@pytest.mark.parametrize(
    "statement",
    [
        "",
        "CREATE TABLE {0}.kept AS SELECT 7 AS answer",
        "CREATE SEQUENCE {0}.kept",
        "CREATE VIEW {0}.kept AS SELECT 1 AS answer",
    ],
)
def test_create__home_that_is_there_already_is_left_as_it_is(
    home: Callable[[str], Tenant], isolation: str, statement: str
) -> None:
    stranger = home(isolation)
    make_home(stranger, statement)
    arguments = catalog.tenant_dsn(stranger)
    before = homes(), catalog.fingerprint(arguments), catalog.rows(arguments, stranger.schema_name)

    with pytest.raises(exceptions.AlreadyProvisioned, match="exists already on server 'shop' and was left as it is"):
        create(isolation)

    assert (homes(), catalog.fingerprint(arguments), catalog.rows(arguments, stranger.schema_name)) == before
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("isolation", KINDS)
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, exceptions.ServerUnreachable])
def test_create__that_is_stopped_after_it_made_the_home_takes_it_away(
    home: Callable[[str], Tenant], settings: Any, isolation: str, interruption: type[BaseException]
) -> None:
    watched = home(isolation)
    before = homes()
    resolver = StopOnce(watched, interruption)
    settings.TENANT_MIGRATIONS = {"connection_resolver": f"{__name__}.stop_once"}
    settings.STOP_ONCE = resolver

    with pytest.raises(interruption):
        create(isolation)

    assert resolver.stopped
    assert homes() == before
    assert not Tenant.objects.exists()


class StopOnce:
    """A team's own resolver that breaks the first time that the tenant's home is there."""

    def __init__(self, tenant: Tenant, interruption: type[BaseException]) -> None:
        self.name, self.interruption, self.stopped = tenant.database_name or tenant.schema_name, interruption, False

    def __call__(self, tenant: Tenant, server: dict[str, Any]) -> dict[str, Any]:
        if not self.stopped and self.name in homes():
            self.stopped = True
            raise self.interruption
        return server


def stop_once(tenant: Tenant, server: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = django_settings.STOP_ONCE(tenant, server)
    return result


def put_control_plane(tenant: Tenant, server: dict[str, Any]) -> dict[str, Any]:
    """A team's own resolver that puts a table that looks like a control plane's into the tenant's home."""
    if tenant.schema_name in homes():
        query(server, "CREATE TABLE IF NOT EXISTS {}.tenants_tenant ()", tenant.schema_name)
    return server


def test_create__whose_session_is_refused_takes_the_home_away(plane: None, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"connection_resolver": f"{__name__}.put_control_plane"}
    before = homes()

    with pytest.raises(exceptions.IsControlPlane, match="holds a control plane"):
        create()

    assert homes() == before
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("isolation", KINDS)
@pytest.mark.parametrize("made", [False, True])
def test_create__takes_over_what_a_killed_call_left(home: Callable[[str], Tenant], isolation: str, made: bool) -> None:
    left = home(isolation)
    left.save(force_insert=True)
    if made:
        make_home(left)

    tenant = create(isolation)

    assert tenant.provisioned_at is not None
    assert backend_for(tenant).exists(tenant)
    assert Tenant.objects.get() == tenant


@pytest.mark.parametrize("isolation", KINDS)
def test_create__takes_over_nothing_that_holds_a_table(home: Callable[[str], Tenant], isolation: str) -> None:
    left = home(isolation)
    left.save(force_insert=True)
    make_home(left, "CREATE TABLE {}.kept AS SELECT 7 AS answer")

    with pytest.raises(exceptions.AlreadyProvisioned):
        create(isolation)

    assert catalog.rows(catalog.tenant_dsn(left), left.schema_name) == {"kept": [(7,)]}
    assert Tenant.objects.get().provisioned_at is None


def test_create__takes_over_no_row_that_names_another_home(home: Callable[[str], Tenant], settings: Any) -> None:
    left = home(Isolation.SCHEMA)
    left.save(force_insert=True)
    settings.TENANT_SCHEMA_TEMPLATE = "other_{tenant_id}"
    before = homes()

    with pytest.raises(exceptions.TenantExists, match="Tenant 'acme' exists already"):
        create()

    assert homes() == before
    assert Tenant.objects.get().schema_name == "public_acme"


def test_create__without_provisioning_makes_a_row_alone(plane: None) -> None:
    before = homes()
    for number, isolation in enumerate(KINDS):
        tenant = create(isolation, f"acme-{number}", provision=False)
        assert Tenant.objects.get(pk=tenant.pk).provisioned_at is None
    assert homes() == before


@pytest.mark.parametrize("provision", [False, True])
@pytest.mark.parametrize("isolation", KINDS)
def test_create__an_id_that_is_taken(make_tenant: MakeTenant, provision: bool, isolation: str) -> None:
    make_tenant("acme", name="The first")
    before = homes()
    with pytest.raises(exceptions.TenantExists, match=r"^Tenant 'acme' exists already\.$"):
        create(isolation, name="The second", provision=provision)
    assert homes() == before
    assert Tenant.objects.get().name == "The first"


def test_create__registering_twice(plane: None) -> None:
    create(provision=False, name="The first")
    with pytest.raises(exceptions.TenantExists, match="Tenant 'acme' exists already"):
        create(provision=False, name="The second")
    assert Tenant.objects.get().name == "The first"


@pytest.mark.parametrize(("template", "tenant_id"), [("{tenant_id}", "public-acme"), ("Public-A{tenant_id}", "cme")])
def test_create__a_home_that_is_another_tenants_however_it_is_spelled(
    make_tenant: MakeTenant, settings: Any, template: str, tenant_id: str
) -> None:
    settings.TENANT_SCHEMA_TEMPLATE = "public-{tenant_id}"
    make_tenant("acme")
    settings.TENANT_SCHEMA_TEMPLATE = template
    before = homes()
    with pytest.raises(exceptions.TenantExists, match="on server 'shop' belongs to another tenant"):
        create(tenant_id=tenant_id)
    assert homes() == before
    assert Tenant.objects.count() == 1


def test_create__a_database_that_is_another_tenants_however_it_is_spelled(
    make_tenant: MakeTenant, settings: Any
) -> None:
    make_tenant("acme", Isolation.DATABASE)
    settings.TENANT_DATABASE_TEMPLATE = "A{tenant_id}_" + settings.SUFFIX + "_DB"
    with pytest.raises(exceptions.TenantExists, match="belongs to another tenant"):
        create(Isolation.DATABASE, "cme", provision=False)


def test_create__two_shared_tenants_of_one_server(make_tenant: MakeTenant) -> None:
    make_tenant("shared", Isolation.SHARED)
    with pytest.raises(exceptions.TenantExists, match="'public' on server 'shop' belongs to another tenant"):
        create(Isolation.SHARED, "again")


@pytest.mark.parametrize(
    ("tenant_id", "isolation"), [("Acme", "schema"), ("a_b", "schema"), ("a\n", "schema"), ("a", "x")]
)
def test_tenant__the_database_refuses_what_no_code_checked(plane: None, tenant_id: str, isolation: str) -> None:
    with pytest.raises(IntegrityError):
        Tenant.objects.create(tenant_id=tenant_id, isolation=isolation, schema_name="x", database="shop")


@pytest.mark.parametrize("provision", [False, True])
def test_create__a_server_that_is_not_configured(plane: None, provision: bool) -> None:
    with pytest.raises(
        exceptions.ServerNotConfigured, match="no database server 'moon'; configured are: default, shop"
    ):
        create(database="moon", provision=provision)
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("isolation", Isolation.values)
def test_create__a_server_that_cannot_be_reached(plane: None, settings: Any, isolation: str) -> None:
    server = {**settings.TENANT_DATABASES["shop"], "HOST": "127.0.0.1", "PORT": 1, "OPTIONS": {}}
    settings.TENANT_DATABASES = {"shop": server}
    with pytest.raises(exceptions.ServerUnreachable, match="refused the connection"):
        create(isolation)
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("isolation", Isolation.values)
def test_create__a_wrong_password(plane: None, settings: Any, isolation: str) -> None:
    with role("LOGIN CREATEDB") as server:
        settings.TENANT_DATABASES = {"shop": {**server, "PASSWORD": "wrong"}}
        with pytest.raises(exceptions.AuthenticationFailed):
            create(isolation)
    assert not Tenant.objects.exists()


@pytest.mark.parametrize(
    ("isolation", "home", "right"),
    [
        (Isolation.SCHEMA, "schema 'public_acme'", "CREATE on the database"),
        (Isolation.DATABASE, "database 'acme_{suffix}_db'", "CREATEDB"),
    ],
)
def test_create__a_user_without_the_right_is_told_what_to_grant(
    plane: None, settings: Any, isolation: str, home: str, right: str
) -> None:
    before = homes()
    with role() as server:
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "limited": server}
        with pytest.raises(exceptions.PermissionDenied) as caught:
            create(isolation, database="limited")
    home = home.format(suffix=settings.SUFFIX)
    assert caught.value.message == f"The user of server 'limited' may not create the {home}: grant it {right}."
    assert homes() == before
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("isolation", KINDS)
def test_create__a_user_with_just_the_right_is_enough(plane: None, settings: Any, isolation: str) -> None:
    before = homes()
    with role("LOGIN CREATEDB") as server:
        query(server | admin(), "GRANT CREATE ON DATABASE {} TO {}", server["NAME"], server["USER"])
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "limited": server}
        tenant = create(isolation, database="limited")
        assert len(homes() - before) == 1
        forget_tenant(tenant, drop=True)
    assert homes() == before


def admin() -> dict[str, Any]:
    shop = django_settings.TENANT_DATABASES["shop"]
    return {"USER": shop["USER"], "PASSWORD": shop["PASSWORD"]}


@pytest.mark.parametrize("provision", [False, True])
def test_create__the_servers_own_database_is_no_tenant(plane: None, settings: Any, provision: bool) -> None:
    settings.TENANT_DATABASE_TEMPLATE = "SHOP{tenant_id}" + settings.SUFFIX.replace("t", "T")
    settings.TENANT_DATABASES = {"shop": {**settings.TENANT_DATABASES["shop"], "NAME": f"shopacme{settings.SUFFIX}"}}
    with pytest.raises(exceptions.InvalidName, match="is that of server 'shop' itself"):
        create(Isolation.DATABASE, provision=provision)
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("provision", [False, True])
def test_create__the_control_plane_is_no_shared_tenant(plane: None, provision: bool) -> None:
    with pytest.raises(exceptions.IsControlPlane):
        create(Isolation.SHARED, database="default", provision=provision)
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("isolation", KINDS)
def test_forget__leaves_the_data_unless_it_is_to_be_dropped(make_tenant: MakeTenant, isolation: str) -> None:
    tenant = make_tenant("acme", isolation)
    query(backend_for(tenant).connection_settings(tenant), "CREATE TABLE {}.kept ()", tenant.schema_name)
    forget_tenant(Tenant.objects.get())
    assert not Tenant.objects.exists()
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == {"kept"}


@pytest.mark.parametrize("isolation", KINDS)
def test_forget__drops_that_tenant_and_touches_no_other(make_tenant: MakeTenant, isolation: str) -> None:
    tenant = make_tenant("acme", isolation)
    others = [make_tenant(f"acme-{number}", kind) for number, kind in enumerate(KINDS)]
    for each in (tenant, *others):
        query(backend_for(each).connection_settings(each), "CREATE TABLE {}.kept ()", each.schema_name)
    before = homes()

    forget_tenant(Tenant.objects.get(pk="acme"), drop=True)

    assert before - homes() == {tenant.database_name or tenant.schema_name}
    assert [catalog.tables(catalog.tenant_dsn(each), each.schema_name) for each in others] == [{"kept"}, {"kept"}]
    assert set(Tenant.objects.all()) == set(others)


@pytest.mark.parametrize("isolation", KINDS)
def test_forget__whose_home_is_gone_already(make_tenant: MakeTenant, isolation: str) -> None:
    tenant = make_tenant("acme", isolation)
    backend_for(tenant).drop(tenant)
    forget_tenant(tenant, drop=True)
    assert not Tenant.objects.exists()


def test_forget__the_shared_schema_is_never_dropped(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("shared", Isolation.SHARED)
    catalog.query(catalog.tenant_dsn(tenant), "CREATE TABLE public.kept ()")
    with pytest.raises(exceptions.ServiceError, match="The shared schema of server 'shop' is never dropped"):
        forget_tenant(Tenant.objects.get(), drop=True)
    assert Tenant.objects.get() == tenant
    assert catalog.tables(catalog.tenant_dsn(tenant), "public") == {"kept"}


def test_forget__that_the_server_refuses_leaves_the_tenant(make_tenant: MakeTenant, settings: Any) -> None:
    tenant = make_tenant("acme")
    with role() as server:
        query(settings.TENANT_DATABASES["shop"], "GRANT USAGE ON SCHEMA {} TO {}", tenant.schema_name, server["USER"])
        with override_settings(TENANT_DATABASES={"shop": server}), pytest.raises(exceptions.PermissionDenied):
            forget_tenant(Tenant.objects.get(), drop=True)
    assert Tenant.objects.get() == tenant
    assert tenant.schema_name in homes()


def test_forget__a_schema_that_holds_the_control_plane_is_not_dropped(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")
    query(backend_for(tenant).connection_settings(tenant), "CREATE TABLE {}.tenants_tenant ()", tenant.schema_name)
    with pytest.raises(exceptions.IsControlPlane):
        forget_tenant(Tenant.objects.get(), drop=True)
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == {"tenants_tenant"}


@pytest.mark.parametrize("drop", [False, True])
def test_forget__a_tenant_with_an_unfinished_run(make_tenant: MakeTenant, drop: bool) -> None:
    tenant = make_tenant("acme")
    run = request_run(tenant, Request())

    with pytest.raises(RunActive, match=f"Tenant 'acme' has an unfinished run: {run.pk}."):
        forget(tenant, drop=drop)

    assert Tenant.objects.get() == tenant
    assert tenant.schema_name in homes()


def test_forget__keeps_the_runs_and_an_abandoned_one_is_no_obstacle(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")
    run = request_run(tenant, Request())
    type(run).objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))

    forget(Tenant.objects.get(), drop=True)

    assert type(run).objects.get().state == "canceled"
    assert not Tenant.objects.exists()
    assert tenant.schema_name not in homes()


def test_create__twice_at_once_makes_one_tenant(plane: None, home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call comes when the first one's row is there and its schema is not."""
    home(Isolation.SCHEMA)
    ends: list[object] = []

    def call() -> None:
        try:
            ends.append(create())
        except exceptions.ServiceError as error:
            ends.append(error)

    def call_beside() -> None:
        call()
        connections.close_all()

    second = threading.Thread(target=call_beside)
    real = SchemaBackend.provision

    def provision(self: SchemaBackend, tenant: Tenant) -> None:
        if not second.ident:
            second.start()
            plane = catalog.dsn(django_settings.DATABASES["default"])
            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            wait_until(lambda: not second.is_alive() or catalog.query(plane, waiting))
        real(self, tenant)

    monkeypatch.setattr(SchemaBackend, "provision", provision)
    call()
    second.join()
    tenant = Tenant.objects.get()
    assert tenant.provisioned_at is not None
    assert tenant.schema_name in homes()
    assert sorted(type(end).__name__ for end in ends) == ["Tenant", "TenantExists"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"name": "New", "labels": {"tier": "2"}}, ("New", {"tier": "2"})),
        ({"name": "", "labels": {}}, ("Old", {"tier": "1"})),
    ],
)
def test_create__taking_over_a_row_keeps_what_is_not_given_anew(
    home: Callable[[str], Tenant], given: dict[str, Any], kept: tuple[str, dict[str, str]]
) -> None:
    home(Isolation.SCHEMA)
    create(name="Old", labels={"tier": "1"}, provision=False)
    tenant = create(**given)
    assert (tenant.name, tenant.labels) == kept
