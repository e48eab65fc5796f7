from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from rest_framework.test import APIClient

from migrations_api.models import AuditEntry, MigrationRun, Rollout, RunStep
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.plan import Target
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.command_line import manage
from tests.http_api import carry_out, refused, registered
from tests.processes import processes, wait_until

ClientOf = Callable[[str | None], APIClient]
MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]
MIGRATE, MIGRATE_ALL = "/tenants/acme/migrate", "/tenants/migrate-all"
BACK = {"app_label": "users", "migration_name": "0004"}
DIGEST = "0" * 64


def applied(tenant: Tenant) -> list[tuple[str, str]]:
    return catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)


def tables(tenant: Tenant) -> set[str]:
    return catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name)


def dump(tenant: Tenant) -> str:
    return catalog.dump(catalog.tenant_dsn(tenant), tenant.schema_name)


def migrated(tenant: Tenant) -> Tenant:
    carry_out(request_run(tenant, Request()).pk)
    return tenant


def etag(client: APIClient, **query: str) -> str:
    response = client.get("/tenants/acme/plan", query)
    return str(response["ETag"])


# What is accepted


def test_migrate__answers_with_a_run_to_follow(operator: APIClient, tenant: Tenant) -> None:
    response = operator.post(MIGRATE)
    run = response.json()

    assert response.status_code == 202
    assert response["Location"] == f"http://testserver/runs/{run['id']}"
    assert operator.get(response["Location"]).json() == run
    assert {name: run[name] for name in ("tenant_id", "state", "steps", "options", "attempt", "error_code")} == {
        "tenant_id": "acme",
        "state": "pending",
        "steps": [],
        # Without a confirmation.
        "options": {"allow_backwards": False},
        "attempt": 0,
        "error_code": "",
    }
    assert (run["requested_by"], run["requested_via"]) == ("operator", "api")
    assert tables(tenant) == set()

    assert carry_out(run["id"]).state == "succeeded"
    seen = operator.get(response["Location"]).json()
    assert (seen["state"], len(seen["steps"])) == ("succeeded", 15)
    assert {step["state"] for step in seen["steps"]} == {"done"}
    assert operator.get("/tenants/acme").json()["status"] == "up_to_date"


def test_migrate__target_and_options_are_the_runs(admin: APIClient, db: None) -> None:
    registered("acme")
    body = {"app_label": "orders", "migration_name": "0002", "fake": True, "run_syncdb": True, "confirm": "acme"}
    response = admin.post(MIGRATE, body)

    run = response.json()
    assert (run["app_label"], run["migration_name"]) == ("orders", "0002")
    # What a confirmed request may do more than others is the default, and stored as such.
    assert run["options"] == {"fake": True, "run_syncdb": True}
    assert AuditEntry.objects.get().tenant_ids == ["acme"]
    assert AuditEntry.objects.get().object_id == str(run["id"])


def test_migrate__nothing_to_do_succeeds(operator: APIClient, make_tenant: MakeTenant) -> None:
    migrated(make_tenant("acme"))
    run = carry_out(operator.post(MIGRATE).json()["id"])
    assert (run.state, run.steps.count()) == ("succeeded", 0)


def test_migrate__of_a_server_that_is_down_is_accepted(operator: APIClient, plane: None, settings: Any) -> None:
    down = {**configured.TENANT_DATABASES["shop"], "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "down": down}
    registered("acme", database="down")
    response = operator.post(MIGRATE)

    assert response.status_code == 202
    run = carry_out(response.json()["id"])
    assert (run.state, run.error_code) == ("failed", "unreachable")


def test_migrate_all__answers_with_a_rollout_to_follow(operator: APIClient, make_tenant: MakeTenant) -> None:
    make_tenant("acme")
    make_tenant("globex", Isolation.DATABASE)
    make_tenant("shop", Isolation.SHARED)
    response = operator.post(MIGRATE_ALL, {"strategy": {"on_error": "fail"}})
    rollout = response.json()

    assert response.status_code == 202
    assert response["Location"] == f"http://testserver/rollouts/{rollout['id']}"
    detail = operator.get(response["Location"]).json()
    assert {name: value for name, value in detail.items() if name in rollout} == rollout
    assert (rollout["state"], rollout["strategy"], rollout["runs"]["pending"]) == ("pending", {"on_error": "fail"}, 3)
    assert sum(rollout["runs"].values()) == 3
    assert AuditEntry.objects.get().object_id == str(rollout["id"])


def test_migrate_all__is_carried_out_by_a_coordinator(
    operator: APIClient, make_tenant: MakeTenant, tmp_path: Path
) -> None:
    for name in ("acme", "globex"):
        make_tenant(name)
    location = operator.post(MIGRATE_ALL)["Location"]
    with processes(tmp_path) as start:
        start("coordinate", broken={"orders": "orders_failing_data"})
        wait_until(lambda: operator.get(location).json()["finished_at"])

    rollout = operator.get(location).json()
    assert (rollout["state"], rollout["runs"]["succeeded"], rollout["runs"]["failed"]) == ("failed", 1, 1)
    [group] = operator.get(f"/rollouts/{rollout['id']}/failures").json()
    assert (group["count"], group["failed_step"]) == (1, "orders.0003_channel")


def test_migrate_all__only_one_kind(operator: APIClient, db: None) -> None:
    registered("acme")
    registered("globex", isolation=Isolation.DATABASE)
    rollout = operator.post(MIGRATE_ALL, {"selector": {"isolation": "database"}}).json()
    runs = operator.get(f"/rollouts/{rollout['id']}/runs").json()["results"]
    assert [run["tenant_id"] for run in runs] == ["globex"]


def test_migrate_all__reaches_the_kinds_that_have_the_app(operator: APIClient, db: None) -> None:
    registered("acme")
    registered("shared", isolation=Isolation.SHARED)
    rollout = operator.post(MIGRATE_ALL, {"app_label": "plans"}).json()
    runs = operator.get(f"/rollouts/{rollout['id']}/runs").json()["results"]
    assert [run["tenant_id"] for run in runs] == ["shared"]


def test_migrate_all__without_tenants(operator: APIClient, db: None) -> None:
    assert sum(operator.post(MIGRATE_ALL).json()["runs"].values()) == 0


# What is refused

TARGETS = [
    ({"app_label": "crm"}, "unknown_app"),
    ({"app_label": "users", "migration_name": "0099"}, "unknown_migration"),
    ({"app_label": "orders", "migration_name": "000"}, "ambiguous_migration"),
    ({"migration_name": "0001"}, "unknown_migration"),
]
CONFIRMED = [
    ({"prune": True}, "invalid_options"),
    ({"fake": True, "fake_initial": True}, "invalid_options"),
    ({"prune": True, "app_label": "users", "migration_name": "zero"}, "invalid_options"),
]


@pytest.mark.parametrize("path", [MIGRATE, MIGRATE_ALL])
@pytest.mark.parametrize(("body", "code"), [*TARGETS, *CONFIRMED])
def test_refused__target_or_options(admin: APIClient, db: None, path: str, body: dict[str, Any], code: str) -> None:
    registered("acme")
    refused(admin.post(path, {**body, "confirm": "acme" if path == MIGRATE else "all"}), 422, code)
    assert not MigrationRun.objects.exists()
    assert not Rollout.objects.exists()


@pytest.mark.parametrize("path", [MIGRATE, MIGRATE_ALL])
@pytest.mark.parametrize(
    "body",
    [
        {"fakes": True},
        {"fake": "false"},
        {"fake": 1},
        {"fake": None},
        {"prune": []},
        {"app_label": 5},
        {"app_label": ""},
        {"app_label": "x" * 256},
        {"migration_name": {"a": 1}},
        {"confirm": True},
        {"tenant_id": "acme"},
    ],
)
def test_refused__body(operator: APIClient, db: None, path: str, body: dict[str, Any]) -> None:
    registered("acme")
    found = refused(operator.post(path, body), 400, "invalid", "errors")
    assert [error["pointer"] for error in found["errors"]] == [f"/{name}" for name in body]
    assert not MigrationRun.objects.exists()


def test_refused__tenant_that_does_not_exist(operator: APIClient, db: None) -> None:
    refused(operator.post("/tenants/nobody/migrate"), 404, "tenant_not_found")
    assert operator.post("/tenants/plan/migrate").status_code == 404
    assert operator.get(MIGRATE_ALL).status_code == 405


def test_refused__second_run_names_the_first(operator: APIClient, db: None) -> None:
    registered("acme", "globex")
    first = operator.post(MIGRATE).json()["id"]
    body = refused(operator.post(MIGRATE), 409, "run_active", "run_id")
    assert body["run_id"] == first
    assert list(MigrationRun.objects.values_list("pk", flat=True)) == [first]


def test_migrate_all__skips_a_tenant_that_has_an_unfinished_run(operator: APIClient, db: None) -> None:
    registered("acme", "globex")
    first = operator.post(MIGRATE).json()["id"]
    rollout = operator.post(MIGRATE_ALL).json()
    assert (rollout["runs"]["pending"], rollout["runs"]["skipped"]) == (1, 1)
    (failure,) = operator.get(f"/rollouts/{rollout['id']}/failures").json()
    assert (failure["error_code"], failure["message"]) == (
        "run_active",
        f"Tenant 'acme' has an unfinished run: {first}.",
    )


# Rights and confirmation

GRAVE: list[dict[str, Any]] = [
    {"fake": True},
    {"fake_initial": True},
    {"prune": True, "app_label": "users"},
    {"app_label": "users", "migration_name": "zero"},
]


@pytest.mark.parametrize(("path", "word"), [(MIGRATE, "acme"), (MIGRATE_ALL, "all")])
@pytest.mark.parametrize("body", GRAVE)
def test_grave__needs_admin_and_confirmation(
    client_of: ClientOf, db: None, path: str, word: str, body: dict[str, Any]
) -> None:
    registered("acme")
    operator, admin = client_of("operator"), client_of("admin")
    for attempt in ({}, {"confirm": word}):
        refused(operator.post(path, {**body, **attempt}), 403, "permission_denied")
    for wrong in ({}, {"confirm": "yes"}, {"confirm": word.upper()}, {"confirm": f" {word}"}):
        refused(admin.post(path, {**body, **wrong}), 422, "confirmation_required")
    assert not MigrationRun.objects.exists()
    assert admin.post(path, {**body, "confirm": word}).status_code == 202
    assert MigrationRun.objects.count() == 1


def test_backwards__unconfirmed_ends_as_a_failed_run(operator: APIClient, make_tenant: MakeTenant) -> None:
    tenant = migrated(make_tenant("acme"))
    before = applied(tenant), dump(tenant)
    run = carry_out(operator.post(MIGRATE, BACK).json()["id"])

    assert (run.state, run.error_code) == ("failed", "confirmation_required")
    assert (applied(tenant), dump(tenant)) == before


def test_backwards__admin_without_confirmation_neither(admin: APIClient, make_tenant: MakeTenant) -> None:
    tenant = migrated(make_tenant("acme"))
    run = carry_out(admin.post(MIGRATE, BACK).json()["id"])
    assert (run.error_code, len(applied(tenant))) == ("confirmation_required", 15)


def test_backwards__confirmed(admin: APIClient, tenant: Tenant) -> None:
    migrated(tenant)
    run = carry_out(admin.post(MIGRATE, {**BACK, "confirm": "acme"}).json()["id"])
    assert run.state == "succeeded"
    assert ("users", "0005_address") not in applied(tenant)
    assert [(step.name, step.backwards) for step in run.steps.all()] == [("0005_address", True)]


def test_backwards__operator_may_not_confirm(operator: APIClient, db: None) -> None:
    registered("acme")
    refused(operator.post(MIGRATE, {**BACK, "confirm": "acme"}), 403, "permission_denied")
    refused(operator.post(MIGRATE_ALL, {**BACK, "confirm": "all"}), 403, "permission_denied")


def test_prune__forgets_what_is_gone_from_disk(admin: APIClient, make_tenant: MakeTenant) -> None:
    tenant = migrated(make_tenant("acme"))
    catalog.query(
        catalog.tenant_dsn(tenant),
        "INSERT INTO public_acme.django_migrations (app, name, applied) VALUES ('users', '0000_gone', now())",
    )
    body = {"app_label": "users", "prune": True, "confirm": "acme"}
    assert carry_out(admin.post(MIGRATE, body).json()["id"]).state == "succeeded"
    assert ("users", "0000_gone") not in applied(tenant)


# If-Match


def test_if_match__same_plan(operator: APIClient, tenant: Tenant) -> None:
    tag = etag(operator)
    response = operator.post(MIGRATE, headers={"If-Match": tag})
    assert response.status_code == 202
    run = carry_out(response.json()["id"])
    assert (run.state, f'"{run.plan_digest}"') == ("succeeded", tag)


def test_if_match__is_of_the_same_target(operator: APIClient, make_tenant: MakeTenant) -> None:
    make_tenant("acme")
    target = {"app_label": "users", "migration_name": "0002"}
    assert etag(operator) != etag(operator, **target)
    refused(operator.post(MIGRATE, headers={"If-Match": etag(operator, **target)}), 412, "plan_changed", "plan_digest")
    assert operator.post(MIGRATE, target, headers={"If-Match": etag(operator, **target)}).status_code == 202


def test_if_match__plan_changed_is_told_at_once_with_the_new_digest(
    operator: APIClient, make_tenant: MakeTenant
) -> None:
    tenant = make_tenant("acme")
    tag = etag(operator)
    carry_out(request_run(tenant, Request(target=Target(app_label="products"))).pk)
    body = refused(operator.post(MIGRATE, headers={"If-Match": tag}), 412, "plan_changed", "plan_digest")

    assert f'"{body["plan_digest"]}"' == etag(operator) != tag
    assert MigrationRun.objects.filter(requested_via="api").count() == 0
    assert operator.post(MIGRATE, headers={"If-Match": f'"{body["plan_digest"]}"'}).status_code == 202


def test_if_match__is_looked_at_again_under_the_tenants_lock(operator: APIClient, make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")
    run_id = operator.post(MIGRATE, headers={"If-Match": etag(operator)}).json()["id"]
    catalog.query(
        catalog.tenant_dsn(tenant),
        "CREATE TABLE public_acme.django_migrations"
        " (id bigserial PRIMARY KEY, app varchar(255), name varchar(255), applied timestamptz);"
        "INSERT INTO public_acme.django_migrations (app, name, applied) VALUES ('users', '0001_initial', now())",
    )
    run = carry_out(run_id)
    assert (run.state, run.error_code) == ("failed", "plan_changed")
    assert tables(tenant) == {"django_migrations"}


def test_if_match__tenant_that_cannot_be_read(operator: APIClient, plane: None, settings: Any) -> None:
    down = {**configured.TENANT_DATABASES["shop"], "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "down": down}
    registered("acme", database="down")
    registered("globex")
    pinned = {"If-Match": f'"{DIGEST}"'}
    refused(operator.post(MIGRATE, headers=pinned), 502, "unreachable")
    refused(operator.post("/tenants/globex/migrate", headers=pinned), 409, "unprovisioned")
    assert not MigrationRun.objects.exists()


MALFORMED_TAGS = [
    "",
    "*",
    DIGEST,
    f'W/"{DIGEST}"',
    f'"{DIGEST}", "{DIGEST}"',
    f'"{DIGEST[:-1]}"',
    f'"{DIGEST[:-1]}G"',
    '""',
]


@pytest.mark.parametrize("tag", MALFORMED_TAGS)
def test_if_match__malformed_is_refused(operator: APIClient, db: None, tag: str) -> None:
    registered("acme")
    refused(operator.post(MIGRATE, headers={"If-Match": tag}), 400, "malformed_header")
    assert not MigrationRun.objects.exists()


# Prefer


@pytest.mark.parametrize(
    "prefer", ["", "wait", "wait=", "wait=-1", "wait=61", "wait=1.5", "wait=9999", "respond", "wait=1;x"]
)
@pytest.mark.parametrize("path", [MIGRATE, MIGRATE_ALL])
def test_prefer__malformed_is_refused_before_anything_is_accepted(
    operator: APIClient, db: None, path: str, prefer: str
) -> None:
    registered("acme")
    refused(operator.post(path, headers={"Prefer": prefer}), 400, "malformed_header")
    assert not MigrationRun.objects.exists()


def test_prefer__answers_when_it_has_ended(operator: APIClient, make_tenant: MakeTenant, tmp_path: Path) -> None:
    make_tenant("acme")
    with processes(tmp_path) as start:
        start("coordinate")
        response = operator.post(MIGRATE, headers={"Prefer": "wait=60"})
        assert (response.status_code, response["Preference-Applied"]) == (202, "wait=60")
        assert (response.json()["state"], len(response.json()["steps"])) == ("succeeded", 15)
        rollout = operator.post(MIGRATE_ALL, headers={"Prefer": "wait=60"}).json()
        assert (rollout["state"], rollout["runs"]["succeeded"]) == ("succeeded", 1)


def test_prefer__answers_in_time_when_nobody_carries_it_out(operator: APIClient, db: None) -> None:
    registered("acme")
    response = operator.post(MIGRATE, headers={"Prefer": "wait=1"})
    assert (response.status_code, response.json()["state"]) == (202, "pending")
    refused(operator.post(MIGRATE, headers={"Prefer": "wait=1"}), 409, "run_active", "run_id")


# Parity with the commands

OWN = {"id", "run_id", "created_at", "started_at", "finished_at", "requested_via", "requested_by", "seconds"}


def rows(run: MigrationRun) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    def bare(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if name not in OWN}

    steps = [bare(row) for row in RunStep.objects.filter(run=run).values()]
    return bare(MigrationRun.objects.filter(pk=run.pk).values().get()), steps


@pytest.mark.parametrize("package", ["orders_failing_data", "orders_unique_violation", "orders_failing_nonatomic"])
def test_parity__a_broken_migration_leaves_the_same_rows(
    admin: APIClient, make_tenant: MakeTenant, broken: Choose, package: str
) -> None:
    """Confirmed, since whoever has a shell is taken to have confirmed."""
    broken(orders=package)
    tenant = make_tenant("globex")
    response = admin.post("/tenants/globex/migrate", {"app_label": "orders", "confirm": "globex"})
    asked = carry_out(response.json()["id"])
    assert asked.state in {"failed", "partial"}
    assert asked.failed_step.startswith("orders.0003")
    over_http = rows(asked)

    catalog.query(catalog.tenant_dsn(tenant), "DROP SCHEMA public_globex CASCADE; CREATE SCHEMA public_globex")
    # With its schema, what stood between two migrations is gone.
    MigrationRun.objects.filter(pk=asked.pk).update(applied_after=None, state="failed")
    manage("migratetenant", "--tenant-id=globex", "orders")
    assert over_http == rows(MigrationRun.objects.get(requested_via="command"))


def test_parity__a_success_leaves_the_same_tenant(operator: APIClient, make_tenant: MakeTenant) -> None:
    acme, globex = make_tenant("acme"), make_tenant("globex")
    asked = carry_out(operator.post(MIGRATE).json()["id"])
    manage("migratetenant", "--tenant-id=globex")
    commanded = MigrationRun.objects.get(requested_via="command")

    assert rows(asked)[1] == rows(commanded)[1]
    same = ("state", "plan_digest", "applied_before_id", "applied_after_id", "attempt")
    assert [getattr(asked, name) for name in same] == [getattr(commanded, name) for name in same]
    assert dump(acme) == dump(globex)


def test_secrets__row_data_of_a_constraint_error_is_not_told(
    operator: APIClient, make_tenant: MakeTenant, broken: Choose
) -> None:
    broken(orders="orders_unique_violation")
    make_tenant("globex")
    run = carry_out(operator.post("/tenants/globex/migrate").json()["id"])
    assert run.sqlstate == "23505"
    for path in (f"/runs/{run.pk}", "/runs", "/tenants/globex", "/tenants"):
        assert "a@b.c" not in operator.get(path).content.decode()
