from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from rest_framework.test import APIClient

from migrations_api.models import AuditEntry, MigrationRun, RunStep
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.states import ACTIVE_RUN_STATES, RunState
from tenants.models import Tenant
from tests.http_api import carry_out, pages, refused, registered

ClientOf = Callable[[str | None], APIClient]
MakeTenant = Callable[..., Tenant]


def past_run(tenant_id: str = "acme", state: str = RunState.FAILED, **values: Any) -> MigrationRun:
    return MigrationRun.objects.create(tenant_id=tenant_id, state=state, requested_via="api", **values)


def listed(client: APIClient, **query: Any) -> list[int]:
    return [row["id"] for row in client.get("/runs", query).json()["results"]]


def test_list__newest_first_by_tenant_and_state(viewer: APIClient) -> None:
    registered("acme", "globex")
    first, second = past_run(state=RunState.SUCCEEDED), past_run()
    third = past_run("globex")

    assert listed(viewer) == [third.pk, second.pk, first.pk]
    assert listed(viewer, tenant_id="acme") == [second.pk, first.pk]
    assert listed(viewer, state="failed") == [third.pk, second.pk]
    assert listed(viewer, tenant_id="acme", state="failed") == [second.pk]
    assert listed(viewer, tenant_id="nobody") == []
    refused(viewer.get("/runs", {"state": "lost"}), 400, "invalid_query", "errors")
    refused(viewer.get("/runs", {"tenant": "acme"}), 400, "invalid_query")


def test_list__pages_have_each_run_once_while_new_ones_come(viewer: APIClient) -> None:
    runs = [past_run().pk for _ in range(5)]
    found: list[int] = []
    url = "/runs?page_size=2&tenant_id=acme"
    while url:
        page = viewer.get(url).json()
        found += [row["id"] for row in page["results"]]
        past_run()
        url = page["next"]
    assert found == runs[::-1]


def test_list__has_no_steps(viewer: APIClient) -> None:
    run = past_run()
    RunStep.objects.create(run=run, position=1, app_label="users", name="0001_initial")
    [row] = pages(viewer, "/runs")
    whole = viewer.get(f"/runs/{run.pk}").json()
    assert whole.pop("steps")
    assert row == whole


def test_get__a_run_that_failed_says_where_and_why(
    viewer: APIClient, make_tenant: MakeTenant, broken: Callable[..., None]
) -> None:
    broken(orders="orders_failing_data")
    make_tenant("globex")
    run = carry_out(request_run(Tenant.objects.get(), Request(by="ann", via="api")).pk)
    body = viewer.get(f"/runs/{run.pk}").json()

    assert (body["state"], body["error_code"], body["error_class"]) == ("failed", "migration_failed", "ValueError")
    assert body["failed_step"] == "orders.0003_channel"
    assert "an order has no channel" in body["message"]
    assert (body["requested_by"], body["requested_via"], body["retry_of"]) == ("ann", "api", None)
    states = {step["name"]: step["state"] for step in body["steps"] if step["app_label"] == "orders"}
    assert states == {
        "0001_initial": "done",
        "0002_ledger_entry": "done",
        "0003_channel": "failed",
        "0004_note": "pending",
    }
    times = [datetime.fromisoformat(body[name]) for name in ("created_at", "started_at", "finished_at")]
    assert times == sorted(times)


@pytest.mark.parametrize("run_id", ["0", "999999", "9" * 30, "9" * 5000, "-1", "1.0", "abc", "%00", "1e3"])
@pytest.mark.parametrize("suffix", ["", "/events"])
def test_get__that_does_not_exist(viewer: APIClient, run_id: str, suffix: str) -> None:
    refused(viewer.get(f"/runs/{run_id}{suffix}"), 404, "not_found")


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_verb__of_a_run_that_does_not_exist(operator: APIClient, verb: str) -> None:
    refused(operator.post(f"/runs/999/{verb}"), 404, "not_found")


def test_cancel__pending(operator: APIClient, db: None) -> None:
    registered("acme")
    run_id = operator.post("/tenants/acme/migrate").json()["id"]
    response = operator.post(f"/runs/{run_id}/cancel")

    assert response.status_code == 202
    assert response["Location"] == f"http://testserver/runs/{run_id}"
    assert (response.json()["state"], response.json()["error_code"]) == ("canceled", "canceled")
    assert operator.post("/tenants/acme/migrate").status_code == 202
    entry = AuditEntry.objects.get(action="cancel_run")
    assert (entry.tenant_ids, entry.object_id, entry.actor) == (["acme"], str(run_id), "operator")


def test_cancel__running_is_asked_to_stop(operator: APIClient, db: None) -> None:
    registered("acme")
    run = past_run(state=RunState.RUNNING)
    body = operator.post(f"/runs/{run.pk}/cancel").json()
    assert (body["state"], body["cancel_requested"]) == ("running", True)


@pytest.mark.parametrize("state", sorted(set(RunState.values) - ACTIVE_RUN_STATES))
def test_cancel__that_has_ended(operator: APIClient, db: None, state: str) -> None:
    run = past_run(state=state)
    refused(operator.post(f"/runs/{run.pk}/cancel"), 409, "invalid_transition")


def test_retry__is_a_new_run_of_the_same(operator: APIClient, db: None) -> None:
    registered("acme")
    run = past_run(app_label="orders", migration_name="0002", options={"run_syncdb": True})
    response = operator.post(f"/runs/{run.pk}/retry")
    again = response.json()

    assert response.status_code == 202
    assert response["Location"] == f"http://testserver/runs/{again['id']}"
    assert again["id"] != run.pk
    assert (again["retry_of"], again["state"]) == (run.pk, "pending")
    assert (again["app_label"], again["migration_name"]) == ("orders", "0002")
    assert again["options"] == {"run_syncdb": True, "allow_backwards": False}
    body = refused(operator.post(f"/runs/{run.pk}/retry"), 409, "run_active", "run_id")
    assert body["run_id"] == again["id"]


def test_retry__after_the_cause_is_gone(operator: APIClient, make_tenant: MakeTenant, settings: Any) -> None:
    make_tenant("globex")
    settings.MIGRATION_MODULES = {"orders": "tests.broken.orders_failing_data"}
    run = carry_out(operator.post("/tenants/globex/migrate").json()["id"])
    settings.MIGRATION_MODULES = {}
    again = carry_out(operator.post(f"/runs/{run.pk}/retry").json()["id"])
    assert (run.state, again.state) == ("failed", "succeeded")


@pytest.mark.parametrize("state", sorted(set(RunState.values) - {"failed", "canceled", "skipped"}))
def test_retry__that_needs_none(operator: APIClient, db: None, state: str) -> None:
    registered("acme")
    run = past_run(state=state)
    refused(operator.post(f"/runs/{run.pk}/retry"), 409, "invalid_transition")
    assert MigrationRun.objects.count() == 1


@pytest.mark.parametrize(
    "values", [{"options": {"fake": True}}, {"options": {"prune": True}}, {"migration_name": "zero"}]
)
def test_retry__what_needed_an_admin_needs_one_again(client_of: ClientOf, db: None, values: dict[str, Any]) -> None:
    registered("acme")
    run = past_run(app_label="users", **values)
    refused(client_of("operator").post(f"/runs/{run.pk}/retry"), 403, "permission_denied")
    assert client_of("admin").post(f"/runs/{run.pk}/retry").status_code == 202


def test_retry__of_an_operator_never_goes_backwards(client_of: ClientOf, db: None) -> None:
    """What an admin confirmed, an operator has not."""
    registered("acme", "globex")
    confirmed, unconfirmed = past_run(), past_run("globex", options={"allow_backwards": False})
    assert client_of("operator").post(f"/runs/{confirmed.pk}/retry").json()["options"] == {"allow_backwards": False}
    # An admin's retry confirms nothing that was not confirmed.
    again = client_of("admin").post(f"/runs/{unconfirmed.pk}/retry").json()
    assert again["options"] == {"allow_backwards": False}


def test_retry__of_a_tenant_that_is_forgotten(operator: APIClient, db: None) -> None:
    run = past_run("gone")
    refused(operator.post(f"/runs/{run.pk}/retry"), 404, "tenant_not_found")


def test_retry__of_a_target_that_is_gone(operator: APIClient, db: None) -> None:
    registered("acme")
    run = past_run(app_label="users", migration_name="0099")
    refused(operator.post(f"/runs/{run.pk}/retry"), 422, "unknown_migration")


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_verb__takes_no_fields(operator: APIClient, db: None, verb: str) -> None:
    registered("acme")
    run = past_run()
    body = refused(operator.post(f"/runs/{run.pk}/{verb}", {"force": True}), 400, "invalid", "errors")
    assert [error["pointer"] for error in body["errors"]] == ["/force"]
    refused(operator.post(f"/runs/{run.pk}/{verb}?force=true"), 400, "invalid_query")


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_verb__malformed_prefer_changes_nothing(operator: APIClient, db: None, verb: str) -> None:
    registered("acme", "globex")
    run = past_run() if verb == "retry" else past_run(state=RunState.PENDING)
    refused(operator.post(f"/runs/{run.pk}/{verb}", headers={"Prefer": "now"}), 400, "malformed_header")
    assert list(MigrationRun.objects.values_list("pk", "state")) == [(run.pk, run.state)]
