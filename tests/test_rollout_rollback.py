"""Undo a rollout: exactly the tenants and steps that it changed, by a rollout."""

from collections.abc import Callable
from typing import Any

import pytest

from migrations_api.exceptions import ConfirmationRequired, InvalidTransition, NothingToRollBack
from migrations_api.models import Action, Rollout
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.requests import Request, request_rollout
from migrations_api.orchestrator.retries import retry_rollout
from migrations_api.orchestrator.rollbacks import preview_rollout_rollback, request_rollout_rollback
from migrations_api.orchestrator.selection import newcomers
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.plan import Target
from tenants.models import Tenant
from tests.test_rollouts import carry_out as drive_through
from tests.undoing import MakeTenant, execute, look, migrate, roll_back

Choose = Callable[..., None]


@pytest.fixture
def fleet(make_tenant: MakeTenant) -> list[Tenant]:
    """One that stands before the rollout's steps, one in the middle of them, and one that has them already."""
    tenants = [make_tenant(name) for name in ("acme", "globex", "initech")]
    migrate(tenants[1], "users", "0003")
    migrate(tenants[2], "users")
    return tenants


def roll_out(*target: str) -> Rollout:
    app_label, name = (*target, None, None)[:2]
    request = Request(target=Target(app_label=app_label, migration_name=name))
    return drive_through(request_rollout(Tenant.objects.all(), request))


def ask(rollout: Rollout, **strategy: Any) -> Rollout:
    request = Request(action=Action.ROLLBACK)
    return request_rollout_rollback(rollout, request, strategy=Strategy.from_dict(strategy))


def test_rollback__undoes_the_tenants_and_steps_that_the_rollout_changed(fleet: list[Tenant]) -> None:
    before = [look(tenant) for tenant in fleet]
    rollout = roll_out("users")
    runs = dict(rollout.runs.values_list("tenant_id", "pk"))

    undone = drive_through(ask(rollout))

    found = [look(tenant) for tenant in fleet]
    assert found[1:] == before[1:]
    assert found[0]["applied"] == []  # but for Django's own table, as empty as it was
    assert (undone.state, undone.action, undone.undoes_id) == ("succeeded", "rollback", rollout.pk)
    assert dict(undone.runs.values_list("tenant_id", "undoes_id")) == {name: runs[name] for name in ("acme", "globex")}
    assert newcomers(undone) == []


def test_rollback__is_done_once(fleet: list[Tenant]) -> None:
    rollout = roll_out("users")
    undone = drive_through(ask(rollout))
    with pytest.raises(NothingToRollBack, match=f"Rollout {rollout.pk} has been rolled back by rollout {undone.pk}"):
        ask(rollout)


def test_rollback__of_a_rollout_that_goes_on(fleet: list[Tenant]) -> None:
    rollout = request_rollout(fleet, Request())
    with pytest.raises(InvalidTransition, match=f"Rollout {rollout.pk} is pending"):
        ask(rollout)


def test_rollback__leaves_out_those_that_were_rolled_back_by_themselves(fleet: list[Tenant]) -> None:
    rollout = roll_out("users")
    roll_back(fleet[0])
    assert set(ask(rollout).runs.values_list("tenant_id", flat=True)) == {"globex"}


def test_rollback__has_waves_and_a_budget(fleet: list[Tenant]) -> None:
    """The canary has gone on since: what depends on the rollout's steps is not taken along, and the rest stays."""
    rollout = roll_out("users", "0004")
    migrate(fleet[0], "users", "0005")
    before = [look(tenant) for tenant in fleet]

    undone = drive_through(ask(rollout, canary=1, max_failures=0, on_error="fail"))

    states = dict(undone.runs.values_list("tenant_id", "state"))
    assert (undone.state, states) == ("failed", {"acme": "failed", "globex": "canceled"})
    assert undone.runs.get(tenant="acme").error_code == "dependent_migrations"
    assert [look(tenant) for tenant in fleet] == before


def test_retry__of_a_rollout_that_rolls_back(fleet: list[Tenant]) -> None:
    before = look(fleet[1])
    rollout = roll_out("users", "0004")
    later = "('users', '0005_address')"
    for tenant in fleet[:2]:
        execute(tenant, f"INSERT INTO django_migrations (app, name, applied) SELECT *, now() FROM (VALUES {later}) v")
    failed = drive_through(ask(rollout))
    assert failed.state == "failed"
    for tenant in fleet[:2]:
        execute(tenant, "DELETE FROM django_migrations WHERE name = '0005_address'")

    again = drive_through(retry_rollout(failed, by="ops", via="command"))

    assert (again.state, again.action, again.undoes_id) == ("succeeded", "rollback", rollout.pk)
    assert look(fleet[1]) == before


def test_preview__shows_who_would_be_taken_back_and_how(fleet: list[Tenant]) -> None:
    rollout = roll_out("users")
    observations.refresh()

    preview = preview_rollout_rollback(rollout, strategy=Strategy())

    assert preview.arrangement.total == 2
    found = {tuple(group.tenant_ids): [str(step) for step in group.plan.steps] for group in preview.plan.groups}
    assert found["globex",] == ["users.0005_address", "users.0004_remove_name_parts"]
    assert len(found["acme",]) == 5
    assert preview.plan.problems == []


def test_rollback__is_for_as_many_tenants_as_were_confirmed(fleet: list[Tenant]) -> None:
    rollout = roll_out("users")
    request = Request(action=Action.ROLLBACK)
    with pytest.raises(ConfirmationRequired, match="It is for 2 tenants, and 3 were confirmed"):
        request_rollout_rollback(rollout, request, strategy=Strategy(), confirmed=3)
