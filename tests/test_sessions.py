import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import DatabaseError, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg2 import sql

from tenants import exceptions
from tenants.backends import refuse_control_plane
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant
from tenants.sessions import tenant_session
from tests import catalog
from tests.roles import role

MakeTenant = Callable[..., Tenant]
SETTINGS = ("search_path", "lock_timeout", "statement_timeout", "client_connection_check_interval", "application_name")


def show(connection: DatabaseWrapper) -> tuple[str, ...]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in SETTINGS))
        return tuple(cursor.fetchone())


def execute(connection: DatabaseWrapper, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def refusal(tenant: Tenant, **options: Any) -> exceptions.ServiceError:
    with pytest.raises(exceptions.ServiceError) as caught, tenant_session(tenant, application_name="test", **options):
        pass
    return caught.value


@pytest.fixture
def limited(make_tenant: MakeTenant, settings: Any) -> Iterator[Tenant]:
    """A schema tenant on a server whose user may use the schema and not create in it."""
    tenant = make_tenant("acme")
    with role() as server:
        query(tenant, "GRANT USAGE ON SCHEMA {} TO {}", tenant.schema_name, server["USER"])
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "limited": server}
        yield Tenant(tenant_id="acme", isolation="schema", database="limited", schema_name=tenant.schema_name)


def as_owner(statement: str, *names: str) -> None:
    shop = catalog.dsn(django_settings.TENANT_DATABASES["shop"])
    catalog.query(shop, sql.SQL(statement).format(*map(sql.Identifier, names)))


def query(tenant: Tenant, statement: str, *names: str) -> list[tuple[Any, ...]]:
    return catalog.query(catalog.tenant_dsn(tenant), sql.SQL(statement).format(*map(sql.Identifier, names)))


def test_session__is_the_tenant(tenant: Tenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lock_timeout": 1.5, "statement_timeout": 70}
    with tenant_session(tenant, application_name="the name") as connection:
        path = f'"{tenant.schema_name}"'
        assert show(connection) == (path, "1500ms", "70s", "1s", "the name")
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_database(), current_schema()")
            database = tenant.database_name or settings.TENANT_DATABASES["shop"]["NAME"]
            assert cursor.fetchone() == (database, tenant.schema_name)


@pytest.mark.parametrize(
    "statement",
    [
        "RESET ALL",
        "DISCARD ALL",
        "RESET search_path",
        "SET search_path TO DEFAULT",
        "BEGIN; SET search_path TO public; SET lock_timeout TO 0; ROLLBACK",
        "BEGIN; SET LOCAL search_path TO public; COMMIT",
        "BEGIN; SAVEPOINT a; SET search_path TO public; ROLLBACK TO SAVEPOINT a; COMMIT",
        "BEGIN; SAVEPOINT a; SELECT 1; ROLLBACK TO SAVEPOINT a; ROLLBACK",
    ],
)
def test_session__options_survive(tenant: Tenant, settings: Any, statement: str) -> None:
    settings.TENANT_MIGRATIONS = {"statement_timeout": 9}
    with tenant_session(tenant, application_name="the name") as connection:
        before = show(connection)
        for each in statement.split("; "):
            execute(connection, each)
        assert show(connection) == before
        assert before == (f'"{tenant.schema_name}"', "2s", "9s", "1s", "the name")


def test_session__options_come_back_after_a_set_of_a_migration(tenant: Tenant) -> None:
    with tenant_session(tenant, application_name="the name") as connection:
        before = show(connection)
        execute(connection, "SET search_path TO pg_catalog; SET lock_timeout TO 0; SET statement_timeout TO 1")
        assert show(connection) != before
        execute(connection, "DISCARD ALL")
        assert show(connection) == before


def test_session__sees_schemas_behind_its_own(make_tenant: MakeTenant, settings: Any) -> None:
    tenant = make_tenant("acme-corp")
    for name in ("other one", "a-b", "back\\slash", 'quo"te'):
        query(tenant, "CREATE SCHEMA {}", name)
        query(tenant, "CREATE TABLE {}.{} ()", name, f"in {name}")
    settings.TENANT_MIGRATIONS = {"extra_search_path": ["other one", "a-b", "back\\slash", 'quo"te']}
    with tenant_session(tenant, application_name="test") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_schemas(false)")
        assert cursor.fetchone()[0] == ["public_acme-corp", "other one", "a-b", "back\\slash", 'quo"te']
        cursor.execute('CREATE TABLE mine (); SELECT FROM "in a-b"')
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == {"mine"}
    for name in ("other one", "a-b", "back\\slash", 'quo"te'):
        query(tenant, "DROP SCHEMA {} CASCADE", name)


def test_session__of_a_schema_with_a_space_and_capitals(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_SCHEMA_TEMPLATE = "Kunde {tenant_id} é"
    tenant = make_tenant("acme")
    with tenant_session(tenant, application_name="test") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        assert cursor.fetchone() == ("Kunde acme é",)


def test_session__long_application_name_is_cut(tenant: Tenant) -> None:
    with tenant_session(tenant, application_name="x" * 80) as connection:
        assert show(connection)[4] == "x" * 63


def test_session__is_closed_afterwards(tenant: Tenant) -> None:
    with tenant_session(tenant, application_name="test") as one:
        pass
    with pytest.raises(ZeroDivisionError), tenant_session(tenant, application_name="test") as other:
        _ = 1 / 0
    assert one.connection is other.connection is None


def test_session__is_fresh_each_time_and_leaves_the_control_plane_alone(tenant: Tenant) -> None:
    with tenant_session(tenant, application_name="one") as one, tenant_session(tenant, application_name="two") as two:
        assert one is not two
        assert connections["default"] not in {one, two}


def test_session__schema_that_is_missing(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")
    query(tenant, "DROP SCHEMA {}", tenant.schema_name)
    before = catalog.fingerprint(catalog.tenant_dsn(tenant))

    error = refusal(tenant)

    assert type(error) is exceptions.NotProvisioned
    assert error.message.startswith("The schema 'public_acme' of database ")
    assert catalog.fingerprint(catalog.tenant_dsn(tenant)) == before


def test_session__schema_of_another_spelling_is_not_the_tenant(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")
    other = Tenant(tenant_id="acme", isolation=tenant.isolation, database="shop", schema_name="Public_acme")
    assert type(refusal(other)) is exceptions.NotProvisioned


def test_session__database_that_is_missing(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme", provision=False, isolation=Isolation.DATABASE)
    assert type(refusal(tenant)) is exceptions.NotProvisioned


def test_session__database_without_its_schema(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme", Isolation.DATABASE)
    query(tenant, "DROP SCHEMA public")
    assert type(refusal(tenant)) is exceptions.NotProvisioned


@pytest.mark.parametrize("isolation", [Isolation.SHARED, Isolation.DATABASE])
def test_session__control_plane_by_its_settings(plane: None, settings: Any, isolation: str) -> None:
    name = settings.DATABASES["default"]["NAME"]
    tenant = Tenant(tenant_id="acme", isolation=isolation, schema_name="public", database="default")
    tenant.database_name = name if isolation == Isolation.DATABASE else ""

    error = refusal(tenant)

    assert type(error) is exceptions.IsControlPlane
    assert error.message.startswith("Tenant 'acme' would be the control plane itself. Give it another server")


def test_session__control_plane_by_what_is_in_it(plane: None, settings: Any) -> None:
    # The same server spelled in another way: only the server itself can tell.
    plane_settings = {**settings.DATABASES["default"], "TEST": {}}
    options = dict(plane_settings.get("OPTIONS", {}))
    if "host" in options:
        plane_settings["HOST"] = options.pop("host")
    else:
        options["hostaddr"] = socket.gethostbyname(plane_settings["HOST"])
        plane_settings["HOST"] = "elsewhere.invalid"
    settings.TENANT_DATABASES = {"alias": {**plane_settings, "OPTIONS": options}}
    tenant = Tenant(tenant_id="acme", isolation=Isolation.SHARED, schema_name="public", database="alias")
    refuse_control_plane(tenant)

    error = refusal(tenant)

    assert type(error) is exceptions.IsControlPlane
    assert "holds a control plane; a tenant never shares it" in error.message


def test_session__database_without_a_name_is_no_tenant(plane: None) -> None:
    tenant = Tenant(tenant_id="acme", isolation=Isolation.DATABASE, schema_name="public", database="shop")
    error = refusal(tenant)
    assert type(error) is exceptions.IsControlPlane
    assert error.message == "Tenant 'acme' has no database of its own."


def test_session__schema_beside_the_control_plane_is_a_tenant(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme", database="default")
    with tenant_session(tenant, application_name="test") as connection:
        assert show(connection)[0] == '"public_acme"'


def test_session__server_that_is_read_only(limited: Tenant, settings: Any) -> None:
    user = settings.TENANT_DATABASES["limited"]["USER"]
    as_owner("GRANT CREATE ON SCHEMA {} TO {}", limited.schema_name, user)
    as_owner("ALTER ROLE {} SET default_transaction_read_only = on", user)

    error = refusal(limited)

    assert type(error) is exceptions.ServerError
    assert error.message == "Server 'limited' is read-only (default_transaction_read_only)."
    with tenant_session(limited, application_name="test", writable=False):
        pass


def test_session__user_that_may_not_create_tables(limited: Tenant, settings: Any) -> None:
    error = refusal(limited)
    user = settings.TENANT_DATABASES["limited"]["USER"]
    assert type(error) is exceptions.PermissionDenied
    assert error.message.startswith(f"The user '{user}' does not have permission to create tables in schema 'public_")
    with tenant_session(limited, application_name="test", writable=False):
        pass


def test_session__user_with_the_right_to_create_tables(limited: Tenant, settings: Any) -> None:
    user = settings.TENANT_DATABASES["limited"]["USER"]
    as_owner("GRANT CREATE ON SCHEMA {} TO {}", limited.schema_name, user)
    with tenant_session(limited, application_name="test") as connection:
        execute(connection, "CREATE TABLE mine ()")


def close(connection: DatabaseWrapper) -> None:
    connection.close()


def terminate(connection: DatabaseWrapper) -> None:
    pid = connection.connection.info.backend_pid
    server = catalog.dsn(connections["default"].settings_dict)
    catalog.query(server, "SELECT pg_terminate_backend(%s, 5000)", [pid])
    with pytest.raises(DatabaseError):
        execute(connection, "SELECT 1")
    connection.close_if_unusable_or_obsolete()


@pytest.mark.parametrize("end", [close, terminate])
def test_session__that_ended_is_not_opened_again(tenant: Tenant, end: Callable[[DatabaseWrapper], None]) -> None:
    with tenant_session(tenant, application_name="test") as connection:
        end(connection)
        with pytest.raises(exceptions.ServerUnreachable, match="ended before the work was done"):
            execute(connection, "SELECT 1")


def test_session__settings_come_from_the_resolver(make_tenant: MakeTenant, settings: Any) -> None:
    tenant = make_tenant("acme")
    settings.TENANT_DATABASES = {"shop": {**settings.TENANT_DATABASES["shop"], "NAME": "elsewhere"}}
    settings.TENANT_MIGRATIONS = {"connection_resolver": f"{__name__}.resolve"}
    with tenant_session(tenant, application_name="test") as connection:
        assert connection.settings_dict["NAME"] == settings.SHOP
    assert settings.TENANT_DATABASES["shop"]["NAME"] == "elsewhere"


def resolve(tenant: Tenant, server: dict[str, Any]) -> dict[str, Any]:
    assert (tenant.tenant_id, server["NAME"]) == ("acme", "elsewhere")
    server["NAME"] = django_settings.SHOP
    return server


def test_session__resolver_that_leads_to_the_control_plane(plane: None, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"connection_resolver": f"{__name__}.resolve_to_nothing"}
    with pytest.raises(exceptions.IsControlPlane):
        create_tenant(tenant_id="acme", name="", isolation=Isolation.SHARED, database="shop")
    assert not Tenant.objects.exists()


def resolve_to_nothing(tenant: Tenant, server: dict[str, Any]) -> dict[str, Any]:
    """What a team's own store gives for a tenant that it does not know."""
    return {**server, "NAME": ""}
