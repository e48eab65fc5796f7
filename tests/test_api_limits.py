from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from migrations_api.exceptions import TooManyRuns
from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.requests import Request, request_rollout, request_run
from tenants.models import Tenant
from tests.http_api import refused, registered

ClientOf = Callable[[str | None], APIClient]
TENANTS = ["a1", "a2", "a3", "a4"]


@pytest.fixture
def operator(client_of: ClientOf, settings: Any) -> APIClient:
    """With four tenants, of which two may have a run that is not begun."""
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "max_pending_runs": 2}
    registered(*TENANTS)
    return client_of("operator")


def test_limit__so_many_runs_and_no_more(operator: APIClient) -> None:
    assert operator.post("/tenants/a1/migrate").status_code == 202
    assert operator.post("/tenants/a2/migrate").status_code == 202
    for path in ("/tenants/a3/migrate", "/tenants/migrate-all"):
        response = operator.post(path)
        refused(response, 503, "too_many_runs")
        assert int(response["Retry-After"]) > 0
    assert MigrationRun.objects.count() == 2
    assert not Rollout.objects.exists()


def test_limit__retries_count(operator: APIClient) -> None:
    run = MigrationRun.objects.create(tenant_id="a4", state="failed", requested_via="api")
    for name in ("a1", "a2"):
        operator.post(f"/tenants/{name}/migrate")
    refused(operator.post(f"/runs/{run.pk}/retry"), 503, "too_many_runs")


@pytest.mark.parametrize("state", ["running", "waiting", "succeeded", "canceled"])
def test_limit__is_over_once_a_run_is_begun_or_ended(operator: APIClient, state: str) -> None:
    for name in ("a1", "a2"):
        operator.post(f"/tenants/{name}/migrate")
    MigrationRun.objects.filter(tenant="a1").update(state=state)
    assert operator.post("/tenants/a3/migrate").status_code == 202


def test_limit__does_not_keep_a_fleet_from_being_asked_for_at_once(operator: APIClient) -> None:
    """However large the fleet: what counts is what is waiting already."""
    assert operator.post("/tenants/migrate-all").json()["runs"]["pending"] == 4
    registered("a5")
    refused(operator.post("/tenants/a5/migrate"), 503, "too_many_runs")


def test_limit__is_not_for_commands_who_carry_out_their_own(operator: APIClient) -> None:
    """They neither wait for the coordinator nor keep it busy."""
    request_rollout(Tenant.objects.filter(pk__in=["a1", "a2"]), Request())
    assert operator.post("/tenants/a3/migrate").status_code == 202
    assert operator.post("/tenants/a4/migrate").status_code == 202
    [tenant] = registered("a5")
    with pytest.raises(TooManyRuns):
        request_run(tenant, Request(via="api"))
    assert request_run(tenant, Request()).state == "pending"


def test_limit__is_one_query_that_reads_no_more_than_the_limit(operator: APIClient) -> None:
    with CaptureQueriesContext(
        connection,
    ) as captured:
        operator.post("/tenants/a1/migrate")
    counting = [query["sql"] for query in captured if "COUNT" in query["sql"]]
    assert len(counting) == 1
    assert "LIMIT 2" in counting[0]


def test_limit__a_refusal_keeps_its_key_free(operator: APIClient) -> None:
    for name in ("a1", "a2"):
        operator.post(f"/tenants/{name}/migrate")
    key = {"Idempotency-Key": "deploy-7"}
    refused(operator.post("/tenants/a3/migrate", headers=key), 503, "too_many_runs")
    MigrationRun.objects.update(state="succeeded")
    assert operator.post("/tenants/a3/migrate", headers=key).status_code == 202
