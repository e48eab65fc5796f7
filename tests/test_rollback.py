"""Undo exactly what a run has applied, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from migrations_api.exceptions import (
    CannotRollBack,
    DependentMigrations,
    InvalidOptions,
    InvalidTransition,
    IrreversibleMigration,
    NothingToRollBack,
    RunActive,
    TenantHeld,
    TenantPartial,
)
from migrations_api.models import Action
from migrations_api.orchestrator.holds import hold
from migrations_api.orchestrator.registration import forget
from migrations_api.orchestrator.repairs import request_repair
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.rollbacks import chosen, request_rollback, rollback_plan
from migrations_api.orchestrator.verbs import retry_run
from tenants.models import Tenant
from tests import catalog
from tests.http_api import carry_out
from tests.undoing import MakeTenant, ask, execute, look, migrate, roll_back, steps, succeeded, whole, work_for

Choose = Callable[..., None]
CONTENT_TYPES = ["django.contrib.contenttypes", "django.contrib.auth", "examples.shop.users", "examples.shop.products"]


def test_rollback__undoes_the_last_run_backwards_in_order(tenant: Tenant) -> None:
    migrate(tenant, "orders", "0002")
    before = look(tenant)
    last = migrate(tenant, "orders")

    run = roll_back(tenant)

    assert look(tenant) == before
    assert (run.action, run.undoes_id, run.state) == ("rollback", last.pk, "succeeded")
    names = ["orders.0005_revenue_view", "orders.0004_status_index", "orders.0003_order_total"]
    assert steps(run) == [(name, True, "done") for name in names]


def test_rollback__goes_run_by_run_until_nothing_is_left(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    first = migrate(tenant, "users", "0001")
    second = migrate(tenant, "users", "0003")
    migrate(tenant, "users")  # the third
    migrate(tenant, "users")  # which applies nothing

    undone = [roll_back(tenant).undoes_id for _ in range(3)]

    assert undone[1:] == [second.pk, first.pk]
    assert look(tenant)["applied"] == []
    with pytest.raises(NothingToRollBack):
        ask(tenant)


def test_rollback__of_a_run_is_done_once(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    run = migrate(tenant, "users")
    by = roll_back(tenant, run_id=run.pk)

    with pytest.raises(NothingToRollBack, match=f"Run {run.pk} has been rolled back by run {by.pk}."):
        ask(tenant, run_id=run.pk)


def test_rollback__of_a_run_that_failed_undoes_what_it_had_done(make_tenant: MakeTenant, broken: Choose) -> None:
    broken(orders="orders_failing_data")
    tenant = make_tenant("globex")
    migrate(tenant, "users")
    before = look(tenant)
    failed = migrate(tenant, "orders")
    assert failed.state == "failed"
    assert look(tenant) != before

    assert roll_back(tenant).undoes_id == failed.pk

    assert look(tenant) == before


def test_rollback__leaves_alone_what_later_runs_applied(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    run = migrate(tenant, "products", "0003")
    migrate(tenant, "users")

    roll_back(tenant, run_id=run.pk)

    assert {app for app, _ in look(tenant)["applied"]} == {"users"}
    assert "users_address" in look(tenant)["rows"]


def test_rollback__names_what_depends_on_it_and_who_applied_that(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    run = migrate(tenant, "orders", "0003")
    later = migrate(tenant, "orders")
    before = look(tenant)

    named = rf"orders.0004_status_index \(run {later.pk}\), orders.0005_revenue_view \(run {later.pk}\)"
    with pytest.raises(DependentMigrations, match=named):
        ask(tenant, run_id=run.pk)
    with pytest.raises(DependentMigrations, match=named):
        rollback_plan(tenant, chosen(tenant, run_id=run.pk))
    assert look(tenant) == before


def test_rollback__sees_under_the_lock_what_was_applied_elsewhere(make_tenant: MakeTenant) -> None:
    """The service's own rows say nothing of it."""
    tenant = make_tenant()
    migrate(tenant, "orders", "0004")
    asked = ask(tenant)
    execute(tenant, "INSERT INTO django_migrations (app, name, applied) VALUES ('orders', '0005_revenue_view', now())")
    before = look(tenant)

    run = carry_out(asked.pk)

    assert (run.state, run.error_code) == ("failed", "dependent_migrations")
    assert "orders.0005_revenue_view" in run.message
    assert look(tenant) == before


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM django_migrations WHERE name = '0005_address'", "Not applied any more, .*: users.0005_address"),
        (
            "INSERT INTO django_migrations (app, name, applied) VALUES ('users', '0099_future', now())",
            "unknown to this code: users.0099_future",
        ),
    ],
    ids=["undone", "newer"],
)
def test_rollback__is_refused_where_the_applied_set_is_not_what_it_was(
    make_tenant: MakeTenant, statement: str, message: str
) -> None:
    tenant = make_tenant()
    migrate(tenant, "users")
    asked = ask(tenant)
    execute(tenant, statement)
    before = look(tenant)

    run = carry_out(asked.pk)

    assert (run.state, run.error_code) == ("failed", "cannot_roll_back")
    with pytest.raises(CannotRollBack, match=message):
        rollback_plan(tenant, chosen(tenant))
    assert look(tenant) == before


def test_rollback__does_not_mind_what_was_unknown_before(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    execute(tenant, "INSERT INTO django_migrations (app, name, applied) VALUES ('users', '0099_future', now())")
    before = look(tenant)
    migrate(tenant, "products")

    roll_back(tenant)

    assert look(tenant) == before


def test_rollback__of_a_pinned_plan_only(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    migrate(tenant, "users")
    digest = rollback_plan(tenant, chosen(tenant)).digest
    request = Request(action=Action.ROLLBACK)
    asked = request_rollback(tenant, chosen(tenant), request, expected_digest=digest)
    execute(tenant, "INSERT INTO django_migrations (app, name, applied) VALUES ('products', '0001_initial', now())")

    run = carry_out(asked.pk)

    assert (run.state, run.error_code) == ("failed", "plan_changed")


def test_steps__are_the_last_ones_whichever_runs_applied_them(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0003")
    before = look(tenant)
    migrate(tenant, "users", "0004")
    migrate(tenant, "users", "0005")
    migrate(tenant, "products", "0001")

    run = roll_back(tenant, steps=3)

    assert look(tenant) == before
    assert run.undoes_id is None
    assert [name for name, *_ in steps(run)] == [
        "products.0001_initial",
        "users.0005_address",
        "users.0004_remove_name_parts",
    ]


def test_steps__more_than_there_are(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0002")
    with pytest.raises(InvalidOptions, match="have applied 2 migrations that are not undone; not 3"):
        ask(tenant, steps=3)
    with pytest.raises(InvalidOptions, match="not both"):
        ask(tenant, steps=1, run_id=1)


def test_rollback__irreversible_is_refused_by_name_before_anything_is_undone(
    make_tenant: MakeTenant, broken: Choose
) -> None:
    broken(orders="orders_irreversible")
    tenant = make_tenant()
    migrate(tenant, "orders")
    before = look(tenant)

    with pytest.raises(IrreversibleMigration, match=r"cannot be undone: orders\.0003_ship_paid"):
        ask(tenant)
    assert look(tenant) == before


def test_rollback__of_what_was_faked_is_faked(make_tenant: MakeTenant, broken: Choose) -> None:
    """Even of what could not be undone: it was never run."""
    broken(orders="orders_irreversible")
    tenant = make_tenant()
    migrate(tenant, "orders", "0002")
    before = look(tenant)
    migrate(tenant, "orders", fake=True)

    run = roll_back(tenant)

    assert steps(run) == [("orders.0003_ship_paid", True, "faked")]
    assert look(tenant) == before


def test_rollback__of_a_run_that_went_backwards(make_tenant: MakeTenant) -> None:
    """The one that it went back from is the last; of that, the rest."""
    tenant = make_tenant()
    first = migrate(tenant, "users")
    backwards = migrate(tenant, "users", "0003")

    with pytest.raises(NothingToRollBack, match=f"Run {backwards.pk} has only undone migrations. .*migrate forwards"):
        ask(tenant, run_id=backwards.pk)
    assert roll_back(tenant).undoes_id == first.pk
    assert look(tenant)["applied"] == []


def test_rollback__of_a_rollback(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users")
    run = roll_back(tenant)
    with pytest.raises(NothingToRollBack, match="has only undone migrations"):
        ask(tenant, run_id=run.pk)


def test_rollback__of_a_run_that_is_not_over(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    active = request_run(tenant, Request())
    with pytest.raises(InvalidTransition, match=f"Run {active.pk} is pending"):
        ask(tenant, run_id=active.pk)
    with pytest.raises(RunActive):
        request_rollback(tenant, chosen(tenant), Request(action=Action.ROLLBACK))


def test_rollback__of_another_tenants_run(make_tenant: MakeTenant) -> None:
    tenant, other = make_tenant(), make_tenant("globex")
    run = migrate(other, "users")
    with pytest.raises(InvalidOptions, match=f"Tenant 'acme' has no run {run.pk}"):
        ask(tenant, run_id=run.pk)


def test_rollback__of_a_tenant_that_is_held(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users")
    hold(tenant, by="ops", reason="moving")
    with pytest.raises(TenantHeld):
        ask(tenant)


def test_rollback__of_an_earlier_tenant_of_the_same_name(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users")
    forget(tenant, drop=True)
    again = make_tenant()
    with pytest.raises(NothingToRollBack):
        ask(again)


def test_rollback__that_is_broken_off_goes_on_where_it_was(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    before = look(tenant)
    migrate(tenant, "users")
    asked = work_for(ask(tenant), 2)
    assert asked.state == "pending"

    run = succeeded(asked)

    assert look(tenant) == before
    assert [state for *_, state in steps(run)] == ["done"] * 4


def test_retry__of_a_rollback_does_the_rest(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    before = look(tenant)
    applied = migrate(tenant, "users")
    canceled = work_for(ask(tenant), 2, requeues=False)
    assert canceled.state == "canceled"

    again = succeeded(retry_run(canceled, by="ops", via="command"))

    assert (again.action, again.retry_of_id, again.undoes_id) == ("rollback", canceled.pk, applied.pk)
    assert len(steps(again)) == 2
    assert look(tenant) == before


def test_squashed__is_undone_as_a_whole(make_tenant: MakeTenant, broken: Choose) -> None:
    tenant = make_tenant()
    migrate(tenant, "products")
    broken(products="products_squashed")
    migrate(tenant, "products")  # records the squashed one

    run = roll_back(tenant)

    assert [name for name, *_ in steps(run)] == ["products.0001_squashed_0005_label_to_tag"]
    assert look(tenant)["applied"] == []
    with pytest.raises(NothingToRollBack):
        ask(tenant)


def test_squashed__a_part_of_it_is_refused(make_tenant: MakeTenant, broken: Choose) -> None:
    tenant = make_tenant()
    migrate(tenant, "products", "0002")
    migrate(tenant, "products")
    broken(products="products_squashed")
    before = look(tenant)

    with pytest.raises(CannotRollBack, match=r"0001_squashed_0005_label_to_tag replaces .*only be undone as a whole"):
        ask(tenant)
    assert look(tenant) == before


def test_rollback__takes_content_types_and_permissions_along(make_tenant: MakeTenant, settings: Any) -> None:
    """Also those of a model that was renamed in between."""
    settings.TENANT_APPS = CONTENT_TYPES
    tenant = make_tenant()
    migrate(tenant, "auth")
    migrate(tenant, "products", "0004")
    before = look(tenant)
    migrate(tenant)
    assert look(tenant)["rows"]["auth_permission"] != before["rows"]["auth_permission"]

    roll_back(tenant)

    assert look(tenant) == before


def test_refresh__cannot_be_rolled_back(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users")
    run = whole(tenant, Action.REFRESH)
    with pytest.raises(InvalidTransition, match=f"Run {run.pk} is a refresh"):
        ask(tenant)
    assert catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)


def test_repaired__what_a_repair_has_finished_belongs_to_the_run(make_tenant: MakeTenant, broken: Choose) -> None:
    broken(orders="orders_failing_nonatomic")
    tenant = make_tenant()
    migrate(tenant, "orders", "0002")
    before = look(tenant)
    execute(tenant, "CREATE TABLE orders_archiveindex ()")
    partial = migrate(tenant, "orders")
    assert partial.state == "partial"
    with pytest.raises(TenantPartial, match="Repair it first"):
        ask(tenant)
    with pytest.raises(TenantPartial, match="Repair it first"):
        rollback_plan(tenant, chosen(tenant))
    execute(tenant, "DROP TABLE orders_archiveindex")
    succeeded(request_repair(partial, "redo", reason="", by="ops", via="command"))

    run = roll_back(tenant)

    assert (run.undoes_id, steps(run)) == (partial.pk, [("orders.0003_archive", True, "done")])
    assert look(tenant) == before
