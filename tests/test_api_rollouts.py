from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from rest_framework.test import APIClient

from migrations_api.models import AppliedSet, MigrationRun, Rollout, TenantObservation
from migrations_api.orchestrator.sources import source_for
from migrations_api.states import ACTIVE_ROLLOUT_STATES, RolloutState, RunState
from tenants.models import Isolation
from tests.http_api import pages, refused, registered

ClientOf = Callable[[str | None], APIClient]


def rollout_of(states: dict[str, str], state: str = RolloutState.RUNNING, **values: Any) -> Rollout:
    """A rollout with a run in that state for each tenant."""
    rollout = Rollout.objects.create(state=state, requested_via="api")
    registered(*states)
    for tenant_id, each in states.items():
        MigrationRun.objects.create(tenant_id=tenant_id, rollout=rollout, state=each, requested_via="api", **values)
    return rollout


def test_list__newest_first_with_counts(viewer: APIClient) -> None:
    first = rollout_of({"a1": "succeeded", "a2": "failed", "a3": "pending"})
    second = rollout_of({})
    rows = pages(viewer, "/rollouts", page_size=1)

    assert [row["id"] for row in rows] == [second.pk, first.pk]
    assert rows[1]["runs"] == {**dict.fromkeys(RunState.values, 0), "succeeded": 1, "failed": 1, "pending": 1}
    detail = viewer.get(f"/rollouts/{first.pk}").json()
    assert {name: value for name, value in detail.items() if name in rows[1]} == rows[1]


def test_runs__by_state_and_page(viewer: APIClient) -> None:
    rollout = rollout_of({"a1": "succeeded", "a2": "failed", "a3": "failed"})
    rollout_of({"b1": "failed"})
    path = f"/rollouts/{rollout.pk}/runs"

    assert [row["tenant_id"] for row in pages(viewer, path, page_size=1)] == ["a1", "a2", "a3"]
    assert [row["tenant_id"] for row in pages(viewer, path, page_size=1, state="failed")] == ["a2", "a3"]
    refused(viewer.get(path, {"state": "lost"}), 400, "invalid_query", "errors")


def test_failures__are_grouped_by_how_they_failed(viewer: APIClient) -> None:
    same = {"error_code": "migration_failed", "failed_step": "orders.0003", "message": "Boom."}
    rollout = rollout_of({"a1": "failed", "a2": "failed"}, **same)
    MigrationRun.objects.create(
        tenant_id="a3", rollout=rollout, state="partial", requested_via="api", error_code="invalid_index"
    )
    MigrationRun.objects.create(tenant_id="a4", rollout=rollout, state="succeeded", requested_via="api")
    first, second = viewer.get(f"/rollouts/{rollout.pk}/failures").json()

    example = rollout.runs.get(tenant_id="a1").pk
    assert first == {**same, "count": 2, "error_class": "", "sqlstate": "", "example_run_id": example}
    assert (second["count"], second["error_code"]) == (1, "invalid_index")


@pytest.mark.parametrize("path", ["", "/runs", "/failures"])
@pytest.mark.parametrize("rollout_id", ["999", "9" * 30, "x"])
def test_get__that_does_not_exist(viewer: APIClient, path: str, rollout_id: str) -> None:
    refused(viewer.get(f"/rollouts/{rollout_id}{path}"), 404, "not_found")


def test_cancel__starts_nothing_more_and_ends_when_nothing_runs(operator: APIClient, db: None) -> None:
    rollout = rollout_of({"a1": "running", "a2": "pending", "a3": "succeeded"})
    response = operator.post(f"/rollouts/{rollout.pk}/cancel")

    assert response.status_code == 202
    assert response["Location"] == f"http://testserver/rollouts/{rollout.pk}"
    assert response.json()["state"] == "canceling"
    runs = {run.tenant_id: (run.state, run.cancel_requested) for run in rollout.runs.all()}
    assert runs == {"a1": ("running", True), "a2": ("canceled", False), "a3": ("succeeded", False)}


def test_cancel__before_anything_was_begun(operator: APIClient, db: None) -> None:
    registered("a1", "a2")
    rollout_id = operator.post("/tenants/migrate-all").json()["id"]
    body = operator.post(f"/rollouts/{rollout_id}/cancel").json()
    assert (body["state"], body["runs"]["canceled"]) == ("canceled", 2)
    assert operator.post("/tenants/a1/migrate").status_code == 202


@pytest.mark.parametrize("state", sorted(set(RolloutState.values) - ACTIVE_ROLLOUT_STATES))
def test_cancel__that_has_ended(operator: APIClient, db: None, state: str) -> None:
    rollout = rollout_of({}, state)
    refused(operator.post(f"/rollouts/{rollout.pk}/cancel"), 409, "invalid_transition")


def test_cancel__takes_no_fields(operator: APIClient, db: None) -> None:
    rollout = rollout_of({})
    refused(operator.post(f"/rollouts/{rollout.pk}/cancel", {"force": True}), 400, "invalid", "errors")
    refused(operator.post("/rollouts/999/cancel"), 404, "not_found")


# The fleet


def observed(applied: Any, *tenant_ids: str, isolation: str = Isolation.SCHEMA) -> None:
    for tenant in registered(*tenant_ids, isolation=isolation):
        TenantObservation.objects.create(
            tenant=tenant, applied_id=AppliedSet.store(frozenset(applied)), observed_at=timezone.now()
        )


def test_fleet__how_many_stand_where(viewer: APIClient) -> None:
    everything = source_for(Isolation.SCHEMA).migrations
    observed(everything, "a1", "a2")
    observed([], "b1")
    registered("c1", database="moon")
    body = viewer.get("/fleet").json()

    assert body.pop("oldest_observation") is not None
    assert body == {
        "total": 4,
        "by_status": {
            "up_to_date": 2,
            "pending": 1,
            "ahead": 0,
            "partial": 0,
            "unreachable": 0,
            "unprovisioned": 1,
            "held": 0,
        },
        "by_database": {"moon": 1, "shop": 3},
        "starting_states": 2,
    }


def test_fleet__of_nobody(viewer: APIClient) -> None:
    body = viewer.get("/fleet").json()
    assert (body["total"], body["oldest_observation"], set(body["by_status"].values())) == (0, None, {0})
    assert viewer.get("/tenants/plan").json() == {"groups": [], "problems": [], "oldest_observation": None}


def test_fleet_plan__one_plan_for_each_starting_state(viewer: APIClient) -> None:
    everything = source_for(Isolation.SCHEMA).migrations
    observed(everything, "b1")
    observed([], "a1", "a2")
    registered("c1")
    body = viewer.get("/tenants/plan").json()

    groups = [(group["tenant_count"], group["tenant_ids"], len(group["plan"]["steps"])) for group in body["groups"]]
    assert groups == [(2, ["a1", "a2"], 15), (1, ["b1"], 0)]
    assert body["problems"] == [{"tenant_id": "c1", "code": "unprovisioned", "detail": "Not looked at yet."}]
    oldest = TenantObservation.objects.earliest("observed_at")
    assert parse_datetime(body["oldest_observation"]) == oldest.observed_at


def test_fleet_plan__target(viewer: APIClient) -> None:
    """As in migrate-all, it concerns only the kinds of tenants that receive the app."""
    observed([], "a1")
    observed([], "shared", isolation=Isolation.SHARED)

    def plan(**query: str) -> list[Any]:
        body = viewer.get("/tenants/plan", query).json()
        assert body["problems"] == []
        return [(group["tenant_ids"], [step["name"] for step in group["plan"]["steps"]]) for group in body["groups"]]

    assert plan(app_label="users", migration_name="0001") == [(["a1"], ["0001_initial"])]
    assert plan(app_label="plans") == [(["shared"], ["0001_initial", "0002_seed_plans"])]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"app_label": "crm"}, "unknown_app"),
        ({"app_label": "users", "migration_name": "0099"}, "unknown_migration"),
        ({"migration_name": "0001"}, "unknown_migration"),
    ],
)
def test_fleet_plan__target_that_there_is_not(viewer: APIClient, query: dict[str, str], code: str) -> None:
    observed([], "a1")
    refused(viewer.get("/tenants/plan", query), 422, code)
