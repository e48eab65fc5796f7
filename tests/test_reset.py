"""Every app of a tenant to zero, and forwards again from there."""

from collections.abc import Callable
from typing import Any

import pytest

from migrations_api.exceptions import CannotReset, ConfirmationRequired, IrreversibleMigration
from migrations_api.models import Action, Rollout
from migrations_api.orchestrator.fleet import plan_for
from migrations_api.orchestrator.requests import Request, request_rollout, request_run
from migrations_api.plan import Refresh, Reset
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.http_api import carry_out
from tests.test_rollouts import carry_out as drive_through
from tests.undoing import MakeTenant, execute, look, migrate, steps, succeeded, whole, work_for

Choose = Callable[..., None]
APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "examples.shop.users",
    "examples.shop.products",
    "examples.shop.orders",
]


def test_reset__leaves_nothing_but_the_empty_record(tenant: Tenant, settings: Any) -> None:
    settings.TENANT_APPS = APPS
    migrate(tenant)

    run = whole(tenant, Action.RESET)

    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == {"django_migrations"}
    assert look(tenant)["applied"] == []
    assert all(backwards and state == "done" for _, backwards, state in steps(run))


def test_refresh__leaves_what_a_new_tenant_has(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_APPS = APPS
    tenant, new = make_tenant(), make_tenant("globex")
    migrate(tenant)
    execute(tenant, "INSERT INTO products_category (name) VALUES ('Toys')")
    migrate(new)

    run = whole(tenant, Action.REFRESH)

    assert look(tenant) == look(new)
    assert run.action == "refresh"
    directions = [backwards for _, backwards, _ in steps(run)]
    assert directions == sorted(directions, reverse=True)
    assert len(directions) == 2 * sum(not each for each in directions)


def test_refresh__of_a_tenant_that_has_nothing_migrates_it(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    run = whole(tenant, Action.REFRESH)
    assert {backwards for _, backwards, _ in steps(run)} == {False}


@pytest.mark.parametrize("done", [2, 5, 8])
def test_refresh__that_is_broken_off_goes_on_where_it_was(make_tenant: MakeTenant, done: int) -> None:
    """In its first part, at the turn, and in its second, in which it must not begin once more."""
    tenant, new = make_tenant(), make_tenant("globex")
    migrate(tenant, "users")
    migrate(new)
    asked = work_for(request_run(tenant, Request(action=Action.REFRESH)), done)
    assert asked.state == "pending"

    run = succeeded(asked)

    assert look(tenant) == look(new)
    found = steps(run)
    assert len(set(found)) == len(found) == 5 + len(look(new)["applied"])


def test_refresh__with_a_pinned_plan_is_carried_on_with(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users")
    digest = plan_for(tenant, Refresh()).digest
    asked = request_run(tenant, Request(action=Action.REFRESH), expected_digest=digest)
    assert work_for(asked, 7).state == "pending"
    succeeded(asked)


def test_reset__of_a_migration_that_this_code_does_not_have(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users")
    execute(tenant, "INSERT INTO django_migrations (app, name, applied) VALUES ('users', '0099_future', now())")
    before = look(tenant)

    with pytest.raises(CannotReset, match=r"users\.0099_future"):
        plan_for(tenant, Reset())
    run = carry_out(request_run(tenant, Request(action=Action.RESET)).pk)

    assert (run.state, run.error_code) == ("failed", "cannot_reset")
    assert look(tenant) == before


def test_reset__irreversible_is_refused_before_anything_is_undone(make_tenant: MakeTenant, broken: Choose) -> None:
    broken(orders="orders_irreversible")
    tenant = make_tenant()
    migrate(tenant)
    before = look(tenant)

    run = carry_out(request_run(tenant, Request(action=Action.RESET)).pk)

    assert (run.state, run.error_code) == ("failed", IrreversibleMigration.code)
    assert "orders.0003_ship_paid" in run.message
    assert look(tenant) == before


def ask(action: Action, **options: Any) -> Rollout:
    return request_rollout(Tenant.objects.all(), Request(action=action), **options)


def test_reset_all__shared_tenants_come_last(make_tenant: MakeTenant) -> None:
    tenants = [make_tenant("acme"), make_tenant("globex"), make_tenant("shared", Isolation.SHARED)]
    for tenant in tenants:
        migrate(tenant)

    rollout = drive_through(ask(Action.RESET))

    assert rollout.state == "succeeded"
    assert dict(rollout.runs.values_list("tenant_id", "wave")) == {"acme": 1, "globex": 1, "shared": 2}
    assert [look(tenant)["applied"] for tenant in tenants] == [[], [], []]


def test_reset_all__is_for_as_many_tenants_as_were_confirmed(make_tenant: MakeTenant) -> None:
    make_tenant()
    with pytest.raises(ConfirmationRequired, match="It is for 1 tenants, and 2 were confirmed"):
        ask(Action.RESET, confirmed=2)
    assert ask(Action.RESET, confirmed=1).total == 1


def test_refresh_all__leaves_what_new_tenants_have(make_tenant: MakeTenant) -> None:
    tenants = [make_tenant("acme"), make_tenant("globex")]
    migrate(tenants[0])
    migrate(tenants[1], "users")

    assert drive_through(ask(Action.REFRESH)).state == "succeeded"

    assert look(tenants[0]) == look(tenants[1])
