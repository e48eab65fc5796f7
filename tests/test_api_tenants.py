from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.conf import settings as configured
from django.utils import timezone
from psycopg2 import sql
from rest_framework.test import APIClient

from migrations_api.models import AppliedSet, MigrationRun, TenantObservation
from migrations_api.orchestrator.fleet import TenantStatus
from migrations_api.orchestrator.registration import forget
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.sources import source_for
from tenants.backends import backend_for
from tenants.exceptions import TenantNotFound
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.http_api import carry_out, pages, refused, registered
from tests.roles import role

ClientOf = Callable[[str | None], APIClient]
MakeTenant = Callable[..., Tenant]
NEW = {"tenant_id": "acme", "name": "ACME Corporation", "isolation": "schema", "database": "shop"}
ORDERINGS = ["tenant_id", "-tenant_id", "name", "-name", "created_at", "-created_at"]


@pytest.fixture
def homes(plane: None) -> Iterator[Callable[[], set[str]]]:
    """Every schema of the shop and every database of the server; what tenants have at the end is dropped."""
    yield all_homes
    for tenant in Tenant.objects.filter(database="shop"):
        backend_for(tenant).drop(tenant)


def all_homes() -> set[str]:
    return catalog.schemas(shop()) | catalog.databases()


def shop() -> dict[str, Any]:
    return catalog.dsn(configured.TENANT_DATABASES["shop"])


def ids(rows: list[Any]) -> list[str]:
    return [row["tenant_id"] for row in rows]


def listed(client: APIClient, **query: Any) -> list[str]:
    response = client.get("/tenants", query)
    assert response.status_code == 200, response.content
    return ids(response.json()["results"])


def make_unreachable(settings: Any) -> None:
    down = {**configured.TENANT_DATABASES["shop"], "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "down": down}


# List


def test_list__without_tenants(viewer: APIClient) -> None:
    assert viewer.get("/tenants").json() == {"next": None, "results": []}


def test_list__what_a_tenant_looks_like(viewer: APIClient) -> None:
    registered("acme", name="ACME Corporation", labels={"plan": "pro"})
    [row] = viewer.get("/tenants").json()["results"]

    assert datetime.fromisoformat(row.pop("created_at")).tzinfo is not None
    assert row == {
        "tenant_id": "acme",
        "name": "ACME Corporation",
        "isolation": "schema",
        "database": "shop",
        "database_name": "",
        "schema_name": "public_acme",
        "role_name": "",
        "labels": {"plan": "pro"},
        "provisioned_at": None,
        "held_at": None,
        "held_by": "",
        "hold_reason": "",
        "suspended": False,
        "status": "unprovisioned",
        "status_detail": "Not looked at yet.",
        "pending": 0,
        "observed_at": None,
        "batch": None,
        "migrated_at": None,
    }
    assert viewer.get("/tenants/acme").json() == viewer.get("/tenants").json()["results"][0]


def test_list__names_the_run_that_brought_a_tenant_there(make_tenant: Callable[..., Tenant], viewer: APIClient) -> None:
    tenant = make_tenant("acme")
    make_tenant("globex")
    first = carry_out(request_run(tenant, Request()).pk)
    carry_out(request_run(tenant, Request()).pk)  # which finds nothing to do
    acme, globex = viewer.get("/tenants").json()["results"]
    assert (acme["batch"], datetime.fromisoformat(acme["migrated_at"])) == (first.pk, first.finished_at)
    assert (globex["batch"], globex["migrated_at"]) == (None, None)


def test_list__by_isolation(viewer: APIClient) -> None:
    registered("acme")
    registered("globex", isolation=Isolation.DATABASE)
    registered("public", isolation=Isolation.SHARED)
    assert {kind: listed(viewer, isolation=kind) for kind in Isolation.values} == {
        "schema": ["acme"],
        "database": ["globex"],
        "shared": ["public"],
    }


def test_list__by_status(viewer: APIClient) -> None:
    known = frozenset(source_for(Isolation.SCHEMA).migrations)
    seen = {
        TenantStatus.UP_TO_DATE: {"applied_id": AppliedSet.store(known)},
        TenantStatus.PENDING: {"applied_id": AppliedSet.store(frozenset())},
        TenantStatus.AHEAD: {"applied_id": AppliedSet.store(known | {("orders", "0099_later")})},
        TenantStatus.PARTIAL: {"applied_id": AppliedSet.store(known), "partial": True},
        TenantStatus.UNREACHABLE: {"error_code": "unreachable", "detail": "No route."},
        TenantStatus.UNPROVISIONED: {"error_code": "unprovisioned", "detail": "No schema."},
    }
    assert seen.keys() == set(TenantStatus) - {TenantStatus.HELD}
    for status, values in seen.items():
        [tenant] = registered(status.replace("_", "-"))
        TenantObservation.objects.create(tenant=tenant, observed_at=timezone.now(), **values)
    [held] = registered("held", held_at=timezone.now())
    TenantObservation.objects.create(tenant=held, observed_at=timezone.now(), applied_id=AppliedSet.store(known))

    for status in TenantStatus:
        [row] = viewer.get("/tenants", {"status": status}).json()["results"]
        assert (row["tenant_id"], row["status"]) == (status.replace("_", "-"), status)
    assert {row["status"]: row["pending"] for row in pages(viewer, "/tenants")} == {
        **dict.fromkeys(TenantStatus, 0),
        "pending": len(known),
    }


def test_list__by_label(viewer: APIClient) -> None:
    registered("acme", labels={"plan": "pro", "region": "eu"})
    registered("globex", labels={"plan": "pro", "region": "us"})
    registered("initech", labels={"plan": "a=b", "note": ""})

    assert listed(viewer, label="plan=pro") == ["acme", "globex"]
    assert listed(viewer, label=["plan=pro", "region=us"]) == ["globex"]
    assert listed(viewer, label=["plan=pro", "plan=free"]) == []
    assert listed(viewer, label="plan=a=b") == ["initech"]
    assert listed(viewer, label="note=") == ["initech"]
    assert listed(viewer, label="plan=p") == []
    for wrong in ("plan", "=pro", "", ["plan=pro", "x"]):
        body = refused(viewer.get("/tenants", {"label": wrong}), 400, "invalid_query", "errors")
        assert body["errors"][0]["parameter"].startswith("label")


def test_list__by_search(viewer: APIClient) -> None:
    registered("acme", name="Wile E. Coyote")
    registered("globex", name="100% Globex_Inc")
    assert listed(viewer, search="CM") == ["acme"]
    assert listed(viewer, search="coyote") == ["acme"]
    assert listed(viewer, search="0%") == ["globex"]
    assert listed(viewer, search="x_i") == ["globex"]
    assert listed(viewer, search="e_") == listed(viewer, search="a%") == []


def test_list__all_filters_must_hold(viewer: APIClient) -> None:
    registered("acme", "acme-eu", labels={"plan": "pro"})
    registered("acme-db", isolation=Isolation.DATABASE, labels={"plan": "pro"})
    query = {"isolation": "schema", "label": "plan=pro", "search": "eu", "status": "unprovisioned"}
    assert listed(viewer, **query) == ["acme-eu"]
    assert listed(viewer, **{**query, "status": "pending"}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("isolation", "table"),
        ("status", "lost"),
        ("ordering", "database"),
        ("page_size", "0"),
        ("page_size", "201"),
        ("page_size", "ten"),
        ("page_size", "9" * 2000),
        ("search", "x" * 201),
        ("search", "\0"),
        ("cursor", "x" * 1001),
    ],
)
def test_list__wrong_value_names_its_parameter(viewer: APIClient, name: str, value: str) -> None:
    body = refused(viewer.get("/tenants", {name: value}), 400, "invalid_query", "errors")
    assert [error["parameter"] for error in body["errors"]] == [name]


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_list__ordering(viewer: APIClient, ordering: str) -> None:
    now = timezone.now()
    for number, (tenant_id, name) in enumerate([("d", "x"), ("b", "x"), ("a", "y"), ("c", "w")]):
        registered(tenant_id, name=name)
        Tenant.objects.filter(pk=tenant_id).update(created_at=now + timedelta(seconds=number // 2))
    expected = {
        "tenant_id": ["a", "b", "c", "d"],
        "name": ["c", "b", "d", "a"],
        "created_at": ["b", "d", "a", "c"],
    }[ordering.removeprefix("-")]

    assert listed(viewer, ordering=ordering) == (expected[::-1] if ordering.startswith("-") else expected)


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_list__pages_have_each_tenant_once_whatever_is_inserted_meanwhile(viewer: APIClient, ordering: str) -> None:
    """Names and times are equal, so that only the id can tell the rows apart."""
    first = [f"m{number}" for number in range(7)]
    registered(*first, name="Same")
    at = timezone.now()
    Tenant.objects.update(created_at=at)

    found: list[str] = []
    url = f"/tenants?page_size=2&ordering={ordering}"
    for number in range(10):
        response = viewer.get(url).json()
        assert len(response["results"]) <= 2
        found += ids(response["results"])
        registered(f"a{number}", f"z{number}", name="Same")
        Tenant.objects.update(created_at=at)
        if not (url := response["next"]):
            break
    mine = [name for name in found if name in first]

    assert len(found) == len(set(found))
    assert mine == sorted(first, reverse=ordering.startswith("-"))


def test_list__next_keeps_the_query(viewer: APIClient) -> None:
    registered("a1", "a2", "a3", labels={"plan": "pro", "region": "eu"})
    query = {"page_size": 1, "label": ["plan=pro", "region=eu"], "search": "a", "ordering": "-name"}
    following = viewer.get("/tenants", query).json()["next"]

    kept = parse_qs(urlsplit(following).query)
    assert kept.pop("cursor")
    assert kept == {"page_size": ["1"], "label": query["label"], "search": ["a"], "ordering": ["-name"]}
    assert following.startswith("http://testserver/tenants?")
    assert ids(pages(viewer, "/tenants", **query)) == ["a3", "a2", "a1"]


def test_list__last_page_has_no_next(viewer: APIClient) -> None:
    registered("a1", "a2")
    assert viewer.get("/tenants", {"page_size": 2}).json()["next"] is None


# Create


@pytest.mark.parametrize("isolation", [Isolation.SCHEMA, Isolation.DATABASE])
def test_create__makes_a_home(admin: APIClient, homes: Any, isolation: str) -> None:
    before = homes()
    response = admin.post("/tenants", {**NEW, "isolation": isolation, "labels": {"plan": "pro"}})

    assert response.status_code == 201
    assert response["Location"] == "http://testserver/tenants/acme"
    assert response.json() == admin.get("/tenants/acme").json()
    tenant = Tenant.objects.get()
    assert (tenant.name, tenant.isolation, tenant.labels) == ("ACME Corporation", isolation, {"plan": "pro"})
    assert tenant.provisioned_at is not None
    assert len(homes() - before) == 1


def test_create__shortest(admin: APIClient) -> None:
    """Only what has no default; the name is the id."""
    response = admin.post("/tenants", {"tenant_id": "acme", "isolation": "schema", "provision": False})
    assert response.status_code == 201
    assert (response.json()["name"], response.json()["database"]) == ("acme", "default")


def test_create__register_only(admin: APIClient, homes: Any) -> None:
    before = homes()
    response = admin.post("/tenants", {**NEW, "provision": False})
    assert (response.status_code, response.json()["status"]) == (201, "unprovisioned")
    assert homes() == before


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"tenant_id": "Acme"}, (422, "invalid_name")),
        ({"tenant_id": "a/b"}, (422, "invalid_name")),
        ({"tenant_id": " acme"}, (422, "invalid_name")),
        ({"tenant_id": "plan"}, (422, "invalid_name")),
        ({"tenant_id": "migrate-all"}, (422, "invalid_name")),
        ({"tenant_id": "a" * 60}, (422, "invalid_name")),  # public_aaa… is too long for a schema
        ({"name": "A\tB"}, (422, "invalid_name")),
        ({"database": "moon"}, (422, "server_not_configured")),
        ({"isolation": "shared", "database": "default"}, (409, "is_control_plane")),
        ({"database": "down"}, (502, "unreachable")),
        ({"database": "down", "isolation": "database"}, (502, "unreachable")),
    ],
)
def test_create__refused_leaves_nothing(
    admin: APIClient, homes: Any, settings: Any, values: dict[str, Any], expected: tuple[int, str]
) -> None:
    make_unreachable(settings)
    before = homes()
    refused(admin.post("/tenants", {**NEW, **values}), *expected)
    assert homes() == before
    assert not Tenant.objects.exists()


@pytest.mark.parametrize(
    ("values", "pointer"),
    [
        ({"tenant_id": ""}, "/tenant_id"),
        ({"tenant_id": None}, "/tenant_id"),
        ({"tenant_id": 7}, "/tenant_id"),
        ({"tenant_id": ["acme"]}, "/tenant_id"),
        ({"tenant_id": "a" * 64}, "/tenant_id"),
        ({"name": "x" * 201}, "/name"),
        ({"isolation": "table"}, "/isolation"),
        ({"isolation": ["schema"]}, "/isolation"),
        ({"provision": "no"}, "/provision"),
        ({"provision": 0}, "/provision"),
        ({"labels": ["a"]}, "/labels"),
        ({"labels": {"a": 1}}, "/labels/a"),
        ({"labels": {"a/b~c": None}}, "/labels/a~1b~0c"),
        ({"labels": {"a": {"b": "c"}}}, "/labels/a"),
        ({"labels": {"": "x"}}, "/labels/"),
        ({"labels": {"a=b": "x"}}, "/labels/a=b"),
        ({"labels": {"a": "x" * 256}}, "/labels/a"),
        ({"labels": {"a": "\0"}}, "/labels/a"),
        ({"schema_name": "public"}, "/schema_name"),
        ({"nonfield_errors": 1}, "/nonfield_errors"),
    ],
)
def test_create__mistake_is_pointed_at(admin: APIClient, values: dict[str, Any], pointer: str) -> None:
    body = refused(admin.post("/tenants", {**NEW, **values}), 400, "invalid", "errors")
    assert [error["pointer"] for error in body["errors"]] == [pointer]
    assert not Tenant.objects.exists()


def test_create__every_mistake_is_told_at_once(admin: APIClient) -> None:
    body = refused(admin.post("/tenants", {"isolation": 1, "labels": {"a": 1, "b": 2}}), 400, "invalid", "errors")
    found = {error["pointer"]: error["code"] for error in body["errors"]}
    assert found == {
        "/tenant_id": "required",
        "/isolation": "invalid_choice",
        "/labels/a": "invalid",
        "/labels/b": "invalid",
    }


def test_create__that_exists_already(admin: APIClient, make_tenant: MakeTenant) -> None:
    make_tenant("acme", name="First")
    before = all_homes()
    refused(admin.post("/tenants", {**NEW, "name": "Second"}), 409, "tenant_exists")
    assert all_homes() == before
    assert Tenant.objects.get().name == "First"


def test_create__whose_schema_is_somebody_elses(admin: APIClient, plane: None) -> None:
    catalog.query(shop(), "CREATE SCHEMA public_acme; CREATE TABLE public_acme.kept AS SELECT 7 AS answer")
    try:
        refused(admin.post("/tenants", NEW), 409, "already_provisioned")
        assert catalog.rows(shop(), "public_acme") == {"kept": [(7,)]}
        assert not Tenant.objects.exists()
    finally:
        catalog.query(shop(), "DROP SCHEMA public_acme CASCADE")


def test_create__with_a_server_user_who_may_not(admin: APIClient, homes: Any, settings: Any) -> None:
    before = homes()
    with role() as limited:
        wrong = {**limited, "PASSWORD": "wr@ng:pa/ss"}
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "limited": limited, "wrong": wrong}
        refused(admin.post("/tenants", {**NEW, "database": "limited"}), 502, "permission_denied")
    assert homes() == before
    assert not Tenant.objects.exists()


# One tenant


@pytest.mark.parametrize("path", ["", "/migrations", "/plan"])
@pytest.mark.parametrize("tenant_id", ["nobody", "A%00B", "%F0%9F%98%80", "x" * 300, "%ED%A0%80"])
def test_get__that_does_not_exist(viewer: APIClient, path: str, tenant_id: str) -> None:
    body = refused(viewer.get(f"/tenants/{tenant_id}{path}"), 404, "tenant_not_found")
    if tenant_id == "nobody":
        assert body["detail"] == TenantNotFound("nobody").message


def test_patch__changes_what_is_named_and_nothing_else(operator: APIClient) -> None:
    registered("acme", name="Acme", labels={"plan": "pro"})
    assert operator.patch("/tenants/acme", {"name": "ACME"}).json()["name"] == "ACME"
    assert operator.patch("/tenants/acme", {"labels": {"a": "b"}}).json()["labels"] == {"a": "b"}
    before = operator.get("/tenants/acme").json()
    assert operator.patch("/tenants/acme", {}).json() == before
    assert (before["name"], before["labels"]) == ("ACME", {"a": "b"})
    assert operator.patch("/tenants/acme", {"labels": {}}).json()["labels"] == {}


@pytest.mark.parametrize("field", ["isolation", "database", "tenant_id", "schema_name", "provisioned_at", "status"])
def test_patch__a_tenant_never_moves(operator: APIClient, field: str) -> None:
    registered("acme")
    body = refused(operator.patch("/tenants/acme", {field: "other", "name": "new"}), 400, "invalid", "errors")
    assert [(error["pointer"], error["code"]) for error in body["errors"]] == [(f"/{field}", "unknown_field")]
    assert Tenant.objects.get().name == ""


@pytest.mark.parametrize("name", ["A\nB", "\x1b[31mred", "a\u200bb"])
def test_patch__name_is_checked_as_it_is_when_it_is_created(operator: APIClient, name: str) -> None:
    registered("acme", name="Acme")
    refused(operator.patch("/tenants/acme", {"name": name}), 422, "invalid_name")
    assert Tenant.objects.get().name == "Acme"


def test_patch__that_does_not_exist(operator: APIClient) -> None:
    refused(operator.patch("/tenants/nobody", {"name": "x"}), 404, "tenant_not_found")


def test_delete__forgets_and_keeps_the_data(admin: APIClient, make_tenant: MakeTenant) -> None:
    make_tenant("acme")
    run = carry_out(request_run(Tenant.objects.get(), Request()).pk)
    response = admin.delete("/tenants/acme")

    assert (response.status_code, response.content) == (204, b"")
    refused(admin.get("/tenants/acme"), 404, "tenant_not_found")
    assert "orders_order" in catalog.tables(shop(), "public_acme")
    assert admin.get(f"/runs/{run.pk}").json()["tenant_id"] == "acme"
    refused(admin.delete("/tenants/acme"), 404, "tenant_not_found")


@pytest.mark.parametrize("query", ["drop=true", "drop=true&confirm=globex", "drop=true&confirm=ACME"])
def test_delete__drop_has_to_be_confirmed(admin: APIClient, make_tenant: MakeTenant, query: str) -> None:
    make_tenant("acme")
    refused(admin.delete(f"/tenants/acme?{query}"), 422, "confirmation_required")
    assert Tenant.objects.exists()
    assert "public_acme" in catalog.schemas(shop())


@pytest.mark.parametrize("query", ["drop=1", "drop=yes", "drop=True", "drop=", "dorp=true", "drop=true&drop=false"])
def test_delete__mistyped_query_deletes_nothing(admin: APIClient, query: str) -> None:
    registered("acme")
    body = admin.delete(f"/tenants/acme?{query}&confirm=acme").json()
    assert (body["status"], body["code"]) == (400, "invalid_query")
    assert Tenant.objects.exists()


def test_delete__drop(admin: APIClient, homes: Any, tenant: Tenant) -> None:
    before = homes()
    assert admin.delete("/tenants/acme?drop=true&confirm=acme").status_code == 204
    assert len(before - homes()) == 1
    assert not Tenant.objects.exists()


def test_delete__that_has_an_unfinished_run(admin: APIClient, make_tenant: MakeTenant) -> None:
    run = request_run(make_tenant("acme"), Request(via="api"))
    for query in ("", "?drop=true&confirm=acme"):
        body = refused(admin.delete(f"/tenants/acme{query}"), 409, "run_active", "run_id")
        assert body["run_id"] == run.pk
    assert "public_acme" in catalog.schemas(shop())


def test_delete__whose_server_is_down_stays(admin: APIClient, plane: None, settings: Any) -> None:
    make_unreachable(settings)
    registered("acme", database="down")
    refused(admin.delete("/tenants/acme?drop=true&confirm=acme"), 502, "unreachable")
    assert Tenant.objects.exists()
    assert admin.delete("/tenants/acme").status_code == 204


def test_delete__no_run_of_a_tenant_that_was_forgotten_meanwhile(make_tenant: MakeTenant, operator: APIClient) -> None:
    """A run without its tenant would never end."""
    tenant = make_tenant("acme")
    stale = Tenant.objects.get(pk="acme")
    forget(tenant, drop=False)
    with pytest.raises(TenantNotFound):
        request_run(stale, Request(via="api"))
    assert not MigrationRun.objects.exists()


# Migrations and plan


def test_migrations__applied_and_pending(viewer: APIClient, tenant: Tenant) -> None:
    carry_out(request_run(tenant, Request()).pk)
    delete = sql.SQL("DELETE FROM {} WHERE name = '0005_address'").format(
        sql.Identifier(tenant.schema_name, "django_migrations")
    )
    insert = sql.SQL("INSERT INTO {} (app, name, applied) VALUES ('orders', '0099_later', now())").format(
        sql.Identifier(tenant.schema_name, "django_migrations")
    )
    for statement in (delete, insert):
        catalog.query(catalog.tenant_dsn(tenant), statement)

    rows = viewer.get("/tenants/acme/migrations").json()
    assert len(rows) == 16
    assert rows[-1].pop("applied") is not None
    assert rows[-1] == {"app_label": "orders", "name": "0099_later", "known": False, "run_id": None}
    assert {row["run_id"] for row in rows[:-1] if row["applied"]} == {MigrationRun.objects.get().pk}
    assert [row["name"] for row in rows[:-1] if row["applied"] is None] == ["0005_address"]
    assert datetime.fromisoformat(rows[0]["applied"]).tzinfo is not None


@pytest.mark.parametrize("path", ["migrations", "plan"])
def test_question__that_the_server_cannot_answer(viewer: APIClient, settings: Any, plane: None, path: str) -> None:
    make_unreachable(settings)
    registered("acme", database="down")
    registered("globex")
    refused(viewer.get(f"/tenants/acme/{path}"), 502, "unreachable")
    refused(viewer.get(f"/tenants/globex/{path}"), 409, "unprovisioned")
    assert "public_globex" not in catalog.schemas(shop())


def test_plan__of_an_empty_tenant(viewer: APIClient, tenant: Tenant) -> None:
    response = viewer.get("/tenants/acme/plan")
    plan = response.json()

    assert response["ETag"] == f'"{plan["plan_digest"]}"'
    assert len(plan["steps"]) == 15
    assert plan["unknown"] == []
    assert plan["steps"][0] == {
        "app_label": "users",
        "name": "0001_initial",
        "backwards": False,
        "atomic": True,
        "reversible": True,
        "fake": False,
        "operations": ["Create model User"],
        "risks": [],
        "statements": None,
    }
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == set()
    assert not MigrationRun.objects.exists()


def test_plan__to_a_target(viewer: APIClient, make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")

    def steps(**query: str) -> list[str]:
        found = viewer.get("/tenants/acme/plan", query).json()["steps"]
        return [f"{'-' if step['backwards'] else ''}{step['name']}" for step in found if step["app_label"] == "users"]

    assert steps(app_label="users", migration_name="0002") == ["0001_initial", "0002_email_unique"]
    carry_out(request_run(tenant, Request()).pk)
    assert steps() == []
    back = steps(app_label="users", migration_name="0003_full_name")
    assert back == ["-0005_address", "-0004_remove_name_parts"]
    assert steps(app_label="users", migration_name="zero")[-1] == "-0001_initial"


def test_plan__says_what_is_risky(viewer: APIClient, make_tenant: MakeTenant) -> None:
    make_tenant("acme")
    steps = {step["name"]: step for step in viewer.get("/tenants/acme/plan").json()["steps"]}
    [risk, *_] = steps["0004_remove_name_parts"]["risks"]
    assert risk["kind"] == "destructive"
    assert risk["reason"]


def test_plan__etag_is_the_contents_name(viewer: APIClient, make_tenant: MakeTenant) -> None:
    make_tenant("acme")
    make_tenant("globex", Isolation.DATABASE)
    tags = {name: viewer.get(f"/tenants/{name}/plan")["ETag"] for name in ("acme", "globex")}
    assert tags["acme"] == tags["globex"] == viewer.get("/tenants/acme/plan")["ETag"]
    assert viewer.get("/tenants/acme/plan", {"app_label": "users"})["ETag"] != tags["acme"]
    carry_out(request_run(Tenant.objects.get(pk="acme"), Request()).pk)
    assert viewer.get("/tenants/acme/plan")["ETag"] != tags["acme"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"app_label": "crm"}, "unknown_app"),
        ({"app_label": "plans"}, "unknown_app"),
        ({"app_label": "users", "migration_name": "0099"}, "unknown_migration"),
        ({"app_label": "orders", "migration_name": "000"}, "ambiguous_migration"),
        ({"migration_name": "0001"}, "unknown_migration"),
    ],
)
def test_plan__target_that_there_is_not(
    viewer: APIClient, make_tenant: MakeTenant, query: dict[str, str], code: str
) -> None:
    make_tenant("acme")
    refused(viewer.get("/tenants/acme/plan", query), 422, code)


@pytest.mark.parametrize(
    ("package", "code"), [("orders_conflict", "conflicting_migrations"), ("orders_missing_dependency", None)]
)
def test_plan__of_migrations_that_make_none(
    viewer: APIClient, make_tenant: MakeTenant, broken: Callable[..., None], package: str, code: str | None
) -> None:
    make_tenant("acme")
    broken(orders=package)
    refused(viewer.get("/tenants/acme/plan"), 409, code or "unloadable_migrations")
