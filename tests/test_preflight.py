"""What a tenant's session finds before it is trusted: an error for each finding, and nothing changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.conf import settings as configured
from psycopg2 import sql

from migrations_api.models import MigrationRun
from service.embedded_postgres import EmbeddedPostgres, is_installed
from tenants import exceptions
from tenants.backends.base import resolved_server_settings
from tenants.models import Isolation, Tenant
from tenants.servers import database_settings
from tenants.sessions import tenant_session
from tests import catalog
from tests.command_line import manage
from tests.roles import role

MakeTenant = Callable[..., Tenant]
DJANGOS = "CREATE TABLE {0}.django_migrations (id bigint, app varchar(255), name varchar(255), applied timestamptz)"


def refusal(tenant: Tenant, **options: Any) -> exceptions.ServiceError:
    with pytest.raises(exceptions.ServiceError) as caught, tenant_session(tenant, application_name="test", **options):
        pass
    return caught.value


def query(tenant: Tenant, statement: str, *names: str) -> list[tuple[Any, ...]]:
    identifiers = map(sql.Identifier, (tenant.schema_name, *names))
    return catalog.query(catalog.tenant_dsn(tenant), sql.SQL(statement).format(*identifiers))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW {0}.django_migrations AS SELECT 1 AS id, 'a'::text AS app, 'b'::text AS name, now() AS applied",
        "CREATE MATERIALIZED VIEW {0}.django_migrations AS SELECT 1 AS id, 'a'::text AS app, 'b'::text AS name",
        "CREATE SEQUENCE {0}.django_migrations",
        "CREATE TYPE {0}.django_migrations AS (id int, app text, name text, applied timestamptz)",
        "CREATE TABLE {0}.django_migrations ()",
        "CREATE TABLE {0}.django_migrations (version text, installed_on timestamptz)",
        "CREATE TABLE {0}.django_migrations (id int, app text, name text)",
        "CREATE TABLE {0}.django_migrations (id int, app text, name text, applied boolean)",
        DJANGOS + "; ALTER TABLE {0}.django_migrations DROP COLUMN applied",
    ],
)
@pytest.mark.parametrize("writable", [True, False])
def test_record__that_is_not_djangos(tenant: Tenant, statement: str, writable: bool) -> None:
    query(tenant, statement)
    before = catalog.fingerprint(catalog.tenant_dsn(tenant))
    error = refusal(tenant, writable=writable)
    assert type(error) is exceptions.ForeignRecord
    assert error.message.startswith(f"What is called 'django_migrations' in schema '{tenant.schema_name}' of database ")
    assert catalog.fingerprint(catalog.tenant_dsn(tenant)) == before


def test_record__that_is_not_djangos_fails_the_run(tenant: Tenant) -> None:
    query(tenant, "CREATE TABLE {0}.django_migrations (version text)")
    assert manage("migratetenant", "--tenant-id=acme", "--no-input").code == 1
    assert [run.error_code for run in MigrationRun.objects.all()] in ([], ["foreign_record"])
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == {"django_migrations"}


@pytest.mark.parametrize("statement", ["", DJANGOS, DJANGOS.replace("bigint", "int").replace("varchar(255)", "text")])
def test_record__that_is_djangos_or_not_there_yet(tenant: Tenant, statement: str) -> None:
    if statement:
        query(tenant, statement)
    with tenant_session(tenant, application_name="test"):
        pass


@pytest.fixture
def limited(make_tenant: MakeTenant, settings: Any) -> Iterator[Tenant]:
    """A schema tenant with a record, on a server whose user may create tables in it."""
    tenant = make_tenant("acme")
    with role() as server:
        query(tenant, DJANGOS)
        query(tenant, "GRANT USAGE, CREATE ON SCHEMA {0} TO {1}", server["USER"])
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "limited": server}
        yield Tenant(tenant_id="acme", isolation="schema", database="limited", schema_name=tenant.schema_name)


@pytest.mark.parametrize(
    ("granted", "writable", "message"),
    [
        ("REFERENCES", False, "may not read 'django_migrations'"),
        ("SELECT", True, "may not write to 'django_migrations'"),
        ("SELECT, INSERT", True, "may not write to 'django_migrations'"),
        ("SELECT", False, ""),
        ("SELECT, INSERT, DELETE", True, ""),
    ],
)
def test_record__that_the_user_may_not_use(limited: Tenant, granted: str, writable: bool, message: str) -> None:
    shop = Tenant(tenant_id="acme", isolation="schema", database="shop", schema_name=limited.schema_name)
    user = configured.TENANT_DATABASES["limited"]["USER"]
    query(shop, "GRANT " + granted + " ON {0}.django_migrations TO {1}", user)
    if not message:
        with tenant_session(limited, application_name="test", writable=writable):
            return
    error = refusal(limited, writable=writable)
    assert type(error) is exceptions.PermissionDenied
    assert message in error.message


def test_schema__that_the_user_may_not_use(limited: Tenant) -> None:
    shop = Tenant(tenant_id="acme", isolation="schema", database="shop", schema_name=limited.schema_name)
    query(shop, "REVOKE USAGE ON SCHEMA {0} FROM {1}", configured.TENANT_DATABASES["limited"]["USER"])
    error = refusal(limited, writable=False)
    assert type(error) is exceptions.PermissionDenied
    assert "does not have permission to use schema 'public_acme'" in error.message


def test_connections__that_are_used_up(limited: Tenant) -> None:
    server = configured.TENANT_DATABASES["limited"]
    shop = Tenant(tenant_id="acme", isolation="schema", database="shop", schema_name=limited.schema_name)
    query(shop, "ALTER ROLE {1} CONNECTION LIMIT 1", server["USER"])
    other = psycopg2.connect(**catalog.dsn(server))
    try:
        error = refusal(limited)
    finally:
        other.close()
    assert type(error) is exceptions.NoConnectionToSpare
    assert error.message == "The database server has no connection to spare."


def test_database__that_is_another(make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a proxy maps names: the server is asked for the one and leads to the other."""
    tenant = make_tenant("acme")
    real = psycopg2.connect

    def lead_astray(**arguments: Any) -> Any:
        return real(**{**arguments, "dbname": configured.SHOP})

    asked = make_tenant("globex", Isolation.DATABASE)
    monkeypatch.setattr(psycopg2, "connect", lead_astray)
    error = refusal(asked)
    assert type(error) is exceptions.ServerError
    assert f"leads to database '{configured.SHOP}' instead of '{asked.database_name}'" in error.message
    with tenant_session(tenant, application_name="test"):
        pass


@pytest.mark.skipif(not is_installed(), reason="there is no embedded PostgreSQL")
def test_server__that_is_a_standby(plane: None, settings: Any, tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "standby", durable=False)
    server.start(databases=["shop"])
    try:
        settings.TENANT_DATABASES = {"shop": database_settings("shop", server.url("shop"))}
        tenant = Tenant.at_home(tenant_id="acme", isolation=Isolation.SCHEMA, name="", database="shop")
        query(tenant, "CREATE SCHEMA {0}")
        server.stop()
        (tmp_path / "standby" / "data" / "standby.signal").touch()
        (tmp_path / "standby" / "data" / "standby.signal").chmod(0o666)
        server.start()
        assert refusal(tenant).message == "Server 'shop' is a standby, which is read-only."
        with tenant_session(tenant, application_name="test", writable=False):
            pass
    finally:
        server.destroy()


OPTIONS: dict[str, Any] = {}


def resolve(tenant: Tenant, server: dict[str, Any]) -> dict[str, Any]:
    options = {**server.get("OPTIONS", {}), **OPTIONS.get("OPTIONS", {})}
    return {**server, **OPTIONS, "OPTIONS": options}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"OPTIONS": {"options": "-csearch_path=x"}}, "connection_resolver's options is not allowed"),
        ({"OPTIONS": {"service": "x"}}, "service is not allowed"),
        ({"OPTIONS": {"passfile": "/x"}}, "passfile is not allowed"),
        ({"OPTIONS": {"hostaddr": "127.0.0.1"}}, "hostaddr is not allowed"),
        ({"OPTIONS": {"target_session_attrs": "any"}}, "target_session_attrs is not allowed"),
        ({"OPTIONS": {"assume_role": "x"}}, "assume_role is not allowed"),
        ({"OPTIONS": {"sslmode": "never"}}, "sslmode is not allowed, or not so"),
        ({"OPTIONS": {"host": "one,two"}}, "host is not allowed, or not so"),
        ({"OPTIONS": {"host": "/run/other"}}, "host is a socket of this machine"),
    ],
)
def test_resolver__says_no_more_than_a_url_may(
    plane: None, settings: Any, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    settings.TENANT_MIGRATIONS = {"connection_resolver": f"{__name__}.resolve"}
    tenant = Tenant.at_home(tenant_id="acme", isolation=Isolation.SCHEMA, name="", database="shop")
    resolved_server_settings(tenant)
    monkeypatch.setattr(f"{__name__}.OPTIONS", changed)
    with pytest.raises(exceptions.ServerError, match=message) as caught:
        resolved_server_settings(tenant)
    assert "search_path" not in caught.value.message
