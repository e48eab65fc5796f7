"""Rollback, reset and refresh over HTTP, and the SQL of plans."""

from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings as configured
from rest_framework.test import APIClient

from migrations_api.models import AuditEntry, MigrationRun, Rollout
from migrations_api.orchestrator import pretending
from migrations_api.orchestrator.requests import Request, request_rollout
from tenants.models import Tenant
from tests.http_api import carry_out, refused
from tests.test_rollouts import carry_out as drive_through
from tests.undoing import MakeTenant, look, migrate, roll_back

ClientOf = Callable[[str | None], APIClient]
CONFIRM = {"confirm": "acme"}
ROUTES = ["rollback", "reset", "refresh"]


@pytest.fixture
def acme(make_tenant: MakeTenant) -> Tenant:
    """With a last run that applied one migration."""
    tenant = make_tenant()
    migrate(tenant, "users", "0004")
    migrate(tenant, "users", "0005")
    return tenant


def names(plan: Any) -> list[str]:
    return [f"{'-' if step['backwards'] else '+'}{step['name']}" for step in plan["steps"]]


def test_rollback__answers_with_a_run_to_follow(admin: APIClient, acme: Tenant) -> None:
    last = MigrationRun.objects.latest("pk")

    response = admin.post("/tenants/acme/rollback", CONFIRM)
    run = response.json()

    assert response.status_code == 202
    assert response["Location"] == f"http://testserver/runs/{run['id']}"
    assert (run["action"], run["undoes"], run["state"]) == ("rollback", last.pk, "pending")
    assert len(look(acme)["applied"]) == 5
    assert carry_out(run["id"]).state == "succeeded"
    assert len(look(acme)["applied"]) == 4
    assert AuditEntry.objects.latest("pk").action == "rollback_tenant"


def test_rollback__of_a_run_and_of_steps(admin: APIClient, acme: Tenant) -> None:
    first, last = MigrationRun.objects.order_by("pk")
    assert names(admin.get("/tenants/acme/rollback").json()) == ["-0005_address"]
    assert len(admin.get("/tenants/acme/rollback?steps=5").json()["steps"]) == 5
    assert names(admin.get(f"/tenants/acme/rollback?run={last.pk}").json()) == ["-0005_address"]
    body = refused(admin.get(f"/tenants/acme/rollback?run={first.pk}"), 409, "dependent_migrations")
    assert f"users.0005_address (run {last.pk})" in body["detail"]
    refused(admin.post("/tenants/acme/rollback", {**CONFIRM, "run": first.pk}), 409, "dependent_migrations")
    refused(admin.post("/tenants/acme/rollback", {**CONFIRM, "run": 1, "steps": 1}), 422, "invalid_options")
    refused(admin.post("/tenants/acme/rollback", {**CONFIRM, "run": 10**9}), 422, "invalid_options")
    assert admin.post("/tenants/acme/rollback", {**CONFIRM, "steps": 5}).status_code == 202


def test_rollback__when_nothing_is_left(admin: APIClient, acme: Tenant) -> None:
    roll_back(acme, steps=5)
    refused(admin.get("/tenants/acme/rollback"), 409, "nothing_to_roll_back")
    refused(admin.post("/tenants/acme/rollback", CONFIRM), 409, "nothing_to_roll_back")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("body", "code"),
    [({}, "invalid"), ({"confirm": "globex"}, "confirmation_required"), ({"confirm": 1}, "invalid")],
)
def test_action__has_to_be_confirmed_by_name(admin: APIClient, acme: Tenant, route: str, body: Any, code: str) -> None:
    response = admin.post(f"/tenants/acme/{route}", body)
    if code == "invalid":
        refused(response, 400, code, "errors")
    else:
        refused(response, 422, code)
    assert MigrationRun.objects.count() == 2


@pytest.mark.parametrize("route", ROUTES)
def test_action__pins_the_plan_and_is_done_once_for_a_key(admin: APIClient, acme: Tenant, route: str) -> None:
    etag = admin.get(f"/tenants/acme/{route}")["ETag"]
    refused(
        admin.post(f"/tenants/acme/{route}", CONFIRM, HTTP_IF_MATCH=f'"{"0" * 64}"'),
        412,
        "plan_changed",
        "plan_digest",
    )
    headers = {"HTTP_IF_MATCH": etag, "HTTP_IDEMPOTENCY_KEY": "once"}
    first, second = (admin.post(f"/tenants/acme/{route}", CONFIRM, **headers) for _ in range(2))
    assert (first.status_code, second.json()["id"]) == (202, first.json()["id"])
    assert carry_out(first.json()["id"]).state == "succeeded"


def test_whole__plans(viewer: APIClient, acme: Tenant) -> None:
    back = [f"-{name}" for name in ("0005_address", "0004_remove_name_parts", "0003_full_name", "0002_email_unique")]
    assert names(viewer.get("/tenants/acme/reset").json()) == [*back, "-0001_initial"]
    refresh = names(viewer.get("/tenants/acme/refresh").json())
    assert refresh[:5] == [*back, "-0001_initial"]
    assert len(refresh) == 20


def test_retry__of_what_undoes_takes_an_admin(operator: APIClient, admin: APIClient, acme: Tenant) -> None:
    run = admin.post("/tenants/acme/reset", CONFIRM).json()
    assert admin.post(f"/runs/{run['id']}/cancel").status_code == 202
    refused(operator.post(f"/runs/{run['id']}/retry"), 403, "permission_denied")
    assert admin.post(f"/runs/{run['id']}/retry").json()["action"] == "reset"


def rolled_out() -> Rollout:
    return drive_through(request_rollout(Tenant.objects.all(), Request()))


def test_rollout_rollback__is_confirmed_by_the_number_of_tenants(admin: APIClient, acme: Tenant) -> None:
    before = look(acme)
    path = f"/rollouts/{rolled_out().pk}/rollback"

    preview = admin.post(path, {"dry_run": True})
    for confirm in ({}, {"confirm": 2}):
        refused(admin.post(path, confirm), 422, "confirmation_required")
    response = admin.post(path, {"confirm": 1, "strategy": {"canary": 1, "max_failures": 0}})

    assert (preview.status_code, preview.json()["total"]) == (200, 1)
    assert len(preview.json()["groups"][0]["plan"]["steps"]) == 10
    rollout = response.json()
    assert (response.status_code, rollout["action"]) == (202, "rollback")
    assert response["Location"] == f"http://testserver/rollouts/{rollout['id']}"
    assert drive_through(Rollout.objects.get(pk=rollout["id"])).state == "succeeded"
    assert look(acme) == before
    refused(admin.post(path, {"confirm": 1}), 409, "nothing_to_roll_back")


@pytest.mark.parametrize(("action", "left"), [("reset", 0), ("refresh", 15)])
def test_all__is_confirmed_by_the_number_of_tenants(
    admin: APIClient, acme: Tenant, make_tenant: MakeTenant, action: str, left: int
) -> None:
    make_tenant("globex")
    path, body = f"/tenants/{action}-all", {"selector": {"tenant_ids": ["acme"]}}

    preview = admin.post(path, {**body, "dry_run": True})
    detail = refused(admin.post(path, body), 422, "confirmation_required")["detail"]
    refused(admin.post(path, {**body, "confirm": 2}), 422, "confirmation_required")
    response = admin.post(path, {**body, "confirm": 1})

    assert detail == 'To confirm, send "confirm": 1.'
    assert (preview.status_code, preview.json()["total"]) == (200, 1)
    assert (response.status_code, response.json()["action"]) == (202, action)
    assert drive_through(Rollout.objects.get(pk=response.json()["id"])).state == "succeeded"
    assert len(look(acme)["applied"]) == left


# SQL


def test_sql__of_a_plan(operator: APIClient, acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_RUN", configured.SUFFIX)
    before = look(acme)

    plain = operator.get("/tenants/acme/plan?app_label=users&migration_name=0004").json()
    told = operator.get("/tenants/acme/plan?app_label=users&migration_name=0004&sql=true")

    assert (plain["steps"][0]["statements"], plain["differences"]) == (None, None)
    assert told.status_code == 200, told.content
    [step] = told.json()["steps"]
    assert step["statements"] == [{"text": 'DROP TABLE "users_address" CASCADE', "opaque": False}]
    assert told.json()["differences"] == []
    assert told["ETag"] == f'"{plain["plan_digest"]}"'
    assert look(acme) == before


@pytest.mark.parametrize("route", ["plan", *ROUTES])
def test_sql__takes_an_operator(viewer: APIClient, acme: Tenant, route: str) -> None:
    assert viewer.get(f"/tenants/acme/{route}").status_code == 200
    refused(viewer.get(f"/tenants/acme/{route}?sql=true"), 403, "permission_denied")


@pytest.mark.parametrize("route", ROUTES)
def test_sql__of_what_undoes(operator: APIClient, acme: Tenant, monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    monkeypatch.setenv("TEST_RUN", configured.SUFFIX)
    steps = operator.get(f"/tenants/acme/{route}?sql=true").json()["steps"]
    assert steps[0]["statements"] == [{"text": 'DROP TABLE "users_address" CASCADE', "opaque": False}]
    assert all(step["statements"] is not None for step in steps)


def test_sql__is_bounded_in_time(operator: APIClient, acme: Tenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "pretend_timeout": 0.01}
    body = refused(operator.get("/tenants/acme/plan?sql=true"), 503, "pretended_too_long")
    assert body["detail"] == "The SQL of the plan was not ready within 0.01 seconds."


def test_sql__of_so_many_plans_at_once(operator: APIClient, acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(pretending.AT_ONCE):
        pretending._places.acquire()
    try:
        response = operator.get("/tenants/acme/plan?sql=true")
    finally:
        for _ in range(pretending.AT_ONCE):
            pretending._places.release()
    refused(response, 503, "too_many_pretended")
    assert response["Retry-After"] == "30"
