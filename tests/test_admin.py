from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db import connection, models
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from rest_framework_api_key.models import APIKey

from migrations_api.models import (
    ApiToken,
    AppliedSet,
    AuditEntry,
    IdempotencyRecord,
    MigrationRun,
    RequestedVia,
    Rollout,
    RunStep,
    TenantObservation,
)
from migrations_api.states import RunState
from tenants import admin as tenants_admin
from tenants.models import Tenant

MakeToken = Callable[..., tuple[ApiToken, str]]
RECORDS: list[type[models.Model]] = [
    Tenant,
    MigrationRun,
    Rollout,
    AppliedSet,
    TenantObservation,
    AuditEntry,
    IdempotencyRecord,
]


@pytest.fixture
def root(roles: None) -> Client:
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("root"))
    return client


@pytest.fixture
def records(db: None) -> dict[type[models.Model], models.Model]:
    """One row of each kind; the run and its step are of a tenant that was forgotten."""
    tenant = Tenant.objects.create(tenant_id="acme", name="Acme", isolation="schema", schema_name="public_acme")
    applied = AppliedSet.objects.get(pk=AppliedSet.store(frozenset({("orders", "0001_initial")})))
    rollout = Rollout.objects.create(requested_via=RequestedVia.API)
    run = add_run("gone", rollout=rollout, applied_before=applied)
    observation = TenantObservation.objects.create(tenant=tenant, applied=applied, observed_at=timezone.now())
    entry = AuditEntry.objects.create(action="migrate_tenant", status=202, outcome="accepted", actor="operator")
    record = IdempotencyRecord.objects.create(actor="operator", key="k", request_digest="d", body={"id": 1})
    return {type(row): row for row in (tenant, applied, rollout, run, observation, entry, record)}


def add_run(tenant_id: str, **values: Any) -> MigrationRun:
    run = MigrationRun.objects.create(
        tenant_id=tenant_id, state=RunState.FAILED, requested_via=RequestedVia.API, **values
    )
    RunStep.objects.create(run=run, position=1, app_label="orders", name="0002_ledger_entry")
    return run


def page(model: type[models.Model], name: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{name}", args=args)


def rows_of(model: type[models.Model]) -> list[Any]:
    return list(model._base_manager.values())


@pytest.mark.parametrize("model", RECORDS)
def test_records__can_be_looked_at(root: Client, records: Any, model: type[models.Model]) -> None:
    pk = records[model].pk

    assert f"1 {model._meta.verbose_name}" in root.get(page(model, "changelist")).content.decode()
    assert root.get(page(model, "change", pk)).status_code == 200


@pytest.mark.parametrize("model", RECORDS)
def test_records__are_not_changed_by_superusers(root: Client, records: Any, model: type[models.Model]) -> None:
    before, pk = rows_of(model), records[model].pk
    marked = {"action": "delete_selected", "_selected_action": [pk], "post": "yes"}

    assert root.get(page(model, "add")).status_code == 403
    assert root.post(page(model, "add"), {"name": "x"}).status_code == 403
    assert root.post(page(model, "change", pk), {"name": "x"}).status_code == 403
    assert root.get(page(model, "delete", pk)).status_code == 403
    assert root.post(page(model, "delete", pk), {"post": "yes"}).status_code == 403
    root.post(page(model, "changelist"), marked)
    assert rows_of(model) == before


@pytest.mark.parametrize("model", RECORDS)
def test_records__page_offers_no_change(root: Client, records: Any, model: type[models.Model]) -> None:
    listed = root.get(page(model, "changelist")).content.decode()
    shown = root.get(page(model, "change", records[model].pk)).content.decode()

    assert "delete_selected" not in listed
    assert f'href="{page(model, "add")}' not in listed
    for name in ("_save", "_continue", "_addanother", "deletelink"):
        assert name not in shown


@pytest.mark.parametrize("model", [*RECORDS, ApiToken])
def test_admin__strangers_are_sent_to_the_login(db: None, model: type[models.Model]) -> None:
    response = Client().get(page(model, "changelist"))

    assert response.status_code == 302
    assert "/admin/login/" in response["Location"]


def test_admin__api_roles_open_nothing_here(token_of: MakeToken) -> None:
    token, key = token_of("admin")
    client = Client()
    client.force_login(token.user)

    assert client.get(page(Tenant, "changelist")).status_code == 302
    assert Client().get(page(Tenant, "changelist"), headers={"authorization": f"Bearer {key}"}).status_code == 302


def test_run__shows_its_steps_and_a_forgotten_tenant(root: Client, records: Any) -> None:
    run = records[MigrationRun]

    listed = root.get(page(MigrationRun, "changelist")).content.decode()
    shown = root.get(page(MigrationRun, "change", run.pk)).content.decode()

    assert "gone" in listed
    assert "gone" in shown
    assert "0002_ledger_entry" in shown


def test_run__search_by_tenant(root: Client, records: Any) -> None:
    add_run("acme")

    listed = root.get(page(MigrationRun, "changelist"), {"q": "gone"}).content.decode()

    assert 'field-tenant_id">gone' in listed
    assert 'field-tenant_id">acme' not in listed


@pytest.mark.parametrize("model", [Tenant, TenantObservation, AuditEntry, IdempotencyRecord, ApiToken])
def test_search__answers(root: Client, records: Any, model: type[models.Model]) -> None:
    assert root.get(page(model, "changelist"), {"q": "acme"}).status_code == 200


def test_list__queries_do_not_grow_with_rows(root: Client, records: Any) -> None:
    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            root.get(page(MigrationRun, "changelist"))
        return len(queries)

    few = count()
    for number in range(20):
        add_run(f"t{number}")

    assert count() == few


def test_list__counts_no_further_than_it_leads(root: Client, records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants_admin, "COUNTED_ROWS", 5)
    for number in range(20):
        add_run(f"t{number}")

    with CaptureQueriesContext(connection) as queries:
        content = root.get(page(MigrationRun, "changelist")).content.decode()

    counts = [query["sql"] for query in queries if "COUNT(*)" in query["sql"]]
    assert counts
    assert all("LIMIT 5" in sql for sql in counts)
    assert "5 migration runs" in content


def new_token(root: Client, **values: Any) -> Any:
    user = get_user_model().objects.create_user("ci-bot")
    data = {"name": "CI", "user": user.pk, "scope": "operator", "expiry_date_0": "", "expiry_date_1": "", **values}
    return root.post(page(ApiToken, "add"), data, follow=True)


def test_token__key_is_shown_once(root: Client, caplog: pytest.LogCaptureFixture) -> None:
    shown = new_token(root).content.decode()

    token = ApiToken.objects.get()
    key = f"{token.prefix}." + shown.partition(f"{token.prefix}.")[2][:32]
    assert token.is_valid(key)
    for again in (page(ApiToken, "changelist"), page(ApiToken, "change", token.pk)):
        assert key not in root.get(again).content.decode()
    assert key not in caplog.text


def test_token__hash_is_on_no_page(root: Client, token_of: MakeToken) -> None:
    token, _ = token_of("viewer")

    for address in (
        page(ApiToken, "changelist"),
        page(ApiToken, "change", token.pk),
        page(ApiToken, "history", token.pk),
    ):
        content = root.get(address).content.decode()
        assert token.prefix in address + content
        assert "sha512" not in address + content


def test_token__form_proposes_an_expiry(root: Client) -> None:
    form = root.get(page(ApiToken, "add")).context["adminform"].form

    proposed = form.initial["expiry_date"] - timezone.now()
    assert timedelta(days=89) < proposed <= timedelta(days=90)


def test_token__revoked_for_good(root: Client, token_of: MakeToken) -> None:
    token, _ = token_of("viewer")
    address = page(ApiToken, "change", token.pk)

    root.post(address, {"name": "CI", "revoked": "on"})
    token.refresh_from_db()
    assert (token.revoked, token.name) == (True, "CI")

    root.post(address, {"name": "CI"})
    token.refresh_from_db()
    assert token.revoked


def test_token__form_left_open_takes_back_no_revocation(root: Client, token_of: MakeToken) -> None:
    token, _ = token_of("viewer")

    with CaptureQueriesContext(connection) as queries:
        root.post(page(ApiToken, "change", token.pk), {"name": "CI"})

    table = ApiToken._meta.db_table
    (update,) = [query["sql"] for query in queries if query["sql"].startswith(f'UPDATE "{table}"')]
    assert '"name"' in update
    assert '"revoked"' not in update


def test_token__rights_are_settled_when_it_is_made(root: Client, token_of: MakeToken) -> None:
    token, _ = token_of("viewer")
    admin_user = get_user_model().objects.get(username="root")
    change = {"name": "CI", "scope": "admin", "user": admin_user.pk, "expiry_date_0": "2999-01-01", "prefix": "x"}

    root.post(page(ApiToken, "change", token.pk), change)

    stored = ApiToken.objects.get()
    assert (stored.scope, stored.user_id, stored.expiry_date) == ("viewer", token.user.pk, token.expiry_date)
    assert (stored.prefix, stored.name) == (token.prefix, "CI")


def test_token__is_not_deleted(root: Client, token_of: MakeToken) -> None:
    token, _ = token_of("viewer")
    marked = {"action": "delete_selected", "_selected_action": [token.pk], "post": "yes"}

    assert root.post(page(ApiToken, "delete", token.pk), {"post": "yes"}).status_code == 403
    root.post(page(ApiToken, "changelist"), marked)

    assert ApiToken.objects.filter(pk=token.pk).exists()


def test_token__each_change_leaves_an_audit_entry(root: Client) -> None:
    new_token(root)
    token = ApiToken.objects.get()
    root.post(page(ApiToken, "change", token.pk), {"name": "CD"})
    root.post(page(ApiToken, "change", token.pk), {"name": "CD", "revoked": "on"})

    entries = AuditEntry.objects.order_by("id").values_list("actor", "action", "object_id", "outcome")
    assert list(entries) == [
        ("root", "create_api_token", token.prefix, "accepted"),
        ("root", "change_api_token", token.prefix, "accepted"),
        ("root", "revoke_api_token", token.prefix, "accepted"),
    ]


def test_token__list_is_of_few_queries(root: Client, token_of: MakeToken) -> None:
    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            root.get(page(ApiToken, "changelist"))
        return len(queries)

    token_of("viewer")
    few = count()
    for role in ("viewer", "operator", "admin"):
        token_of(role)

    assert count() == few


def test_library_keys__are_not_in_the_admin() -> None:
    assert not admin.site.is_registered(APIKey)
