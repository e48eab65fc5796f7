"""Whatever was migrated, refreshed and rolled back before: rolling back a run leaves what was there before the run."""

import random
from dataclasses import dataclass
from typing import Any

import pytest

from migrations_api.exceptions import InvalidTransition, NothingToRollBack
from migrations_api.models import Action
from migrations_api.orchestrator.fleet import plan_for
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.rollbacks import chosen, rollback_plan
from migrations_api.plan import Reset, Target
from tenants.models import Isolation, Tenant
from tests import soak
from tests.undoing import MakeTenant, execute, look, migrate, roll_back, succeeded, whole

SEQUENCES = int(soak.sized(3, 100))
STEPS = int(soak.sized(6, 12))
SHOP = ["examples.shop.users", "examples.shop.products", "examples.shop.orders", "examples.shop.plans"]
DJANGO = [f"django.contrib.{app}" for app in ("contenttypes", "auth", "admin", "sessions", "sites")]
# Of what the shop's customers have; each outlives every migration, backwards and forwards, that leaves its table there.
ROWS = {
    "products_category": "INSERT INTO products_category (name) VALUES ('Toys {0}')",
    "plans_plan": "INSERT INTO plans_plan (name, monthly_price) VALUES ('Plan {0}', 1)",
    "django_session": "INSERT INTO django_session VALUES ('key{0}', 'data', now())",
    "auth_group": "INSERT INTO auth_group (name) VALUES ('Group {0}')",
    "django_site": "INSERT INTO django_site (domain, name) VALUES ('{0}.example.com', 'x')",
}


@dataclass(frozen=True, kw_only=True)
class Applied:
    """A run, what was there before it and what right after it."""

    run_id: int
    before: dict[str, Any]
    after: dict[str, Any]


def a_target(random_: random.Random, tenant: Tenant, labels: list[str]) -> Target:
    if random_.random() < 0.2:
        return Target()
    app_label = random_.choice(labels)
    pending = [step.name for step in plan_for(tenant, Target(app_label=app_label)).steps if step.app_label == app_label]
    undone = [step.name for step in plan_for(tenant, Reset()).steps if step.app_label == app_label]
    # Mostly forwards.
    return Target(app_label=app_label, migration_name=random_.choice([*pending, *pending, *undone, "zero"]))


def seen(tenant: Tenant) -> dict[str, Any]:
    """All but a column that Django's own migration drops, and that its way back fills with names of its own."""
    found = look(tenant)
    for row in found["rows"].get("django_content_type", ()):
        row.pop("name", None)
    return found


def add_rows(tenant: Tenant, number: int) -> None:
    there = look(tenant)["rows"]
    for table, statement in ROWS.items():
        if table in there:
            execute(tenant, statement.format(number))


@pytest.mark.parametrize("number", range(SEQUENCES))
@pytest.mark.parametrize("apps", [SHOP, DJANGO, SHOP + DJANGO], ids=["shop", "django", "both"])
def test_rollback__leaves_what_was_there_before_the_run(
    make_tenant: MakeTenant, settings: Any, apps: list[str], number: int
) -> None:
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django.contrib.sites"]
    settings.TENANT_APPS = apps
    random_ = random.Random(number)  # noqa: S311 - the same sequences each time
    tenant = make_tenant("acme", random_.choice([Isolation.SCHEMA, Isolation.DATABASE]))
    migrate(tenant, random_.choice(apps).rpartition(".")[2])
    add_rows(tenant, 0)
    runs: list[Applied] = []
    for step in range(1, STEPS + 1):
        action = random_.choices(["migrate", "rollback", "refresh"], [5, 4, 1])[0]
        if action == "refresh":
            whole(tenant, Action.REFRESH)
            runs.clear()
            add_rows(tenant, step)
        elif action == "migrate":
            target = a_target(random_, tenant, [name.rpartition(".")[2] for name in apps])
            before = seen(tenant)
            forwards = not plan_for(tenant, target).backwards
            run = succeeded(request_run(tenant, Request(target=target)))
            if run.steps.exists():
                runs = [*runs, Applied(run_id=run.pk, before=before, after=seen(tenant))] if forwards else []
        elif runs:
            last = runs.pop()
            assert seen(tenant) == last.after
            assert roll_back(tenant).undoes_id == last.run_id
            assert seen(tenant) == last.before
        else:
            try:
                plan = rollback_plan(tenant, chosen(tenant))
            except (NothingToRollBack, InvalidTransition):
                continue
            keys = [step.name for step in plan.steps]
            assert [step.name for step in roll_back(tenant).steps.all()] == keys
    while runs:
        last = runs.pop()
        assert roll_back(tenant).undoes_id == last.run_id
        assert seen(tenant) == last.before
