import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings as configured
from django.core import checks
from django.db import DatabaseError
from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg2 import errorcodes, sql

from migrations_api.exceptions import TenantLocked
from migrations_api.executor.lock import end_holder, lock_key, tenant_lock
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.fleet import TenantStatus, standings
from migrations_api.states import RunState
from tenants import exceptions, names
from tenants.backends import backend_for
from tenants.binding import cancel_statement, tenant_as_default
from tenants.driver_errors import sqlstate
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant, forget_tenant
from tenants.sessions import tenant_session
from tests import catalog
from tests.command_line import manage
from tests.roles import role

MakeTenant = Callable[..., Tenant]
KINDS = [Isolation.SCHEMA, Isolation.DATABASE]
SAFE = (False, False, False, False, False, False)


@pytest.fixture(autouse=True)
def with_roles(plane: None, settings: Any) -> Iterator[None]:
    """Tenants have roles; what is left of those of this run is dropped."""
    settings.TENANT_ROLE_TEMPLATE = template()
    yield
    for name in roles():
        on_shop("DROP OWNED BY {0} CASCADE; DROP ROLE {0}", name)


def template() -> str:
    return "{tenant_id}_" + configured.SUFFIX + "_role"


def role_of(tenant_id: str) -> str:
    return template().format(tenant_id=tenant_id)


def roles() -> set[str]:
    mine = f"%\\_{configured.SUFFIX}\\_role"
    server = catalog.dsn(configured.TENANT_DATABASES["shop"])
    return {name for (name,) in catalog.query(server, "SELECT rolname FROM pg_roles WHERE rolname LIKE %s", [mine])}


def homes() -> set[str]:
    return catalog.schemas(catalog.dsn(configured.TENANT_DATABASES["shop"])) | catalog.databases()


def on_shop(statement: str, *identifiers: str) -> list[tuple[Any, ...]]:
    server = catalog.dsn(configured.TENANT_DATABASES["shop"])
    return catalog.query(server, sql.SQL(statement).format(*map(sql.Identifier, identifiers)))


def create(isolation: str = Isolation.SCHEMA, tenant_id: str = "acme", **values: Any) -> Tenant:
    return create_tenant(tenant_id=tenant_id, isolation=isolation, **{"name": "", "database": "shop", **values})


def execute(connection: DatabaseWrapper, statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall()) if cursor.description else []


def owner(tenant: Tenant) -> str:
    if tenant.isolation == Isolation.DATABASE:
        found = catalog.query(
            catalog.tenant_dsn(tenant),
            "SELECT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname = current_database()",
        )
    else:
        found = catalog.query(
            catalog.tenant_dsn(tenant),
            "SELECT pg_get_userbyid(nspowner)::text FROM pg_namespace WHERE nspname = %s",
            [tenant.schema_name],
        )
    return str(found[0][0])


def owners_of_tables(tenant: Tenant) -> set[str]:
    select = "SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = %s"
    return {name for (name,) in catalog.query(catalog.tenant_dsn(tenant), select, [tenant.schema_name])}


@pytest.mark.parametrize("isolation", KINDS)
def test_role__owns_the_home_has_no_rights_and_goes_with_the_tenant(isolation: str) -> None:
    before = homes()
    tenant = create(isolation)

    assert tenant.role_name == role_of("acme")
    assert owner(tenant) == tenant.role_name
    flags = "rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
    assert on_shop(f"SELECT {flags} FROM pg_roles WHERE rolname = '{tenant.role_name}'") == [SAFE]
    # Older servers have no other way to let it create in the `public` of its database.
    inherits = f"SELECT rolinherit FROM pg_roles WHERE rolname = '{tenant.role_name}'"
    assert on_shop(inherits) == on_shop("SELECT current_setting('server_version_num')::int < 160000")
    member = "SELECT count(*) FROM pg_auth_members WHERE member = to_regrole(quote_ident('{}'))"
    assert on_shop(member.replace("{}", tenant.role_name)) == [(0,)]

    assert forget_tenant(Tenant.objects.get(), drop=True) == ""
    assert roles() == set()
    assert homes() == before


def test_role__none_without_the_setting_nor_for_shared_tenants(make_tenant: MakeTenant, settings: Any) -> None:
    assert make_tenant("shared", Isolation.SHARED).role_name == ""
    settings.TENANT_ROLE_TEMPLATE = ""
    assert make_tenant("acme").role_name == ""
    assert roles() == set()


def test_role__stays_what_it_was_when_the_setting_changes(make_tenant: MakeTenant, settings: Any) -> None:
    tenant = make_tenant("acme")
    settings.TENANT_ROLE_TEMPLATE = ""
    with tenant_session(Tenant.objects.get(), application_name="test") as connection:
        assert execute(connection, "SELECT current_user") == [(tenant.role_name,)]


@pytest.mark.parametrize("isolation", KINDS)
def test_role__that_was_there_before_is_taken_and_never_dropped(isolation: str) -> None:
    on_shop("CREATE ROLE {} NOLOGIN", role_of("acme"))
    tenant = create(isolation)
    assert owner(tenant) == role_of("acme")
    assert forget_tenant(tenant, drop=True) == ""
    assert roles() == {role_of("acme")}


@pytest.mark.parametrize("isolation", KINDS)
@pytest.mark.parametrize("attribute", ["LOGIN", "SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS"])
def test_role__that_may_more_than_a_tenants_is_refused(isolation: str, attribute: str) -> None:
    on_shop("CREATE ROLE {} " + attribute, role_of("acme"))
    before = homes()
    with pytest.raises(exceptions.AlreadyProvisioned, match="may log in or has rights of its own"):
        create(isolation)
    assert homes() == before
    assert roles() == {role_of("acme")}
    assert not Tenant.objects.exists()


def test_role__that_was_made_for_another_tenant_is_refused(make_tenant: MakeTenant, settings: Any) -> None:
    taken = make_tenant("acme").role_name
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "again": settings.TENANT_DATABASES["shop"]}
    settings.TENANT_ROLE_TEMPLATE = taken.replace("cme", "{tenant_id}")
    with pytest.raises(exceptions.AlreadyProvisioned, match="was made for another tenant; it was left as it is"):
        create(tenant_id="cme", database="again")
    with pytest.raises(exceptions.TenantExists, match="on server 'shop' belongs to another tenant"):
        create(tenant_id="cme")
    assert roles() == {taken}


@pytest.mark.parametrize("isolation", KINDS)
def test_role__of_a_tenant_that_could_not_be_made_is_gone_again(isolation: str) -> None:
    stranger = Tenant.at_home(tenant_id="acme", isolation=isolation, name="", database="shop")
    stranger.role_name = ""
    backend_for(stranger).provision(stranger)
    try:
        with pytest.raises(exceptions.AlreadyProvisioned, match="exists already on server 'shop'"):
            create(isolation)
        assert roles() == set()
    finally:
        backend_for(stranger).drop(stranger)


@pytest.mark.parametrize("isolation", KINDS)
def test_role__that_a_killed_call_left_is_taken_up_and_dropped_with_the_tenant(isolation: str) -> None:
    left = Tenant.at_home(tenant_id="acme", isolation=isolation, name="", database="shop")
    left.save(force_insert=True)
    backend_for(left).provision(left)
    tenant = create(isolation)
    assert owner(tenant) == tenant.role_name
    forget_tenant(tenant, drop=True)
    assert roles() == set()


def test_role__with_more_than_the_tenant_stays_and_is_named() -> None:
    tenant = create()
    on_shop("CREATE SCHEMA kept AUTHORIZATION {}", tenant.role_name)
    result = manage("deletetenant", "--tenant-id=acme", "--drop", "--confirm=acme")
    on_shop("DROP SCHEMA kept")
    assert result.code == 0
    assert f"Its role '{tenant.role_name}' stays" in result.out
    assert tenant.schema_name not in homes()
    assert roles() == {tenant.role_name}


@pytest.mark.parametrize("isolation", KINDS)
def test_role__goes_though_the_home_is_gone_already(isolation: str) -> None:
    tenant = create(isolation)
    home, name = ("DATABASE", tenant.database_name) if tenant.database_name else ("SCHEMA", tenant.schema_name)
    on_shop(f"DROP {home} " + "{}", name)
    forget_tenant(tenant, drop=True)
    assert roles() == set()
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("isolation", KINDS)
def test_role__needs_no_superuser(settings: Any, isolation: str) -> None:
    """From creation to the end, reading included, with CREATEROLE and the right to make homes."""
    before = homes()
    with role("LOGIN CREATEROLE CREATEDB") as server:
        on_shop("GRANT CREATE ON DATABASE {} TO {}", server["NAME"], server["USER"])
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "limited": server}
        tenants = [create(isolation, name, database="limited") for name in ("acme", "globex")]
        assert manage("migratealltenants", "--no-input").code == 0
        assert [each.status for each in standings(tenants)] == [TenantStatus.UP_TO_DATE] * 2
        assert [owners_of_tables(each) for each in tenants] == [{role_of("acme")}, {role_of("globex")}]
        assert [forget_tenant(each, drop=True) for each in tenants] == ["", ""]
        assert roles() == set()
    assert homes() == before


@pytest.mark.parametrize("isolation", KINDS)
def test_role__a_user_that_may_make_none_is_told_what_to_grant(settings: Any, isolation: str) -> None:
    before = homes()
    with role("LOGIN CREATEDB") as server:
        on_shop("GRANT CREATE ON DATABASE {} TO {}", server["NAME"], server["USER"])
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "limited": server}
        with pytest.raises(exceptions.PermissionDenied) as caught:
            create(isolation, database="limited")
        assert caught.value.message.endswith(f"may not create the role '{role_of('acme')}': grant it CREATEROLE.")
    assert homes() == before
    assert not Tenant.objects.exists()


def test_session__of_a_user_that_may_not_become_the_role(make_tenant: MakeTenant, settings: Any) -> None:
    make_tenant("acme")
    ours = configured.TENANT_DATABASES
    with role() as server:
        settings.TENANT_DATABASES = {"shop": server}
        with (
            pytest.raises(exceptions.PermissionDenied, match="may not become the tenant's role"),
            tenant_session(Tenant.objects.get(), application_name="test"),
        ):
            pass
        settings.TENANT_DATABASES = ours


def test_session__whose_role_is_missing(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")
    tenant.role_name = role_of("nobody")
    with (
        pytest.raises(exceptions.PermissionDenied, match=f"The role '{tenant.role_name}' of tenant 'acme' does not"),
        tenant_session(tenant, application_name="test"),
    ):
        pass


def test_session__whose_role_has_become_a_superuser(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")
    on_shop("ALTER ROLE {} SUPERUSER", tenant.role_name)
    with (
        pytest.raises(exceptions.PermissionDenied, match="is a superuser, whom nothing keeps"),
        tenant_session(tenant, application_name="test"),
    ):
        pass


@pytest.mark.parametrize(
    "statement",
    [
        *["RESET ROLE", "RESET ALL", "DISCARD ALL", "SET ROLE NONE; RESET ROLE", "BEGIN; SET ROLE NONE; ROLLBACK"],
        *["BEGIN; SET LOCAL ROLE NONE; COMMIT", "SET ROLE NONE; DISCARD ALL; RESET ROLE"],
    ],
)
def test_session__comes_back_to_the_role(tenant: Tenant, statement: str) -> None:
    with tenant_session(tenant, application_name="test") as connection:
        for each in statement.split("; "):
            execute(connection, each)
        assert execute(connection, "SELECT current_user") == [(tenant.role_name,)]


ELSEWHERE = [
    "CREATE TABLE public.stray ()",
    "CREATE SCHEMA stray",
    "CREATE TABLE public_other.stray ()",
    "ALTER TABLE public_other.kept ADD COLUMN stray int",
    "INSERT INTO public_other.kept VALUES (8)",
    "SELECT * FROM public_other.kept",
    "TRUNCATE public.kept",
    "UPDATE public.kept SET answer = 8",
    "CREATE INDEX ON public.kept (answer)",
    "DROP TABLE public.kept",
    "DROP SCHEMA public_other CASCADE",
    "ALTER SCHEMA public_other RENAME TO stray",
    "CREATE DATABASE stray",
    "CREATE ROLE stray",
]


@pytest.fixture
def neighbours(make_tenant: MakeTenant) -> Iterator[Tenant]:
    """Tenant `acme`, beside another tenant and a table in `public`, each with a row."""
    tenant, other = make_tenant("acme"), make_tenant("other")
    for schema in ("public", other.schema_name):
        on_shop("CREATE TABLE {}.kept AS SELECT 7 AS answer", schema)
    on_shop("GRANT USAGE ON SCHEMA public TO PUBLIC; GRANT SELECT ON public.kept TO PUBLIC")
    # As it is from PostgreSQL 15 on.
    on_shop("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield tenant
    on_shop("DROP TABLE public.kept")


@pytest.mark.parametrize("statement", ELSEWHERE)
def test_session__may_do_nothing_outside_its_schema(neighbours: Tenant, statement: str) -> None:
    arguments = catalog.tenant_dsn(neighbours)
    before = catalog.fingerprint(arguments), homes()
    with tenant_session(neighbours, application_name="test") as connection:
        with pytest.raises(DatabaseError) as caught:
            execute(connection, statement)
        assert sqlstate(caught.value) == errorcodes.INSUFFICIENT_PRIVILEGE
        assert execute(connection, "SELECT answer FROM public.kept") == [(7,)]
    assert (catalog.fingerprint(arguments), homes()) == before


@pytest.mark.parametrize("statement", ["CREATE SCHEMA stray", "INSERT INTO public_other.kept VALUES (8)"])
def test_migration__that_goes_elsewhere_fails_on_a_boundary(
    neighbours: Tenant, settings: Any, broken: Callable[..., None], statement: str
) -> None:
    broken(orders="orders_elsewhere")
    settings.ELSEWHERE = statement
    arguments = catalog.tenant_dsn(neighbours)
    before = catalog.fingerprint(arguments, without=neighbours.schema_name), homes()

    assert manage("migratetenant", "--tenant-id=acme", "--no-input").code == 1

    run = MigrationRun.objects.get()
    assert (run.state, run.error_code, run.sqlstate) == (RunState.FAILED, "permission_denied", "42501")
    assert run.failed_step == "orders.0003_elsewhere"
    assert ("orders", "0002_ledger_entry") in catalog.migrations(arguments, neighbours.schema_name)
    assert ("orders", "0003_elsewhere") not in catalog.migrations(arguments, neighbours.schema_name)
    assert "at_home" not in catalog.tables(arguments, neighbours.schema_name)
    assert owners_of_tables(neighbours) == {neighbours.role_name}
    assert (catalog.fingerprint(arguments, without=neighbours.schema_name), homes()) == before


@pytest.mark.parametrize("statement", ["SET ROLE NONE", "SET LOCAL ROLE NONE"])
def test_migration__that_leaves_the_role_is_rolled_back(
    make_tenant: MakeTenant, settings: Any, broken: Callable[..., None], statement: str
) -> None:
    tenant = make_tenant("acme")
    broken(orders="orders_elsewhere")
    settings.ELSEWHERE = statement
    result = manage("migratetenant", "--tenant-id=acme", "--no-input")
    assert result.code == 1
    assert MigrationRun.objects.get().state == RunState.FAILED
    assert "changed the session's role" in MigrationRun.objects.get().message
    assert "at_home" not in catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name)


def test_lock__of_another_session_of_the_role_is_named_and_can_be_ended(settings: Any) -> None:
    with role("LOGIN CREATEROLE") as server:
        on_shop("GRANT CREATE ON DATABASE {} TO {}", server["NAME"], server["USER"])
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "limited": server}
        tenant = create(database="limited")
        place = {"database": server["NAME"], "schema": tenant.schema_name}
        with (
            tenant_session(tenant, application_name="the other") as other,
            tenant_session(tenant, application_name="mine") as mine,
        ):
            assert execute(other, f"SELECT pg_try_advisory_lock({lock_key(**place)})") == [(True,)]
            with (
                pytest.raises(TenantLocked, match=r"by 'the other' \(server process .*, connected since"),
                tenant_lock(mine, **place, wait=0),
            ):
                pass
            assert end_holder(mine, **place, application_name="the other")
            with tenant_lock(mine, **place, wait=5):
                assert execute(mine, "SELECT current_user") == [(tenant.role_name,)]
        forget_tenant(tenant, drop=True)


def test_lock__of_another_user_is_named_without_what_the_server_does_not_tell(settings: Any) -> None:
    settings.TENANT_ROLE_TEMPLATE = ""
    with role() as server:
        on_shop("GRANT CREATE ON DATABASE {} TO {}", server["NAME"], server["USER"])
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "limited": server}
        tenant = create(database="limited")
        place = {"database": server["NAME"], "schema": tenant.schema_name}
        tenant.database = "shop"
        with tenant_session(tenant, application_name="the other") as other, tenant_lock(other, **place, wait=0):
            tenant.database = "limited"
            with (
                tenant_session(tenant, application_name="mine") as mine,
                pytest.raises(TenantLocked, match=r"by 'the other' \(server process \d+\)\.$"),
                tenant_lock(mine, **place, wait=0),
            ):
                pass
        forget_tenant(tenant, drop=True)


def test_session__sees_what_lies_behind_its_own_schema_if_it_may(make_tenant: MakeTenant, settings: Any) -> None:
    tenant = make_tenant("acme")
    on_shop("CREATE SCHEMA tools; CREATE TABLE tools.kept AS SELECT 7 AS answer; GRANT SELECT ON tools.kept TO PUBLIC")
    try:
        settings.TENANT_MIGRATIONS = {"extra_search_path": ["tools"]}
        with (
            pytest.raises(exceptions.PermissionDenied, match=r"'extra_search_path' names: tools\. Grant it USAGE"),
            tenant_session(tenant, application_name="test"),
        ):
            pass
        on_shop("GRANT USAGE ON SCHEMA tools TO PUBLIC")
        with tenant_session(tenant, application_name="test") as connection:
            assert execute(connection, "SELECT answer FROM kept") == [(7,)]
    finally:
        on_shop("DROP SCHEMA tools CASCADE")


@pytest.mark.parametrize("prefix", ["pg_", '"', "a" * 60, "{name}", "\0", "a,", "%s"])
def test_role_template__that_gives_no_name_is_refused(settings: Any, prefix: str) -> None:
    settings.TENANT_ROLE_TEMPLATE = prefix + "{tenant_id}"
    assert [(each.id, each.msg[:20]) for each in checks.run_checks(tags=["tenants"])] == [
        ("tenants.E005", "TENANT_ROLE_TEMPLATE")
    ]
    with pytest.raises(exceptions.InvalidName):
        create()
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("name", ["none", "public", "postgres", "user"])
def test_role_name__that_means_something_else(name: str) -> None:
    with pytest.raises(exceptions.InvalidName, match="is reserved"):
        names.role_name("{tenant_id}", name)


def test_role_template__that_is_empty_is_no_finding(settings: Any) -> None:
    settings.TENANT_ROLE_TEMPLATE = ""
    assert checks.run_checks(tags=["tenants"]) == []


def test_cancel_statement__of_a_session_that_has_become_the_tenants_role(settings: Any) -> None:
    with role("LOGIN CREATEROLE") as server:
        on_shop("GRANT CREATE ON DATABASE {} TO {}", server["NAME"], server["USER"])
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "limited": server}
        tenant = create(database="limited")
        with (
            tenant_session(tenant, application_name="test") as session,
            tenant_as_default(tenant, session),
            session.cursor() as cursor,
        ):
            timer = threading.Timer(0.2, cancel_statement)
            timer.start()
            with pytest.raises(DatabaseError, match="canceling statement due to user request"):
                cursor.execute("SELECT pg_sleep(60)")
            timer.join()
        forget_tenant(tenant, drop=True)
