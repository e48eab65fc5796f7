import http.client
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from migrations_api.models import AuditEntry, IdempotencyRecord, MigrationRun, Rollout
from migrations_api.orchestrator.expiry import purge
from tenants.models import Tenant
from tests import catalog
from tests.http_api import carry_out, refused, registered
from tests.processes import GIVE_UP, processes, wait_until

ClientOf = Callable[[str | None], APIClient]
MakeTenant = Callable[..., Tenant]
MIGRATE, MIGRATE_ALL = "/tenants/acme/migrate", "/tenants/migrate-all"
KEY = {"Idempotency-Key": "deploy-2031"}
Answer = tuple[int, dict[str, Any]]


@pytest.fixture
def ask_at_once(plane: None, live_server: Any, token_of: Any) -> Callable[..., list[Answer]]:
    """The answers to so many equal POSTs that are sent to a server at the same time."""
    _, key = token_of("admin")
    address = urlsplit(live_server.url)

    def send(path: str, headers: dict[str, str], body: dict[str, Any]) -> Answer:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=GIVE_UP)
        given = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers}
        try:
            connection.request("POST", path, json.dumps(body), given)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def ask(times: int, path: str, *, body: dict[str, Any] | None = None, **headers: str) -> list[Answer]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with ThreadPoolExecutor(times) as pool:
            futures = [pool.submit(send, path, named, body or {}) for _ in range(times)]
            return [future.result() for future in futures]

    return ask


# At the same time


def test_parallel__one_of_fifty_is_accepted(
    ask_at_once: Callable[..., list[Answer]], make_tenant: MakeTenant, tmp_path: Path
) -> None:
    tenant = make_tenant("acme")
    answers = ask_at_once(50, MIGRATE)

    assert Counter(status for status, _ in answers) == {202: 1, 409: 49}
    run = MigrationRun.objects.get()
    assert {body["run_id"] for status, body in answers if status == 409} == {run.pk}
    assert {body["code"] for status, body in answers if status == 409} == {"run_active"}
    with processes(tmp_path) as start:
        start("coordinate")
        wait_until(lambda: not MigrationRun.objects.active().exists())
    assert MigrationRun.objects.get().state == "succeeded"
    assert catalog.query(catalog.tenant_dsn(tenant), "SELECT count(*) FROM public_acme.ledger") == [(1,)]
    assert AuditEntry.objects.filter(action="migrate_tenant").count() == 50


@pytest.mark.parametrize("path", [MIGRATE, MIGRATE_ALL])
def test_parallel__twenty_with_one_key_are_one(ask_at_once: Callable[..., list[Answer]], path: str) -> None:
    registered("acme", "globex")
    answers = ask_at_once(20, path, **KEY)

    assert {status for status, _ in answers} == {202}
    assert all(body == answers[0][1] for _, body in answers)
    assert MigrationRun.objects.count() == (1 if path == MIGRATE else 2)
    assert Rollout.objects.count() == (0 if path == MIGRATE else 1)


def test_parallel__twenty_rollouts_are_one(ask_at_once: Callable[..., list[Answer]]) -> None:
    registered("acme", "globex")
    answers = ask_at_once(20, MIGRATE_ALL)
    assert Counter(status for status, _ in answers) == {202: 1, 409: 19}
    assert (Rollout.objects.count(), MigrationRun.objects.count()) == (1, 2)


def test_parallel__a_tenant_is_created_once(ask_at_once: Callable[..., list[Answer]]) -> None:
    body = {"tenant_id": "acme", "isolation": "schema", "database": "shop"}
    answers = ask_at_once(10, "/tenants", body=body, **KEY)
    try:
        # Whoever came while it was being created was told so; the others got the tenant.
        assert {status for status, _ in answers} <= {201, 409}
        assert {body["code"] for status, body in answers if status == 409} <= {"idempotency_key_in_progress"}
        assert 201 in {status for status, _ in answers}
        assert Tenant.objects.get().provisioned_at is not None
    finally:
        catalog.query(catalog.tenant_dsn(Tenant.objects.get()), "DROP SCHEMA public_acme CASCADE")


# One after the other


@pytest.mark.parametrize("path", [MIGRATE, MIGRATE_ALL])
def test_same__gets_the_same_answer(operator: APIClient, db: None, path: str) -> None:
    registered("acme")
    first, second = (operator.post(path, {"app_label": "users"}, headers=KEY) for _ in range(2))

    assert (first.status_code, second.status_code) == (202, 202)
    assert (first.json(), first["Location"]) == (second.json(), second["Location"])
    assert "Idempotency-Replayed" not in first
    assert second["Idempotency-Replayed"] == "true"
    assert MigrationRun.objects.count() == 1


def test_same__once_it_was_carried_out(operator: APIClient, make_tenant: MakeTenant) -> None:
    """The run is not done again, and with Prefer its present state can be had."""
    make_tenant("acme")
    pinned = {**KEY, "If-Match": operator.get("/tenants/acme/plan")["ETag"]}
    first = operator.post(MIGRATE, headers=pinned)
    carry_out(first.json()["id"])

    assert operator.post(MIGRATE, headers=pinned).json() == first.json()
    waited = operator.post(MIGRATE, headers={**pinned, "Prefer": "wait=5"})
    assert (waited.json()["id"], waited.json()["state"]) == (first.json()["id"], "succeeded")
    assert MigrationRun.objects.count() == 1


def test_same__body_spelled_otherwise(operator: APIClient, db: None) -> None:
    registered("acme")
    bodies = ['{"app_label":"users","run_syncdb":false}', '{ "run_syncdb": false, "app_label": "users" }']
    answers = [operator.post(MIGRATE, body, content_type="application/json", headers=KEY) for body in bodies]
    assert answers[0].json()["id"] == answers[1].json()["id"]


def test_same__create_tenant(admin: APIClient, db: None) -> None:
    body = {"tenant_id": "acme", "isolation": "schema", "provision": False}
    first, second = (admin.post("/tenants", body, headers=KEY) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert (first.json(), first["Location"]) == (second.json(), second["Location"])
    refused(admin.post("/tenants", body), 409, "tenant_exists")


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_same__verb(operator: APIClient, db: None, verb: str) -> None:
    registered("acme")
    state = "pending" if verb == "cancel" else "failed"
    run = MigrationRun.objects.create(tenant_id="acme", state=state, requested_via="api")
    answers = [operator.post(f"/runs/{run.pk}/{verb}", headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert operator.post(f"/runs/{run.pk}/{verb}").status_code == 409


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        (MIGRATE, {"app_label": "orders"}, {}),
        (MIGRATE, {}, {}),
        (MIGRATE, {"app_label": "users"}, {"If-Match": f'"{"0" * 64}"'}),
        (MIGRATE_ALL, {"app_label": "users"}, {}),
        ("/tenants/globex/migrate", {"app_label": "users"}, {}),
    ],
)
def test_other__request_under_a_used_key_is_refused(
    operator: APIClient, db: None, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    registered("acme", "globex")
    operator.post(MIGRATE, {"app_label": "users"}, headers=KEY)
    refused(operator.post(path, body, headers={**KEY, **headers}), 422, "idempotency_key_reused")
    assert MigrationRun.objects.count() == 1


def test_other__caller_has_keys_of_their_own(client_of: ClientOf, db: None) -> None:
    registered("acme", "globex")
    assert client_of("operator").post(MIGRATE, headers=KEY).status_code == 202
    assert client_of("admin").post("/tenants/globex/migrate", headers=KEY).status_code == 202


def test_without_a_key__nothing_is_kept(operator: APIClient, db: None) -> None:
    registered("acme")
    operator.post(MIGRATE)
    refused(operator.post(MIGRATE), 409, "run_active", "run_id")
    assert not IdempotencyRecord.objects.exists()


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "schlüssel", "a\x7f"])
@pytest.mark.parametrize("path", [MIGRATE, MIGRATE_ALL, "/tenants"])
def test_malformed__key_is_refused(admin: APIClient, db: None, path: str, key: str) -> None:
    registered("acme")
    refused(admin.post(path, headers={"Idempotency-Key": key}), 400, "malformed_header")
    assert not MigrationRun.objects.exists()


def test_longest__key(operator: APIClient, db: None) -> None:
    registered("acme")
    key = "".join(map(chr, range(32, 127))) + "x" * 160
    assert len(key) == 255
    answers = [operator.post(MIGRATE, HTTP_IDEMPOTENCY_KEY=key).json()["id"] for _ in range(2)]
    assert answers[0] == answers[1]


# Errors


def test_error__frees_the_key(operator: APIClient, db: None) -> None:
    registered("acme")
    refused(operator.post(MIGRATE, {"app_label": "crm"}, headers=KEY), 422, "unknown_app")
    refused(operator.post(MIGRATE, {"crm": 1}, headers=KEY), 400, "invalid", "errors")
    refused(operator.post("/tenants/nobody/migrate", headers=KEY), 404, "tenant_not_found")
    first = operator.post(MIGRATE, headers=KEY)
    assert first.status_code == 202
    other = {"Idempotency-Key": "another"}
    refused(operator.post(MIGRATE, headers=other), 409, "run_active", "run_id")
    carry = MigrationRun.objects.filter(pk=first.json()["id"])
    carry.update(state="succeeded")
    assert operator.post(MIGRATE, headers=other).status_code == 202


def test_error__of_a_creation_frees_the_key(admin: APIClient, db: None) -> None:
    body = {"tenant_id": "acme", "isolation": "schema", "database": "moon"}
    refused(admin.post("/tenants", body, headers=KEY), 422, "server_not_configured")
    assert not IdempotencyRecord.objects.exists()
    body = {**body, "database": "shop", "provision": False}
    assert admin.post("/tenants", body, headers=KEY).status_code == 201


def test_creation__that_is_going_on_and_one_that_died(admin: APIClient, db: None) -> None:
    body = {"tenant_id": "acme", "isolation": "schema", "provision": False}
    assert admin.post("/tenants", body, headers=KEY).status_code == 201
    Tenant.objects.all().delete()
    IdempotencyRecord.objects.update(status=0, body=None)

    refused(admin.post("/tenants", body, headers=KEY), 409, "idempotency_key_in_progress")
    IdempotencyRecord.objects.update(created_at=timezone.now() - timedelta(hours=1, seconds=1))
    assert admin.post("/tenants", body, headers=KEY).status_code == 201


# For a while


def age(seconds: float) -> None:
    IdempotencyRecord.objects.update(created_at=timezone.now() - timedelta(seconds=seconds))


@pytest.mark.parametrize("ttl", [86_400, 7200])
def test_purge__after_the_time_that_is_set(operator: APIClient, db: None, settings: Any, ttl: int) -> None:
    if ttl != 86_400:
        settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "idempotency_ttl": ttl}
    registered("acme")
    first = operator.post(MIGRATE, headers=KEY).json()["id"]
    age(ttl - 100)
    assert purge() == 0
    age(ttl + 100)
    assert purge() == 1
    MigrationRun.objects.update(state="succeeded")
    assert operator.post(MIGRATE, headers=KEY).json()["id"] != first


def test_purge__is_the_coordinators(operator: APIClient, plane: None, tmp_path: Path) -> None:
    registered("acme", "globex")
    for tenant_id, key in (("acme", "old"), ("globex", "new")):
        operator.post(f"/tenants/{tenant_id}/migrate", headers={"Idempotency-Key": key})
    MigrationRun.objects.update(state="succeeded")
    day_ago = timezone.now() - timedelta(days=1, seconds=1)
    IdempotencyRecord.objects.filter(key="old").update(created_at=day_ago)
    with processes(tmp_path) as start:
        start("coordinate")
        wait_until(lambda: IdempotencyRecord.objects.count() == 1)
    assert IdempotencyRecord.objects.get().key == "new"
