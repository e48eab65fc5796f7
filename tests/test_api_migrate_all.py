"""migrate-all over HTTP: what selector and strategy take, what is refused and where, and what a dry run shows."""

from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from rest_framework.test import APIClient

from migrations_api.models import AppliedSet, AuditEntry, MigrationRun, Rollout, TenantObservation
from migrations_api.orchestrator.holds import hold
from migrations_api.orchestrator.sources import source_for
from tenants.models import Isolation, Tenant
from tests.http_api import refused, registered

ClientOf = Callable[[str | None], APIClient]
MIGRATE_ALL = "/tenants/migrate-all"


def ask(client: APIClient, *, selector: Any = None, strategy: Any = None, **values: Any) -> Any:
    given = {"selector": selector, "strategy": strategy}
    return client.post(MIGRATE_ALL, {**{name: each for name, each in given.items() if each is not None}, **values})


def asked(client: APIClient, **given: Any) -> dict[str, Any]:
    response = ask(client, **given)
    assert response.status_code == 202, response.content
    return dict(response.json())


def preview(client: APIClient, **given: Any) -> dict[str, Any]:
    response = ask(client, dry_run=True, **given)
    assert response.status_code == 200, response.content
    return dict(response.json())


def tenants_of(rollout: dict[str, Any]) -> list[str]:
    return sorted(MigrationRun.objects.filter(rollout=rollout["id"]).values_list("tenant_id", flat=True))


def waves_of(found: dict[str, Any]) -> dict[int, list[str]]:
    return {wave["number"]: wave["tenant_ids"] for wave in found["waves"]}


def observed(tenant: Tenant, *applied: tuple[str, str], **values: Any) -> None:
    TenantObservation.objects.create(
        tenant=tenant, applied_id=AppliedSet.store(frozenset(applied)), observed_at=timezone.now(), **values
    )


@pytest.fixture
def fleet(db: None) -> None:
    """a1 to a4 in the EU, of which a1 is up to date and a2 pending; b1 in a database; a shared one."""
    a1, a2, *_ = registered("a1", "a2", "a3", "a4", labels={"region": "eu"})
    registered("b1", isolation=Isolation.DATABASE, labels={"region": "us"})
    registered("shared", isolation=Isolation.SHARED)
    observed(a1, *source_for(Isolation.SCHEMA).migrations)
    observed(a2)


# Which tenants


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, ["a1", "a2", "a3", "a4", "b1", "shared"]),
        ({"tenant_ids": ["b1", "a1", "a1"]}, ["a1", "b1"]),
        ({"exclude": ["a1", "shared"]}, ["a2", "a3", "a4", "b1"]),
        ({"exclude": []}, ["a1", "a2", "a3", "a4", "b1", "shared"]),
        ({"labels": {"region": "eu"}}, ["a1", "a2", "a3", "a4"]),
        ({"labels": {"region": "eu", "tier": "free"}}, []),
        ({"isolation": "database"}, ["b1"]),
        ({"isolation": "shared"}, ["shared"]),
        ({"status": ["pending", "up_to_date"]}, ["a1", "a2"]),
        ({"status": ["unprovisioned"], "isolation": "schema"}, ["a3", "a4"]),
        ({"sample": 1, "isolation": "database"}, ["b1"]),
        ({"sample": "100%", "seed": 0}, ["a1", "a2", "a3", "a4", "b1", "shared"]),
        ({"shard": "1/1"}, ["a1", "a2", "a3", "a4", "b1", "shared"]),
    ],
)
def test_selector__chooses(operator: APIClient, fleet: None, selector: dict[str, Any], expected: list[str]) -> None:
    rollout = asked(operator, selector=selector)
    assert tenants_of(rollout) == expected
    assert rollout["total"] == len(expected)


def test_selector__is_shown_as_it_was_given(operator: APIClient, fleet: None) -> None:
    selector = {
        "tenant_ids": ["a1", "a2", "a3"],
        "exclude": ["a3"],
        "labels": {"region": "eu"},
        "isolation": "schema",
        "status": ["pending", "up_to_date"],
        "shard": "1/1",
        "sample": "50%",
        "seed": 7,
    }
    rollout = asked(operator, selector=selector)
    assert operator.get(f"/rollouts/{rollout['id']}").json()["selector"] == selector
    # Ten thousand ids of each would be a lot for a list.
    assert "selector" not in operator.get("/rollouts").json()["results"][0]


def test_selector__of_an_earlier_rollout(operator: APIClient, fleet: None) -> None:
    first = asked(operator, selector={"isolation": "schema"})
    for tenant_id, state in {"a1": "succeeded", "a2": "failed", "a3": "canceled", "a4": "partial"}.items():
        MigrationRun.objects.filter(tenant=tenant_id).update(state=state)
    assert waves_of(preview(operator, selector={"failed_in": first["id"]})) == {1: ["a2", "a4"]}
    assert waves_of(preview(operator, selector={"unfinished_in": first["id"]})) == {1: ["a2", "a3", "a4"]}


def test_selector__the_seed_of_a_sample_is_kept_and_chooses_the_same(operator: APIClient, db: None) -> None:
    registered(*[f"t{number:02}" for number in range(40)])
    shown = preview(operator, selector={"sample": "25%"})
    [chosen] = waves_of(shown).values()
    assert len(chosen) == 10

    rollout = asked(operator, selector=shown["selector"])
    assert tenants_of(rollout) == sorted(chosen)
    kept = operator.get(f"/rollouts/{rollout['id']}").json()["selector"]
    assert kept == shown["selector"] == {"sample": "25%", "seed": shown["selector"]["seed"]}


def test_selector__shards_are_the_fleet(operator: APIClient, db: None) -> None:
    everybody = [f"t{number:02}" for number in range(20)]
    registered(*everybody)
    parts = [asked(operator, selector={"shard": f"{part}/3"}) for part in (1, 2, 3)]
    assert sorted(tenant_id for part in parts for tenant_id in tenants_of(part)) == everybody


# How


def test_strategy__is_shown_as_it_was_given(operator: APIClient, fleet: None) -> None:
    strategy = {
        "max_concurrency": "50%",
        "max_per_database": 2,
        "max_failures": 3,
        "failure_mode": "strict",
        "on_error": "pause",
        "canary": 1,
        "waves": ["12.5%", {"labels": {"region": "us"}}, 2],
        "bake_time": 1.5,
        "promotion": "manual",
        "progress_deadline": 60.0,
    }
    rollout = asked(operator, strategy=strategy)
    assert rollout["strategy"] == strategy
    detail = operator.get(f"/rollouts/{rollout['id']}").json()
    assert detail["strategy"] == strategy
    assert [(wave["number"], wave["total"]) for wave in detail["waves"]] == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2)]
    assert (detail["open_wave"], detail["last_wave"]) == (0, 4)


def test_strategy__that_says_what_is_the_default_is_empty(operator: APIClient, fleet: None) -> None:
    strategy = {"failure_mode": "soft", "on_error": "continue", "waves": [], "bake_time": 0, "promotion": "auto"}
    assert asked(operator, strategy=strategy)["strategy"] == {}


# What is refused

BAD = [
    ({"selector": {"tenant_id": "a1"}}, "/selector/tenant_id", "tenant_ids, exclude, labels, isolation, status"),
    ({"strategy": {"concurrency": 1}}, "/strategy/concurrency", "max_concurrency, max_per_database, max_failures"),
    ({"isolation": "schema"}, "/isolation", "selector, strategy, dry_run"),
    ({"selector": []}, "/selector", "dictionary"),
    ({"strategy": "fast"}, "/strategy", "dictionary"),
    ({"selector": None}, "/selector", "null"),
    ({"dry_run": "yes"}, "/dry_run", "boolean"),
    ({"selector": {"tenant_ids": []}}, "/selector/tenant_ids", "empty"),
    ({"selector": {"tenant_ids": "a1"}}, "/selector/tenant_ids", "list"),
    ({"selector": {"tenant_ids": ["a1", 5]}}, "/selector/tenant_ids/1", "string"),
    ({"selector": {"tenant_ids": ["x" * 64]}}, "/selector/tenant_ids/0", "63"),
    ({"selector": {"exclude": [None]}}, "/selector/exclude/0", "null"),
    ({"selector": {"labels": ["eu"]}}, "/selector/labels", "dictionary"),
    ({"selector": {"labels": {"region": 1}}}, "/selector/labels/region", "string"),
    ({"selector": {"labels": {"a=b": "c"}}}, "/selector/labels/a=b", "without '='"),
    ({"selector": {"labels": {"a/b": 1}}}, "/selector/labels/a~1b", "string"),
    ({"selector": {"isolation": "table"}}, "/selector/isolation", '"table"'),
    ({"selector": {"status": "pending"}}, "/selector/status", "list"),
    ({"selector": {"status": ["late"]}}, "/selector/status/0", '"late"'),
    ({"selector": {"failed_in": 0}}, "/selector/failed_in", "1"),
    ({"selector": {"failed_in": "7"}}, "/selector/failed_in", "integer"),
    ({"selector": {"unfinished_in": True}}, "/selector/unfinished_in", "integer"),
    ({"selector": {"shard": "2"}}, "/selector/shard", "pattern"),
    ({"selector": {"shard": " 1/2"}}, "/selector/shard", "pattern"),
    ({"selector": {"shard": "3/2"}}, "/selector/shard", "K/N"),
    ({"selector": {"shard": "0/2"}}, "/selector/shard", "K/N"),
    ({"selector": {"sample": "101%"}}, "/selector/sample", "percentage"),
    ({"selector": {"sample": -1}}, "/selector/sample", "number of tenants"),
    ({"selector": {"sample": "5"}}, "/selector/sample", "no quotes"),
    ({"selector": {"sample": 1, "seed": -1}}, "/selector/seed", "0"),
    ({"selector": {"sample": 1, "seed": 2**31}}, "/selector/seed", "2147483647"),
    ({"strategy": {"max_concurrency": True}}, "/strategy/max_concurrency", "number of tenants"),
    ({"strategy": {"max_concurrency": "1000%"}}, "/strategy/max_concurrency", "percentage"),
    ({"strategy": {"max_per_database": 0}}, "/strategy/max_per_database", "1"),
    ({"strategy": {"max_failures": "100.5%"}}, "/strategy/max_failures", "percentage"),
    ({"strategy": {"max_failures": "-1%"}}, "/strategy/max_failures", "percentage"),
    ({"strategy": {"max_failures": 2.5}}, "/strategy/max_failures", "number of tenants"),
    ({"strategy": {"max_failures": None}}, "/strategy/max_failures", "null"),
    ({"strategy": {"failure_mode": "hard"}}, "/strategy/failure_mode", '"hard"'),
    ({"strategy": {"on_error": "stop"}}, "/strategy/on_error", '"stop"'),
    ({"strategy": {"promotion": True}}, "/strategy/promotion", "True"),
    ({"strategy": {"canary": 0}}, "/strategy/canary", "at least one"),
    ({"strategy": {"canary": "0%"}}, "/strategy/canary", "at least one"),
    ({"strategy": {"canary": {"labels": {}}}}, "/strategy/canary", "at least one label"),
    ({"strategy": {"canary": {"labels": {"tier": 5}}}}, "/strategy/canary/labels/tier", "string"),
    ({"strategy": {"canary": {"tier": "free"}}}, "/strategy/canary", "labels"),
    ({"strategy": {"waves": [1, 0]}}, "/strategy/waves/1", "at least one"),
    ({"strategy": {"waves": ["10%", "200%"]}}, "/strategy/waves/1", "percentage"),
    ({"strategy": {"waves": 3}}, "/strategy/waves", "list"),
    ({"strategy": {"waves": [1] * 101}}, "/strategy/waves", "100"),
    ({"strategy": {"bake_time": -1}}, "/strategy/bake_time", "0"),
    ({"strategy": {"bake_time": "60"}}, "/strategy/bake_time", "number"),
    ({"strategy": {"bake_time": True}}, "/strategy/bake_time", "number"),
    ({"strategy": {"bake_time": 10**999}}, "/strategy/bake_time", "large"),
    ({"strategy": {"progress_deadline": 0}}, "/strategy/progress_deadline", "0.001"),
]


@pytest.mark.parametrize(("body", "pointer", "says"), BAD)
def test_refused__names_the_place_and_what_is_allowed(
    operator: APIClient, db: None, body: dict[str, Any], pointer: str, says: str
) -> None:
    found = refused(operator.post(MIGRATE_ALL, body), 400, "invalid", "errors")
    assert [error["pointer"] for error in found["errors"]] == [pointer]
    assert says in found["errors"][0]["detail"]
    assert not Rollout.objects.exists()


def test_refused__every_mistake_at_once(operator: APIClient, db: None) -> None:
    body = {"selector": {"sample": "101%", "isolation": "x"}, "strategy": {"canary": 0}, "dry_run": 1}
    found = refused(operator.post(MIGRATE_ALL, body), 400, "invalid", "errors")
    pointers = {error["pointer"] for error in found["errors"]}
    assert pointers == {"/selector/sample", "/selector/isolation", "/strategy/canary", "/dry_run"}


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"selector": {"seed": 5}}, "invalid_options", "seed"),
        ({"selector": {"sample": 0}}, "invalid_options", "sample"),
        ({"strategy": {"max_concurrency": 0}}, "invalid_options", "max_concurrency"),
        ({"strategy": {"failure_mode": "strict"}}, "invalid_options", "max_failures"),
        ({"strategy": {"bake_time": 5}}, "invalid_options", "waves"),
        ({"strategy": {"promotion": "manual"}}, "invalid_options", "waves"),
        ({"selector": {"failed_in": 999}}, "unknown_rollout", "999"),
        ({"selector": {"unfinished_in": 10**30}}, "unknown_rollout", "1000"),
        ({"selector": {"tenant_ids": ["a1", "nobody", "b9"]}}, "unknown_tenants", "b9, nobody"),
        ({"selector": {"exclude": ["nobody"]}}, "unknown_tenants", "nobody"),
    ],
)
def test_refused__what_cannot_be_done(
    operator: APIClient, fleet: None, body: dict[str, Any], code: str, says: str
) -> None:
    for dry_run in (True, False):
        found = refused(operator.post(MIGRATE_ALL, {**body, "dry_run": dry_run}), 422, code)
        assert says in found["detail"]
    assert not Rollout.objects.exists()


def test_refused__unknown_tenants_are_not_listed_without_end(operator: APIClient, db: None) -> None:
    named = [f"x{number:04}" for number in range(1000)]
    found = refused(ask(operator, selector={"tenant_ids": named}), 422, "unknown_tenants")
    assert found["detail"].endswith(f"{', '.join(named[:10])} and 990 more.")


# Dry run


def test_dry_run__shows_waves_groups_and_limits(operator: APIClient, fleet: None) -> None:
    strategy = {"canary": 1, "waves": ["50%"], "max_failures": "34%", "max_concurrency": "50%"}
    shown = preview(operator, strategy=strategy)
    assert shown.keys() == {
        *("total", "selector", "waves", "left_out", "max_failures", "max_concurrency", "groups", "problems"),
        "oldest_observation",
    }
    assert waves_of(shown) == {0: ["shared"], 1: ["a1"], 2: ["a2", "a3"], 3: ["a4", "b1"]}
    assert [wave["tenant_count"] for wave in shown["waves"]] == [1, 1, 2, 2]
    assert (shown["total"], shown["max_failures"], shown["max_concurrency"]) == (6, 2, 3)
    assert (shown["selector"], shown["left_out"]) == ({}, [])
    steps = {group["tenant_ids"][0]: len(group["plan"]["steps"]) for group in shown["groups"]}
    assert steps == {"a1": 0, "a2": 15}
    assert {problem["tenant_id"]: problem["code"] for problem in shown["problems"]} == dict.fromkeys(
        ("a3", "a4", "b1", "shared"), "unprovisioned"
    )
    oldest = TenantObservation.objects.earliest("observed_at")
    assert parse_datetime(shown["oldest_observation"]) == oldest.observed_at


def test_dry_run__is_what_is_then_asked_for(operator: APIClient, fleet: None) -> None:
    given = {"selector": {"sample": 4, "seed": 3}, "strategy": {"canary": {"labels": {"region": "us"}}, "waves": [1]}}
    shown = waves_of(preview(operator, **given))
    rollout = asked(operator, **given)
    runs = MigrationRun.objects.filter(rollout=rollout["id"]).order_by("tenant_id").values_list("wave", "tenant_id")
    assert {wave: [tenant for number, tenant in runs if number == wave] for wave, _ in runs} == shown


def test_dry_run__changes_nothing(operator: APIClient, fleet: None) -> None:
    before = (list(Tenant.objects.values()), list(TenantObservation.objects.values()))
    preview(operator, strategy={"canary": 1})
    assert (list(Tenant.objects.values()), list(TenantObservation.objects.values())) == before
    assert not Rollout.objects.exists()
    assert not MigrationRun.objects.exists()
    assert (AuditEntry.objects.get().status, AuditEntry.objects.get().object_id) == (200, "")


def test_dry_run__without_limits_and_without_tenants(operator: APIClient, db: None) -> None:
    shown = preview(operator, strategy={"canary": 1, "max_failures": "10%", "max_concurrency": "10%"})
    assert (shown["total"], shown["waves"], shown["groups"], shown["max_failures"]) == (0, [], [], 0)
    shown = preview(operator)
    assert (shown["max_failures"], shown["max_concurrency"]) == (None, None)


@pytest.mark.parametrize(("options", "status"), [({"prune": True}, 403), ({"migration_name": "zero"}, 403)])
def test_dry_run__of_what_only_an_admin_may_ask_for(
    operator: APIClient, fleet: None, options: dict[str, Any], status: int
) -> None:
    assert ask(operator, dry_run=True, app_label="users", **options).status_code == status


# Who is left out


@pytest.fixture
def obstacles(fleet: None) -> None:
    """a1 is held, a2 suspended, a3 busy, a4 between two migrations."""
    hold(Tenant.objects.get(pk="a1"), by="ops", reason="Frozen.")
    Tenant.objects.filter(pk="a2").update(suspended=True)
    MigrationRun.objects.create(tenant_id="a3", requested_via="api")
    observed(Tenant.objects.get(pk="a4"), partial=True)


def test_left_out__is_shown_with_the_reason(operator: APIClient, obstacles: None) -> None:
    shown = preview(operator)
    busy = MigrationRun.objects.get(tenant="a3").pk
    assert waves_of(shown) == {0: ["shared"], 1: ["b1"]}
    assert {each["tenant_id"]: (each["code"], each["reason"]) for each in shown["left_out"]} == {
        "a1": ("held", "The tenant is held by ops (Frozen.)."),
        "a2": ("suspended", "The tenant is suspended."),
        "a3": ("run_active", f"Tenant 'a3' has an unfinished run: {busy}."),
        "a4": ("partial", "The tenant stands between two migrations and has to be repaired, or migrated by itself."),
    }
    # The percentages are of all of them.
    assert shown["total"] == 6


def test_left_out__is_skipped_for_the_same_reason(operator: APIClient, obstacles: None) -> None:
    reasons = {each["tenant_id"]: (each["code"], each["reason"]) for each in preview(operator)["left_out"]}
    rollout = asked(operator)
    assert (rollout["total"], rollout["runs"]["pending"], rollout["runs"]["skipped"]) == (6, 2, 4)
    runs = operator.get(f"/rollouts/{rollout['id']}/runs", {"state": "skipped"}).json()["results"]
    assert {run["tenant_id"]: (run["error_code"], run["message"]) for run in runs} == reasons
    assert all(run["finished_at"] for run in runs)


def test_left_out__everybody_busy_is_refused_with_the_run(operator: APIClient, db: None) -> None:
    registered("a1", "a2")
    asked(operator)
    found = refused(ask(operator), 409, "run_active", "run_id")
    assert found["run_id"] == MigrationRun.objects.get(tenant="a1").pk
    assert Rollout.objects.count() == 1


# Idempotency


def test_idempotency__one_rollout_and_one_sample_however_often_it_is_sent(operator: APIClient, fleet: None) -> None:
    body = {"selector": {"sample": 2}, "strategy": {"canary": 1}}
    answers = [operator.post(MIGRATE_ALL, body, headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {202}
    assert answers[0].json() == answers[1].json() == answers[2].json()
    assert answers[2]["Location"] == answers[0]["Location"]
    assert Rollout.objects.count() == 1


def test_idempotency__a_dry_run_is_another_request(operator: APIClient, fleet: None) -> None:
    key = {"Idempotency-Key": "k"}
    shown = [operator.post(MIGRATE_ALL, {"dry_run": True, "selector": {"sample": 2}}, headers=key) for _ in range(2)]
    assert shown[0].json() == shown[1].json()
    refused(operator.post(MIGRATE_ALL, {"selector": {"sample": 2}}, headers=key), 422, "idempotency_key_reused")
