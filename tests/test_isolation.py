"""Whatever a migration does, it happens in the tenant, and never in the control plane or in another schema."""

import copy
import io
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings as configured
from django.contrib.contenttypes.models import ContentType
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.db.models.signals import post_migrate, pre_migrate

from examples.shop.orders.models import LedgerEntry
from migrations_api.models import MigrationRun
from migrations_api.states import RunState
from tenants.app_sets import control_plane_labels, tenant_app_labels
from tenants.exceptions import InvalidName, IsControlPlane
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant
from tenants.sessions import tenant_session
from tests import catalog

MakeTenant = Callable[..., Tenant]

ORDERS = """
from importlib import import_module
Migration = import_module("examples.shop.orders.migrations.{name}").Migration
"""
HEAD = """
import sys
import threading
from django.contrib.contenttypes.models import ContentType
from django.db import connection, migrations, models, transaction
from examples.shop.orders.models import LedgerEntry

class Migration(migrations.Migration):
    dependencies = [("orders", "0002_ledger_entry")]
"""


@pytest.fixture
def third_migration(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> Callable[..., None]:
    """Give the app `orders` a third migration that runs `code`, which may use `apps` and `schema_editor`."""

    def write(code: str, more: str = "") -> None:
        name = f"orders_of_{abs(hash(request.node.name))}"
        package = tmp_path / name
        package.mkdir()
        (package / "__init__.py").touch()
        for known in ("0001_initial", "0002_ledger_entry"):
            (package / f"{known}.py").write_text(ORDERS.format(name=known))
        body = "".join(f"        {line}\n" for line in code.splitlines())
        operation = f"    def run(apps, schema_editor):\n{body}    operations = [migrations.RunPython(run)]\n"
        (package / "0003_code.py").write_text(HEAD + more + operation)
        monkeypatch.syspath_prepend(str(tmp_path))
        settings.MIGRATION_MODULES = {"orders": name}

    return write


def migrate(tenant: Tenant, *arguments: str) -> MigrationRun:
    call_command("migratetenant", f"--tenant-id={tenant.tenant_id}", *arguments, verbosity=0)
    return MigrationRun.objects.filter(tenant=tenant).latest("pk")


def fail_to_migrate(tenant: Tenant, *arguments: str) -> MigrationRun:
    with pytest.raises(CommandError):
        migrate(tenant, *arguments)
    return MigrationRun.objects.filter(tenant=tenant).latest("pk")


def ask(tenant: Tenant, statement: str) -> list[tuple[Any, ...]]:
    """The answer of the tenant itself, in its own schema."""
    return catalog.query(catalog.tenant_dsn(tenant), f'SET search_path TO "{tenant.schema_name}"; {statement}')


def ledger(tenant: Tenant) -> list[str]:
    """What migrations wrote, after the entry that 0002 writes."""
    return [entry for (entry,) in ask(tenant, "SELECT migration FROM ledger ORDER BY id")][1:]


def tables(tenant: Tenant) -> set[str]:
    return catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name)


def server() -> dict[str, Any]:
    return catalog.dsn(configured.TENANT_DATABASES["shop"])


def control_plane() -> list[tuple[Any, ...]]:
    """The control plane without the service's own records of runs."""
    found = catalog.fingerprint(catalog.dsn(configured.DATABASES["default"]))
    return [item for item in found if not (len(item) == 3 and item[1].startswith("migrations_api_"))]


@contextmanager
def in_public(statements: str) -> Iterator[None]:
    """Objects in the public schema of the database where the schema tenants live."""
    catalog.query(server(), statements)
    try:
        yield
    finally:
        catalog.query(server(), "DROP SCHEMA public CASCADE; CREATE SCHEMA public")


MIGRATED_ELSEWHERE = """
CREATE TABLE public.django_migrations (id bigserial, app text, name text, applied timestamptz DEFAULT now());
INSERT INTO public.django_migrations (app, name) VALUES ('users', '0001_initial'), ('users', '0002_email_unique');
CREATE TABLE public.users_user (id bigserial PRIMARY KEY, email text);
CREATE TABLE public.products_category (id bigserial PRIMARY KEY, name text);
CREATE TABLE public.products_product (id bigserial PRIMARY KEY, name text);
"""


@pytest.mark.parametrize("option", [(), ("--fake-initial",)])
def test_search_path__tables_behind_the_tenants_are_not_taken_for_its_own(
    make_tenant: MakeTenant, settings: Any, option: tuple[str, ...]
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "extra_search_path": ("public",)}
    tenant = make_tenant()
    with in_public(MIGRATED_ELSEWHERE):
        before = catalog.fingerprint(server(), without=tenant.schema_name)
        migrate(tenant, *option)
        assert catalog.fingerprint(server(), without=tenant.schema_name) == before
    assert {"django_migrations", "users_user", "products_category", "products_product"} <= tables(tenant)
    assert ("users", "0001_initial") in catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)


def test_search_path__syncdb_makes_a_table_that_another_schema_has(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "extra_search_path": ("public",)}
    settings.TENANT_APPS = ["examples.shop.plans"]
    settings.MIGRATION_MODULES = {"plans": None}
    tenant = make_tenant()
    with in_public("CREATE TABLE plans_plan (id bigserial PRIMARY KEY)"):
        migrate(tenant, "--run-syncdb")
    assert {"plans_plan", "plans_featureflag", "plans_featureflag_plans"} <= tables(tenant)


def test_search_path__what_public_has_applied_is_not_shown(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "extra_search_path": ("public",)}
    make_tenant()
    out = io.StringIO()
    with in_public(MIGRATED_ELSEWHERE):
        call_command("showtenantmigrations", "--tenant-id=acme", stdout=out)
    assert "[X]" not in out.getvalue()
    assert "[ ] 0001_initial" in out.getvalue()


@pytest.mark.parametrize("path", [(), ("public",)])
def test_missing_schema__is_refused_and_nothing_lands_elsewhere(
    make_tenant: MakeTenant, settings: Any, path: tuple[str, ...]
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "extra_search_path": path}
    tenant = make_tenant()
    catalog.query(server(), f'DROP SCHEMA "{tenant.schema_name}"')
    before = catalog.fingerprint(server()), catalog.schemas(server()), control_plane()
    assert fail_to_migrate(tenant).error_code == "unprovisioned"
    assert (catalog.fingerprint(server()), catalog.schemas(server()), control_plane()) == before


def test_migration_without_using__writes_to_the_tenant(tenant: Tenant, broken: Callable[..., None]) -> None:
    broken(orders="orders_forgets_using")
    before = control_plane()
    migrate(tenant)
    assert ledger(tenant) == ["historical model", "real model", "raw cursor"]
    assert control_plane() == before


IN_A_THREAD = """
def write():
    LedgerEntry.objects.create(migration="hello")
    connection.close()
thread = threading.Thread(target=write)
thread.start()
thread.join()
"""
ON_COMMIT = "transaction.on_commit(lambda: LedgerEntry.objects.create(migration='hello'))"
IN_A_TRANSACTION = """
with transaction.atomic():
    LedgerEntry.objects.create(migration="hello")
"""
BY_ALIAS = "LedgerEntry.objects.using('default').create(migration='hello')"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(IN_A_THREAD, id="thread"),
        pytest.param(ON_COMMIT, id="on_commit"),
        pytest.param(IN_A_TRANSACTION, id="atomic"),
        pytest.param(BY_ALIAS, id="using_default"),
    ],
)
def test_migration__reaches_only_the_tenant(tenant: Tenant, third_migration: Callable[..., None], code: str) -> None:
    third_migration(code)
    before = control_plane()
    migrate(tenant)
    assert ledger(tenant) == ["hello"]
    assert control_plane() == before


def test_receivers__act_on_the_tenant(tenant: Tenant) -> None:
    migrate(tenant)
    before = control_plane()

    def by_model(**kwargs: Any) -> None:
        LedgerEntry.objects.create(migration="by model")

    def by_cursor(**kwargs: Any) -> None:
        with connections[kwargs["using"]].cursor() as cursor:
            cursor.execute("INSERT INTO ledger (migration, created_at) VALUES ('by cursor', now())")

    orders = apps.get_app_config("orders")
    pre_migrate.connect(by_model, sender=orders)
    post_migrate.connect(by_cursor, sender=orders)
    try:
        migrate(tenant)
    finally:
        pre_migrate.disconnect(by_model, sender=orders)
        post_migrate.disconnect(by_cursor, sender=orders)
    assert ledger(tenant) == ["by model", "by cursor"]
    assert control_plane() == before


def test_receivers__hear_only_of_the_tenants_apps(tenant: Tenant) -> None:
    heard: list[str] = []

    def listen(app_config: Any, **kwargs: Any) -> None:
        heard.append(app_config.label)

    post_migrate.connect(listen)
    try:
        migrate(tenant)
    finally:
        post_migrate.disconnect(listen)
    assert set(heard) == tenant_app_labels(tenant.isolation)


@pytest.mark.parametrize("code", ["", "raise ValueError"])
def test_default__is_the_control_plane_again(tenant: Tenant, third_migration: Callable[..., None], code: str) -> None:
    third_migration(code or "pass")
    with suppress(CommandError):
        migrate(tenant)
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_database(), current_schema()")
        assert cursor.fetchone() == (configured.DATABASES["default"]["NAME"], "public")


def test_migration_that_closes_the_connection__ends_the_run(tenant: Tenant, broken: Callable[..., None]) -> None:
    broken(orders="orders_closes_connection")
    before = control_plane()
    run = fail_to_migrate(tenant)
    assert run.state in {RunState.FAILED, RunState.PARTIAL}
    assert run.failed_step == "orders.0003_close"
    # A new session would have no lock, and would have gone on.
    assert ledger(tenant) == []
    assert ("orders", "0002_ledger_entry") in run.applied_after.keys
    assert control_plane() == before


def test_migration_that_sets_search_path__leaves_nothing(make_tenant: MakeTenant, broken: Callable[..., None]) -> None:
    tenant = make_tenant()
    migrate(tenant, "orders", "0002")
    broken(orders="orders_sets_search_path")
    before = catalog.fingerprint(server())
    migrate(tenant, "users")
    migrate(tenant, "products")
    inside = tables(tenant)
    run = fail_to_migrate(tenant)
    assert (run.state, run.failed_step) == (RunState.FAILED, "orders.0003_search_path")
    assert "search_path" in run.message
    assert tables(tenant) == inside
    assert catalog.tables(server(), "public") == set()
    assert catalog.fingerprint(server(), without=tenant.schema_name) == [
        item for item in before if item[0] != tenant.schema_name
    ]


def test_reset_all__keeps_the_lock_timeout(tenant: Tenant, broken: Callable[..., None]) -> None:
    broken(orders="orders_resets_timeouts")
    migrate(tenant)
    assert ledger(tenant) == ["lock_timeout 2s"]


@pytest.mark.parametrize("statement", ["RESET ALL", "DISCARD ALL", "BEGIN; SET search_path TO public; ROLLBACK"])
def test_session__stays_the_tenants(make_tenant: MakeTenant, statement: str) -> None:
    tenant = make_tenant()
    with tenant_session(tenant, application_name="test") as session, session.cursor() as cursor:
        cursor.execute(statement)
        cursor.execute("SELECT current_schema(), current_setting('lock_timeout')")
        assert cursor.fetchone() == (tenant.schema_name, "2s")


@pytest.mark.parametrize("setting", [{"ATOMIC_REQUESTS": True}, {"AUTOCOMMIT": False}, {"CONN_HEALTH_CHECKS": True}])
@pytest.mark.parametrize("isolation", [Isolation.SCHEMA, Isolation.DATABASE])
def test_server_settings__do_not_change_how_a_tenant_is_migrated(
    make_tenant: MakeTenant, settings: Any, isolation: str, setting: dict[str, bool]
) -> None:
    settings.TENANT_DATABASES = {"shop": {**settings.TENANT_DATABASES["shop"], **setting}}
    assert migrate(make_tenant(isolation=isolation)).state == RunState.SUCCEEDED


@pytest.mark.parametrize("code", ["raise SystemExit(0)", "sys.exit(3)"])
def test_migration_that_exits__is_a_failed_run(
    make_tenant: MakeTenant, third_migration: Callable[..., None], code: str
) -> None:
    third_migration(f"if 'globex' not in str(schema_editor.connection.settings_dict): {code}")
    acme, globex = make_tenant("acme"), make_tenant("globex", Isolation.DATABASE)
    with pytest.raises(CommandError) as stopped:
        call_command("migratealltenants", verbosity=0)
    runs = {run.tenant_id: run for run in MigrationRun.objects.all()}
    assert (runs["acme"].state, runs["acme"].failed_step) == (RunState.FAILED, "orders.0003_code")
    assert runs["acme"].error_class == "SystemExit"
    assert runs["globex"].state == RunState.SUCCEEDED
    assert stopped.value.returncode == 3
    assert ledger(acme) == ledger(globex) == []


def test_settings__are_not_mutated(make_tenant: MakeTenant) -> None:
    seen: list[Any] = []

    def listen(**kwargs: Any) -> None:
        seen.append(copy.deepcopy((configured.DATABASES, configured.TENANT_DATABASES)))

    before = copy.deepcopy((configured.DATABASES, configured.TENANT_DATABASES))
    post_migrate.connect(listen)
    try:
        for isolation in (Isolation.SCHEMA, Isolation.DATABASE):
            migrate(make_tenant(isolation, isolation))
    finally:
        post_migrate.disconnect(listen)
    call_command("showtenants", stdout=io.StringIO())
    assert before == (configured.DATABASES, configured.TENANT_DATABASES)
    # Nor while a tenant is `default`: other code still asks them for the control plane.
    assert seen
    assert all(each == before for each in seen)
    assert connections.settings is configured.DATABASES


def no_database(tenant: Tenant, database: dict[str, Any]) -> dict[str, Any]:
    return {**database, "NAME": ""}


def nothing(tenant: Tenant, database: dict[str, Any]) -> dict[str, Any]:
    return {}


def the_control_planes(tenant: Tenant, database: dict[str, Any]) -> dict[str, Any]:
    return dict(configured.DATABASES["default"])


def another_spelling() -> dict[str, Any]:
    """The settings of the control plane by another name of its host."""
    plane = configured.DATABASES["default"]
    if plane["HOST"]:
        address = socket.gethostbyname(plane["HOST"])
        return {**plane, "HOST": "mirror.invalid", "OPTIONS": {**plane.get("OPTIONS", {}), "hostaddr": address}}
    directory = plane["OPTIONS"]["host"]
    return {**plane, "OPTIONS": {**plane["OPTIONS"], "host": f"{directory}/."}}


def registered(isolation: str, **values: Any) -> Tenant:
    """A tenant's row as it might have got there past create_tenant()."""
    home = {"database": "shop", "schema_name": "public", **values}
    return Tenant.objects.create(tenant_id="acme", name="Acme", isolation=isolation, **home)


def test_shared_tenant_on_default__is_refused(plane: None) -> None:
    with pytest.raises(IsControlPlane):
        create_tenant(tenant_id="acme", name="", isolation=Isolation.SHARED, database="default")
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("arguments", [(), ("users", "zero"), ("--fake",), ("--run-syncdb",), ("users", "--prune")])
def test_tenant_named_like_the_control_plane__is_refused(plane: None, arguments: tuple[str, ...]) -> None:
    tenant = registered(Isolation.DATABASE, database_name=configured.DATABASES["default"]["NAME"])
    before = control_plane()
    assert fail_to_migrate(tenant, *arguments).error_code == "is_control_plane"
    assert control_plane() == before


def test_tenant_named_like_the_control_plane__is_not_created(plane: None, settings: Any) -> None:
    settings.TENANT_DATABASE_TEMPLATE = configured.DATABASES["default"]["NAME"].replace("plane", "{tenant_id}", 1)
    before = control_plane()
    with pytest.raises((IsControlPlane, InvalidName)):
        create_tenant(tenant_id="plane", name="", isolation=Isolation.DATABASE, database="shop")
    assert control_plane() == before


def test_another_spelling_of_the_control_planes_host__is_refused(plane: None, settings: Any) -> None:
    settings.TENANT_DATABASES = {"mirror": another_spelling()}
    with pytest.raises(IsControlPlane):
        create_tenant(tenant_id="acme", name="", isolation=Isolation.SHARED, database="mirror")
    tenant = registered(Isolation.SHARED, database="mirror")
    before = control_plane()
    assert fail_to_migrate(tenant).error_code == "is_control_plane"
    assert control_plane() == before


@pytest.mark.parametrize("resolver", [no_database, nothing, the_control_planes])
@pytest.mark.parametrize("isolation", Isolation.values)
def test_resolver_that_leads_astray__is_refused(
    plane: None, settings: Any, isolation: str, resolver: Callable[..., Any]
) -> None:
    tenant = Tenant.at_home(tenant_id="acme", isolation=isolation, name="Acme", database="shop")
    tenant.save(force_insert=True)
    conf = {**settings.TENANT_MIGRATIONS, "connection_resolver": f"{__name__}.{resolver.__name__}"}
    settings.TENANT_MIGRATIONS = conf
    before = control_plane(), catalog.fingerprint(server()), catalog.databases()
    run = fail_to_migrate(tenant)
    assert run.error_code in {"is_control_plane", "unprovisioned", "server_error"}
    assert (control_plane(), catalog.fingerprint(server()), catalog.databases()) == before


def test_tables__each_side_has_only_its_own(tenant: Tenant) -> None:
    migrate(tenant)
    tenants_own = tables_of(tenant_app_labels(tenant.isolation))
    planes_own = tables_of(control_plane_labels())
    assert tables(tenant) == tenants_own | {"django_migrations"}
    plane = catalog.tables(catalog.dsn(configured.DATABASES["default"]), "public")
    assert planes_own <= plane
    assert not plane & tenants_own


def test_tables__an_app_may_be_on_both_sides(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_APPS = ["django.contrib.contenttypes", "django.contrib.auth", *settings.TENANT_APPS]
    tenant = make_tenant()
    before = control_plane()
    migrate(tenant)
    assert tables(tenant) == tables_of(tenant_app_labels(tenant.isolation)) | {"django_migrations"}
    assert control_plane() == before


def test_shared_tenant__gets_the_shared_apps_only(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("public", Isolation.SHARED)
    migrate(tenant)
    assert tables(tenant) == tables_of(frozenset({"plans"})) | {"django_migrations"}


def test_plain_migrate__brings_no_tenant_tables(plane: None) -> None:
    before = control_plane()
    call_command("migrate", verbosity=0, interactive=False)
    call_command("migrate", verbosity=0, interactive=False, run_syncdb=True)
    assert control_plane() == before


def tables_of(labels: frozenset[str]) -> set[str]:
    models = [model for label in labels for model in apps.get_app_config(label).get_models(include_auto_created=True)]
    # orders.0005_revenue_view makes no table.
    return {model._meta.db_table for model in models}


QUESTIONS = [
    ("showtenants",),
    ("showtenants", "--format=json"),
    ("showtenantmigrations", "--tenant-id=acme"),
    ("migratetenant", "--tenant-id=acme", "--plan"),
    ("migratetenant", "--tenant-id=acme", "--check"),
    ("migratetenant", "--tenant-id=acme", "--plan", "--run-syncdb"),
    ("migratealltenants", "--plan"),
    ("migratealltenants", "--check"),
]


@pytest.mark.parametrize("command", QUESTIONS, ids=" ".join)
@pytest.mark.parametrize("isolation", [Isolation.SCHEMA, Isolation.DATABASE])
@pytest.mark.parametrize("provision", [True, False])
def test_question__changes_nothing(
    plane: None, make_tenant: MakeTenant, isolation: str, provision: bool, command: tuple[str, ...]
) -> None:
    tenant = make_tenant(isolation=isolation, provision=provision)
    before = everything(tenant if provision else None)
    with suppress(CommandError, SystemExit):
        call_command(*command, stdout=io.StringIO(), stderr=io.StringIO())
    assert everything(tenant if provision else None) == before


def everything(tenant: Tenant | None) -> list[Any]:
    homes = [server(), catalog.dsn(configured.DATABASES["default"])]
    if tenant is not None:
        homes.append(catalog.tenant_dsn(tenant))
    found = [(catalog.fingerprint(home), catalog.schemas(home)) for home in homes]
    return [catalog.databases(), *found]


@pytest.mark.parametrize(
    "template", ["Odd Name.{tenant_id}", "sélect-{tenant_id}", "a=b {tenant_id}", "x.y.{tenant_id}"]
)
def test_name__is_quoted_wherever_it_stands(make_tenant: MakeTenant, settings: Any, template: str) -> None:
    settings.TENANT_SCHEMA_TEMPLATE = template
    outside = catalog.schemas(server())
    tenant = make_tenant()
    schema = template.format(tenant_id="acme")
    migrate(tenant)
    assert catalog.schemas(server()) == outside | {schema}
    assert "orders_order" in catalog.tables(server(), schema)
    migrate(tenant, "orders", "0003")
    call_command("migratetenant", "--tenant-id=acme", "orders", "0003", check=True)


@pytest.mark.parametrize(
    "template", ['x"{tenant_id}', "x,{tenant_id}", "x'{tenant_id}", "x\\{tenant_id}", "x;{tenant_id}", "%s{tenant_id}"]
)
def test_name__that_could_be_read_as_more_is_refused(plane: None, settings: Any, template: str) -> None:
    settings.TENANT_SCHEMA_TEMPLATE = template
    before = catalog.schemas(server())
    with pytest.raises(InvalidName):
        create_tenant(tenant_id="acme", name="", isolation=Isolation.SCHEMA, database="shop")
    assert catalog.schemas(server()) == before


def test_name__as_long_as_postgresql_allows_is_not_cut(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_SCHEMA_TEMPLATE = "{tenant_id}_" + "é" * 29
    tenant = make_tenant()
    migrate(tenant)
    assert len(tenant.schema_name.encode()) == 63
    assert tenant.schema_name in catalog.schemas(server())
    settings.TENANT_SCHEMA_TEMPLATE += "x"
    with pytest.raises(InvalidName):
        make_tenant("globe")


SAVE_CONTENT_TYPES = """
real = ContentType.objects.get_for_model(LedgerEntry).pk
content_types = apps.get_model("contenttypes.ContentType").objects
historical = content_types.get_for_model(apps.get_model("orders.LedgerEntry")).pk
LedgerEntry.objects.create(migration=f"{real} {historical}")
"""
AFTER_CONTENT_TYPES = (
    '    dependencies = [("orders", "0002_ledger_entry"), ("contenttypes", "0002_remove_content_type_name")]\n'
)


def test_content_types__are_not_carried_from_one_tenant_to_the_next(
    make_tenant: MakeTenant, settings: Any, third_migration: Callable[..., None]
) -> None:
    settings.TENANT_APPS = ["django.contrib.contenttypes", "django.contrib.auth", *settings.TENANT_APPS]
    third_migration(SAVE_CONTENT_TYPES, AFTER_CONTENT_TYPES)
    of_the_plane = ContentType.objects.get_for_model(Tenant).pk
    tenants = [make_tenant(name) for name in ("acme", "globex")]
    for tenant, start in zip(tenants, (500, 900), strict=True):
        migrate(tenant, "contenttypes")
        ask(tenant, f"ALTER SEQUENCE django_content_type_id_seq RESTART WITH {start}")
    call_command("migratealltenants", verbosity=0)
    for tenant in tenants:
        [(own,)] = ask(tenant, "SELECT id FROM django_content_type WHERE model = 'ledgerentry'")
        assert ledger(tenant) == [f"{own} {own}"]
        orphans = (
            "SELECT count(*) FROM auth_permission WHERE content_type_id NOT IN (SELECT id FROM django_content_type)"
        )
        assert ask(tenant, orphans) == [(0,)]
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM django_content_type WHERE app_label = 'tenants' AND model = 'tenant'")
        assert cursor.fetchone() == (of_the_plane,)
    assert ContentType.objects.get_for_model(Tenant).pk == of_the_plane
