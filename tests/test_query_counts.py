"""What a question costs the control plane: as many queries for many tenants as for few; no walk through all runs."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import resolve, reverse
from django.utils import timezone
from rest_framework.test import APIClient

from migrations_api.models import (
    AppliedSet,
    AuditEntry,
    Coordinator,
    IdempotencyRecord,
    MigrationRun,
    Rollout,
    RunStep,
    TenantObservation,
)
from migrations_api.orchestrator import fleet, observations
from migrations_api.orchestrator.advance import advance
from migrations_api.orchestrator.sources import source_for
from migrations_api.rest import metrics
from migrations_api.states import RunState, StepState
from migrations_api.urls import urlpatterns
from tenants.models import Isolation, Tenant
from tests.http_api import registered

Get = Callable[[str], Any]

FEW, MANY = 12, 300
RUNS_PER_TENANT = 10
# Authentication, throttle and role included.
MOST = 9
STATES = [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELED, RunState.PARTIAL, RunState.SKIPPED]
TENANT_QUERIES = [
    "",
    *[f"&isolation={isolation}" for isolation in (Isolation.SCHEMA, Isolation.DATABASE)],
    *[f"&status={status}" for status in fleet.TenantStatus],
    "&label=tier=free",
    "&search=t",
    *[f"&ordering={sign}{field}" for field in ("tenant_id", "name", "created_at") for sign in ("", "-")],
]


def fill(number: int) -> None:
    """Tenants up to `number`, of every status, each with runs, steps and a look at it; a tenth as many rollouts."""
    have = Tenant.objects.count()
    now = timezone.now()
    tenants = Tenant.objects.bulk_create(
        Tenant(
            tenant_id=f"t{index:05}",
            name=f"Tenant {index % 7}",
            isolation=Isolation.SCHEMA if index % 2 else Isolation.DATABASE,
            schema_name=f"t{index}",
            labels={"tier": "free" if index % 3 else "paid"},
            provisioned_at=now if index % 5 else None,
        )
        for index in range(have, number)
    )
    sets = applied_sets()
    rollouts = Rollout.objects.bulk_create(
        Rollout(requested_via="api", state="succeeded") for _ in range((number - have) // 10)
    )
    runs = MigrationRun.objects.bulk_create(
        MigrationRun(
            tenant=tenant,
            rollout=rollouts[place] if place < len(rollouts) else None,
            state=STATES[(place + index) % len(STATES)],
            error_code="migration_failed",
            failed_step=f"orders.000{place % 3}",
            applied_after_id=sets[place % len(sets)],
            requested_via="api",
            started_at=now,
            finished_at=now + timedelta(seconds=place),
        )
        for place in range(RUNS_PER_TENANT)
        for index, tenant in enumerate(tenants)
    )
    RunStep.objects.bulk_create(
        RunStep(run=run, position=position, app_label="orders", name=f"000{position}", state=StepState.DONE)
        for run in runs
        for position in range(1, 4)
    )
    TenantObservation.objects.bulk_create(
        TenantObservation(
            tenant=tenant,
            applied_id=sets[index % len(sets)] if index % 4 else None,
            error_code="" if index % 4 else ["unprovisioned", "unreachable"][index % 8 // 4],
            partial=index % 9 == 1,
            observed_at=now,
        )
        for index, tenant in enumerate(tenants)
        if index % 10 != 9
    )
    for index in range(have, number):
        AuditEntry.objects.create(action="migrate_tenant", tenant_ids=[f"t{index}"], status=202, outcome="accepted")
    IdempotencyRecord.objects.bulk_create(
        IdempotencyRecord(actor="ci", key=f"k{index}") for index in range(have, number)
    )
    analyze()


def analyze() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def applied_sets() -> list[str]:
    """Where tenants may stand: at the start, half-way, up to date, ahead."""
    keys = sorted(source_for(Isolation.SCHEMA).migrations)
    return [
        AppliedSet.store(frozenset(applied))
        for applied in ([], keys[: len(keys) // 2], keys, [*keys, ("orders", "0099_future")])
    ]


@pytest.fixture
def get(client_of: Callable[..., APIClient]) -> Get:
    client = client_of("viewer")
    client.get("/runs")  # writes when the token was used last

    def ask(url: str) -> Any:
        response = client.get(url)
        assert response.status_code == 200, (url, response.content)
        return response

    return ask


def pages(get: Get, url: str) -> Iterator[str]:
    """The first, a middle and the last page."""
    every = [url]
    while following := json.loads(get(every[-1]).content)["next"]:
        parts = urlsplit(following)
        every.append(f"{parts.path}?{parts.query}")
    yield from (every[0], every[len(every) // 2], every[-1])


def urls(get: Get, size: int) -> Iterator[tuple[str, str]]:
    """Every question, named so that it can be asked again of another fleet."""
    run, rollout = MigrationRun.objects.order_by("pk")[3], Rollout.objects.order_by("pk")[0]
    lists = [
        *[f"/tenants?page_size={size}{query}" for query in TENANT_QUERIES],
        *[f"/runs?page_size={size}{query}" for query in ("", "&state=failed", "&tenant_id=t00003")],
        f"/rollouts?page_size={size}",
        *[f"/rollouts/{rollout.pk}/runs?page_size={size}{query}" for query in ("", "&state=failed")],
    ]
    for url in lists:
        name = re.sub(r"\d+/|page_size=\d+&?", "", url)
        for place, page in zip(("first", "middle", "last"), pages(get, url), strict=True):
            yield f"{name} {place}", page
    for name, url in {
        "tenant": "/tenants/t00003",
        "run": f"/runs/{run.pk}",
        "rollout": f"/rollouts/{rollout.pk}",
        "failures": f"/rollouts/{rollout.pk}/failures",
        "fleet": "/fleet",
        "fleet plan": "/tenants/plan",
        "fleet plan of a target": "/tenants/plan?app_label=users",
        "readyz": "/readyz",
        "metrics": "/metrics",
    }.items():
        yield name, url


def counted(ask: Get, url: str) -> list[dict[str, str]]:
    """The queries of one answer by a process that has answered nothing before."""
    observations._places.clear()
    metrics.cache.clear()
    with CaptureQueriesContext(connection) as queries:
        ask(url)
    return queries.captured_queries


def counts(get: Get, size: int) -> dict[str, int]:
    return {name: len(counted(get, url)) for name, url in list(urls(get, size))}


def test_questions__take_as_many_queries_for_many_tenants_as_for_few(db: None, get: Get) -> None:
    Coordinator.objects.create(name="here:1", started_at=timezone.now(), seen_at=timezone.now())
    fill(FEW)
    few = counts(get, size=4)
    fill(MANY)
    many = counts(get, size=100)
    assert many == few
    assert {name: count for name, count in many.items() if count > MOST} == {}


def test_questions__are_all_that_the_control_plane_answers(db: None, get: Get) -> None:
    fill(FEW)
    asked = {resolve(urlsplit(url).path).url_name for _, url in urls(get, size=4)}
    readable = {
        pattern.name
        for pattern in urlpatterns
        if getattr(getattr(pattern.callback, "cls", None), "get", None) or pattern.name in {"readyz", "healthz"}
    }
    # Those three ask the tenant itself, events are one look after the other, and liveness asks nobody.
    undoing = {"tenant-rollback", "tenant-reset", "tenant-refresh"}
    asks_tenant = {"tenant-plan", "tenant-migrations", "run-repair", *undoing}
    assert readable - asked <= asks_tenant | {"run-events", "rollout-events", "healthz"}


def test_admin__takes_as_many_queries_for_many_rows_as_for_few(db: None, client: Client) -> None:
    client.force_login(get_user_model().objects.create_superuser("root"))
    fill(FEW)
    admin_counts(client)  # content types are asked for once per process
    few = admin_counts(client)
    fill(MANY)
    assert admin_counts(client) == few
    assert {name: count for name, count in few.items() if count > MOST} == {}


def admin_counts(client: Client) -> dict[str, int]:
    def ask(url: str) -> None:
        assert client.get(url).status_code == 200, url

    found = {}
    for model in (AppliedSet, AuditEntry, IdempotencyRecord, MigrationRun, Rollout, Tenant, TenantObservation):
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        row = model._default_manager.order_by("pk")[0]
        found[f"{name} list"] = len(counted(ask, reverse(f"{name}_changelist")))
        found[f"{name} row"] = len(counted(ask, reverse(f"{name}_change", args=[row.pk])))
    return found


def test_changes__take_as_many_queries_for_many_tenants_as_for_few(db: None, operator: APIClient) -> None:
    operator.get("/runs")  # writes when the token was used last
    few, many = change_counts(operator, "f", 4), change_counts(operator, "m", 60)
    assert many == few
    assert {name: count for name, count in few.items() if count > 30} == {}


def change_counts(operator: APIClient, prefix: str, number: int) -> dict[str, int]:
    """What each verb of a rollout over so many tenants costs, from a dry run to a retry."""
    registered(*[f"{prefix}{index}" for index in range(number)], labels={"prefix": prefix})
    body = {"selector": {"labels": {"prefix": prefix}}, "strategy": {"canary": 1, "promotion": "manual"}}
    found: dict[str, int] = {}

    def ask(name: str, path: str, **given: Any) -> Any:
        metrics.cache.clear()
        with CaptureQueriesContext(connection) as queries:
            response = operator.post(path, given)
        assert response.status_code in {200, 202}, response.content
        found[name] = len(queries)
        return response.json()

    ask("dry run", "/tenants/migrate-all", **body, dry_run=True)
    rollout = Rollout.objects.get(pk=ask("migrate-all", "/tenants/migrate-all", **body)["id"])
    ask("hold", f"/tenants/{prefix}1/hold", reason="No.")
    ask("release", f"/tenants/{prefix}1/release")
    ask("skip", f"/runs/{rollout.runs.get(tenant=f'{prefix}2').pk}/skip", reason="No.")
    advance(rollout, limit=0, lease=30)
    rollout.runs.filter(tenant=f"{prefix}0").update(state=RunState.SUCCEEDED)
    for verb in ("promote", "pause", "resume", "cancel", "retry"):
        ask(verb, f"/rollouts/{rollout.pk}/{verb}")
    return found


def touched(query: dict[str, str]) -> int:
    """How many runs the query really read, whether it used them or not."""
    with connection.cursor() as cursor:
        # As for disks without moving parts; by default PostgreSQL rather walks through neighbouring rows than jumps.
        cursor.execute("SET LOCAL random_page_cost = 1.1")
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query['sql']}")
        plan = cursor.fetchone()[0][0]["Plan"]
    return sum(_rows(node) for node in _nodes(plan) if node.get("Relation Name") == MigrationRun._meta.db_table)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def _rows(node: dict[str, Any]) -> int:
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return round((node["Actual Rows"] + removed) * node["Actual Loops"])


def test_runs__are_found_without_a_walk_through_all(db: None, get: Get) -> None:
    """Of 3,000 runs, 290 of them in the rollout, no page of 20 reads more than a few pages' worth."""
    fill(MANY)
    MigrationRun.objects.filter(pk=MigrationRun.objects.order_by("pk")[7].pk).update(state=RunState.RUNNING)
    rollout = Rollout.objects.order_by("pk")[5]
    found = {}
    for url in ("/runs?", "/runs?state=failed&", "/runs?state=running&", "/runs?tenant_id=t00250&"):
        found[url] = max(touched(each) for page in pages(get, f"{url}page_size=20") for each in reads(get, page))
    for url in (f"/rollouts/{rollout.pk}/runs?", f"/rollouts/{rollout.pk}/runs?state=failed&"):
        found[url] = max(touched(each) for page in pages(get, f"{url}page_size=20") for each in reads(get, page))
    found["run"] = max(map(touched, reads(get, f"/runs/{rollout.runs.all()[0].pk}")))
    assert {url: rows for url, rows in found.items() if rows > 120} == {}, found


def reads(get: Get, url: str) -> list[dict[str, str]]:
    return [query for query in counted(get, url) if f'FROM "{MigrationRun._meta.db_table}"' in query["sql"]]


def test_runs_that_name_another__are_found_without_a_walk_through_all(db: None) -> None:
    """Whoever deletes a run looks for them, once for each field, as PostgreSQL does; most runs name none."""
    fill(MANY)
    analyze()
    run = MigrationRun.objects.order_by("pk")[7]
    MigrationRun.objects.filter(pk=run.pk + 1).update(retry_of=run, undoes=run, repair_of=run)
    found = {
        name: touched({"sql": str(getattr(run, name).all().query)}) for name in ("retries", "rollbacks", "repairs")
    }
    assert found == {"retries": 1, "rollbacks": 1, "repairs": 1}


def test_partial_tenants__are_found_from_the_partial_runs_on(db: None) -> None:
    """A fleet in which nothing is partial is not read run by run."""
    fill(MANY)
    MigrationRun.objects.filter(state=RunState.PARTIAL).exclude(tenant="t00250").update(state=RunState.FAILED)
    analyze()
    with CaptureQueriesContext(connection) as queries:
        fleet.standings([])
    assert len(queries) == 1
    assert touched(queries.captured_queries[0]) < 10 * RUNS_PER_TENANT
