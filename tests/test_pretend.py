"""The SQL of a plan, as it would be run in the tenant; nothing of the tenant is changed by asking for it."""

import random
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from django.conf import settings as configured
from django.db.backends.postgresql.schema import DatabaseSchemaEditor

from migrations_api.exceptions import CannotPretend, InvalidOptions, IrreversibleMigration, NothingToRollBack
from migrations_api.executor import repertoire
from migrations_api.executor.transcript import Transcript
from migrations_api.models import Action, MigrationRun
from migrations_api.orchestrator.fleet import plan_for
from migrations_api.orchestrator.pretending import pretend, pretend_apart
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.rollbacks import chosen, rollback_plan
from migrations_api.plan import Plan, Refresh, Reset, Target
from tenants import shadows
from tenants.backends.base import resolved_server_settings, server_cursor
from tenants.exceptions import PermissionDenied
from tenants.models import Isolation, Tenant
from tests import catalog, soak
from tests.http_api import carry_out
from tests.undoing import MakeTenant, ask, execute, look, migrate, succeeded

Choose = Callable[..., None]
PLANS = int(soak.sized(4, 200))
MAX_STEPS = 10
APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "examples.shop.users",
    "examples.shop.products",
    "examples.shop.orders",
    "examples.shop.plans",
]


_made: list[str] = []


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this process: other workers make some at the same time."""
    new_name = shadows._new_name

    def name(cursor: Any) -> str:
        _made.append(new_name(cursor))
        return _made[-1]

    monkeypatch.setattr(shadows, "_new_name", name)


@pytest.fixture(autouse=True)
def _first_tenants() -> None:
    """Of which every statement goes through a schema editor, where it is captured."""
    repertoire.clear()


def left_behind() -> set[str]:
    found = catalog.query(catalog.dsn(configured.DATABASES["default"]), "SELECT datname FROM pg_database")
    return {name for (name,) in found if name in _made}


@contextmanager
def captured() -> Iterator[list[str]]:
    """What schema editors send to the server meanwhile; what Python code in migrations sends does not go that way."""
    found: list[str] = []
    execute = DatabaseSchemaEditor.execute

    def capture(self: DatabaseSchemaEditor, statement: Any, params: Any = ()) -> Any:
        composed = statement if params is None else self.connection.ops.compose_sql(str(statement), params)
        found.append(str(composed))
        return execute(self, statement, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseSchemaEditor, "execute", capture)
        yield found


def texts(plan: Plan, transcript: Transcript) -> list[str]:
    return [each.text for step in plan.steps for each in transcript.of(step) if not each.opaque]


def targets(random_: random.Random, tenant: Tenant) -> Target:
    app_label = random_.choice(["users", "products", "orders", "plans", "auth", "contenttypes"])
    names = [step.name for step in plan_for(tenant, Reset()).steps if step.app_label == app_label]
    pending = plan_for(tenant, Target(app_label=app_label)).steps
    names += [step.name for step in pending if step.app_label == app_label]
    return Target(app_label=app_label, migration_name=random_.choice([*names, "zero"]))


def random_plan(random_: random.Random, tenant: Tenant) -> tuple[Plan, Callable[[], MigrationRun]]:
    """A plan of 1 to 10 steps, and what asks for the run that carries it out."""
    while True:
        kind = random_.choice(["migrate", "migrate", "rollback", "refresh", "reset"])
        if kind == "rollback":
            number = random_.randint(1, MAX_STEPS)
            try:
                plan = rollback_plan(tenant, chosen(tenant, steps=number))
            except (NothingToRollBack, InvalidOptions):
                continue
            make = partial(ask, tenant, steps=number)
        else:
            request = Request(action=Action(kind))
            if kind == "migrate":
                request = Request(target=targets(random_, tenant))
            plan = plan_for(tenant, request.goal)
            make = partial(request_run, tenant, request)
        if 1 <= len(plan.steps) <= MAX_STEPS:
            return plan, make


def timeless(statements: Sequence[str]) -> list[str]:
    """Without the table of Django's own record, and without times: a default of now is another one each time."""
    kept = [text for text in statements if '"django_migrations"' not in text]
    return [re.sub(r"'\d{4}-\d\d-\d\dT[^']*'", "now", text) for text in kept]


@pytest.mark.parametrize("number", range(PLANS))
def test_pretend__is_what_is_then_run(make_tenant: MakeTenant, settings: Any, number: int) -> None:
    settings.TENANT_APPS = APPS
    random_ = random.Random(number)  # noqa: S311 - the same plans each time
    tenant = make_tenant("acme", random_.choice([Isolation.SCHEMA, Isolation.DATABASE]))
    for _ in range(random_.randint(0, 3)):
        migrate_to = targets(random_, tenant)
        carry_out(request_run(tenant, Request(target=migrate_to)).pk)
    plan, make = random_plan(random_, tenant)
    before = look(tenant)

    transcript = pretend(tenant, plan)

    assert look(tenant) == before
    assert left_behind() == set()
    with captured() as real:
        run = succeeded(make())
    assert timeless(texts(plan, transcript)) == timeless(real)
    assert [str(step) for step in plan.steps] == [str(step) for step in run.steps.all()]


def test_pretend__changes_nothing_of_an_empty_tenant(tenant: Tenant) -> None:
    """Not even the table in which migrations are recorded is made."""
    plan = plan_for(tenant, Target())
    transcript = pretend(tenant, plan)
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == set()
    assert 'CREATE TABLE "users_user"' in "".join(texts(plan, transcript))
    assert left_behind() == set()


def test_pretend__of_the_shared_schema(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("shared", Isolation.SHARED)
    plan = plan_for(tenant, Target())
    transcript = pretend(tenant, plan)
    with captured() as real:
        migrate(tenant)
    assert timeless(texts(plan, transcript)) == timeless(real) != []


def test_pretend__python_code_is_opaque(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    plan = plan_for(tenant, Target(app_label="users"))
    transcript = pretend(tenant, plan)
    step = next(step for step in plan.steps if step.name == "0003_full_name")
    assert [each.text for each in transcript.of(step) if each.opaque] == ["Raw Python operation: join_names"]
    assert not any("UPDATE" in text for text in texts(plan, transcript))


def test_pretend__python_code_that_relies_on_rows_does_not_end_it(make_tenant: MakeTenant, broken: Choose) -> None:
    broken(orders="orders_failing_nonatomic")
    tenant = make_tenant("globex")
    migrate(tenant, "orders", "0002")
    plan = plan_for(tenant, Target(app_label="orders"))
    transcript = pretend(tenant, plan)
    [opaque] = [each.text for each in transcript.of(plan.steps[0]) if each.opaque]
    assert opaque.startswith("Raw Python operation: fail_in_globex (without rows, it ends with ")
    assert 'CREATE TABLE "orders_archiveindex"' in "".join(texts(plan, transcript))


def test_pretend__names_what_the_tenant_has_besides(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0002")
    execute(tenant, "ALTER TABLE users_user ADD COLUMN by_hand int, DROP CONSTRAINT users_user_email_unique")

    transcript = pretend(tenant, plan_for(tenant, Target(app_label="users")))

    assert transcript.differences == (
        "+ column users_user by_hand integer",
        "- constraint users_user users_user_email_unique UNIQUE (email)",
        "- index users_user_email_unique",
    )


def test_pretend__of_what_cannot_be_undone(make_tenant: MakeTenant, broken: Choose) -> None:
    broken(orders="orders_irreversible")
    tenant = make_tenant()
    migrate(tenant)
    with pytest.raises(IrreversibleMigration):
        pretend(tenant, plan_for(tenant, Reset()))


def test_pretend__that_fails_leaves_no_database(make_tenant: MakeTenant, broken: Choose) -> None:
    broken(orders="orders_sets_search_path")
    tenant = make_tenant("globex")
    plan = plan_for(tenant, Target())
    with pytest.raises(CannotPretend, match=r"does not bear it out in orders\.0003_search_path: "):
        pretend(tenant, plan)
    assert left_behind() == set()


def test_shadow__without_the_right_to_make_one(make_tenant: MakeTenant, settings: Any) -> None:
    tenant = make_tenant()
    plane = catalog.dsn(settings.DATABASES["default"])
    catalog.query(plane, f"CREATE ROLE poor_{settings.SUFFIX} LOGIN PASSWORD 'poor'")
    poor = {"USER": f"poor_{settings.SUFFIX}", "PASSWORD": "poor"}
    try:
        settings.TENANT_DATABASES = {"shop": {**settings.TENANT_DATABASES["shop"], **poor}}
        refused = pytest.raises(PermissionDenied, match="may not create the scratch database: grant it CREATEDB")
        with refused, shadows.shadow_of(tenant):
            pass
    finally:
        catalog.query(plane, f"DROP ROLE poor_{settings.SUFFIX}")


def test_shadow__on_another_server(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "shadow_server": "default"}
    tenant = make_tenant()
    with shadows.shadow_of(tenant) as shadow:
        assert (shadow.database, shadow.schema_name) == ("default", tenant.schema_name)
        assert shadow.database_name in left_behind()
    assert not Tenant.objects.filter(database_name=shadow.database_name).exists()


def test_shadow__those_left_behind_are_swept_by_their_age(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    plane = catalog.dsn(configured.DATABASES["default"])
    [(now,)] = catalog.query(plane, "SELECT extract(epoch FROM now())::bigint")
    ages = (shadows.LIFETIME + 60, shadows.LIFETIME - 60)
    old, young = (f"tenant_migrations_shadow_{now - age}_{secrets.token_hex(4)}" for age in ages)
    other = f"tenant_migrations_shadow_{configured.SUFFIX}"
    _made.extend([old, young, other])
    for name in (old, young, other):
        catalog.query(plane, f"CREATE DATABASE {name}")
    try:
        with server_cursor(resolved_server_settings(tenant)) as cursor:
            shadows.sweep(cursor)  # unless another worker has just done so
        assert left_behind() == {young, other}
    finally:
        for name in (old, young, other):
            catalog.query(plane, f"DROP DATABASE IF EXISTS {name}")


def test_pretend__beside_other_threads_is_done_in_a_process_of_its_own(
    make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_RUN", configured.SUFFIX)
    tenant = make_tenant()
    migrate(tenant, "users", "0003")
    plan = plan_for(tenant, Refresh())
    assert pretend_apart(tenant, plan) == pretend(tenant, plan)
    assert left_behind() == set()
