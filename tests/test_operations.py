import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import RequestFactory
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from migrations_api.models import Coordinator, MigrationRun, Rollout
from migrations_api.orchestrator.readiness import checks
from migrations_api.rest import metrics
from migrations_api.views.operations import MetricsView, healthz, readyz
from tenants.models import Tenant

Make = Callable[..., MigrationRun]


@pytest.fixture(autouse=True)
def fresh() -> None:
    metrics.cache.clear()


@pytest.fixture
def make_run(db: None) -> Make:
    def make(state: str, **values: Any) -> MigrationRun:
        number = MigrationRun.objects.count()
        tenant = Tenant.objects.create(tenant_id=f"t{number}", isolation="schema", schema_name=f"t{number}")
        run = MigrationRun.objects.create(tenant=tenant, state=state, requested_via="api")
        MigrationRun.objects.filter(pk=run.pk).update(**values)
        return run

    return make


@pytest.fixture
def unreachable(plane: None) -> Iterator[None]:
    """A control plane that refuses connections, with a password that nobody should see."""
    connection.close()
    elsewhere = {"HOST": "127.0.0.1", "PORT": "1", "PASSWORD": "s3cret", "OPTIONS": {}}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in elsewhere.items():
            patch.setitem(connection.settings_dict, name, value)
        yield
        connection.close()


def seen(seconds_ago: float = 0.0) -> None:
    at = timezone.now() - timedelta(seconds=seconds_ago)
    Coordinator.objects.create(name=f"host:{seconds_ago}", started_at=at, seen_at=at)


def ask(view: Callable[..., Any], method: str = "get") -> tuple[int, Any]:
    response = view(getattr(RequestFactory(), method)("/"))
    return response.status_code, json.loads(response.content) if response.content else None


def values() -> dict[tuple[str, ...], float]:
    """Every sample of /metrics by its name and its labels' values."""
    metrics.cache.clear()
    return {
        (sample.name.removeprefix("tenant_migrations_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.cache.page().decode())
        for sample in family.samples
    }


def test_healthz__needs_no_database(unreachable: None) -> None:
    assert ask(healthz) == (200, {"status": "ok"})
    assert ask(healthz, "post")[0] == 405


@pytest.mark.django_db
def test_readyz__with_a_coordinator() -> None:
    seen(80)
    assert ask(readyz) == (
        200,
        {"status": "ok", "checks": {"control_plane": "ok", "migrations": "ok", "coordinator": "ok"}},
    )


@pytest.mark.parametrize("ago", [None, 100])
@pytest.mark.django_db
def test_readyz__coordinator_not_seen_for_three_leases(ago: float | None) -> None:
    if ago:
        seen(ago)
    status, body = ask(readyz)
    assert (status, body["checks"]["coordinator"]) == (503, "not seen")


@pytest.mark.django_db
def test_readyz__migration_not_applied() -> None:
    seen()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'migrations_api' AND name LIKE '0%%'")
    status, body = ask(readyz)
    assert (status, body["checks"]["migrations"]) == (503, "pending")


@pytest.mark.django_db
def test_readyz__what_tenants_have_applied_is_no_condition() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'orders'")
    assert checks()["migrations"] == "ok"


def test_readyz__unreachable_control_plane_shows_nothing(unreachable: None) -> None:
    status, body = ask(readyz)
    assert (status, body["checks"]) == (
        503,
        {"control_plane": "unreachable", "migrations": "unknown", "coordinator": "unknown"},
    )


def test_metrics__counts_runs_rollouts_and_tenants(make_run: Make) -> None:
    now = timezone.now()
    make_run("pending", created_at=now - timedelta(seconds=500))
    make_run("succeeded", started_at=now - timedelta(seconds=7), finished_at=now)
    make_run("failed", started_at=now - timedelta(seconds=700), finished_at=now)
    make_run("canceled", finished_at=now)
    Rollout.objects.create(state="running", requested_via="api")
    seen()

    found = values()

    assert {state: found["runs", state] for state in ("pending", "succeeded", "failed", "running")} == {
        "pending": 1,
        "succeeded": 1,
        "failed": 1,
        "running": 0,
    }
    assert (found["rollouts", "running"], found["rollouts", "succeeded"]) == (1, 0)
    assert (found["tenants", "unprovisioned"], found["database_tenants", "default"]) == (4, 4)
    assert found[("oldest_pending_run_age_seconds",)] >= 500
    bucket = "run_duration_seconds_bucket"
    assert [found[bucket, bound] for bound in ("5", "10", "300", "1800", "+Inf")] == [0, 1, 1, 2, 2]
    assert found[("run_duration_seconds_count",)] == 2
    assert found[("run_duration_seconds_sum",)] == pytest.approx(707)
    assert found[("coordinators",)] == 1


def test_metrics__runs_of_less_than_a_second_are_told_apart(make_run: Make) -> None:
    now = timezone.now()
    for milliseconds in (50, 300, 700):
        make_run("succeeded", started_at=now - timedelta(milliseconds=milliseconds), finished_at=now)
    found = values()
    assert [found["run_duration_seconds_bucket", bound] for bound in ("0.1", "0.5", "1")] == [1, 2, 3]
    assert found[("run_duration_seconds_sum",)] == pytest.approx(1.05)


@pytest.mark.django_db
def test_metrics__of_an_empty_service() -> None:
    found = values()
    assert ("coordinator_last_seen_timestamp_seconds",) not in found
    assert found[("run_duration_seconds_count",)] == found[("oldest_pending_run_age_seconds",)] == 0


def test_metrics__queries_are_as_many_however_much_there_is(make_run: Make, django_assert_num_queries: Any) -> None:
    for _ in range(2):
        metrics.cache.clear()
        with django_assert_num_queries(6):
            metrics.cache.page()
        for state in ("succeeded", "failed", "partial", "running"):
            make_run(state)


@pytest.mark.django_db
def test_metrics__are_read_once_in_a_while(django_assert_num_queries: Any) -> None:
    page = metrics.cache.page()
    with django_assert_num_queries(0):
        assert metrics.cache.page() is page


@pytest.mark.django_db
def test_metrics_view__is_for_viewers(monkeypatch: pytest.MonkeyPatch) -> None:
    view = MetricsView.as_view()
    assert view(RequestFactory().get("/metrics")).status_code in {401, 403}
    request = RequestFactory().get("/metrics")
    request.user = User.objects.create_superuser("root")
    monkeypatch.setattr(MetricsView, "authentication_classes", [])
    monkeypatch.setattr(MetricsView, "permission_classes", [])
    response = view(request)
    assert response["Content-Type"].startswith("text/plain; version=")
    assert b"tenant_migrations_runs{" in response.content
