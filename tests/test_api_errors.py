import base64
import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client
from rest_framework.test import APIClient

from migrations_api.models import AuditEntry, MigrationRun
from migrations_api.rest.events import TooManyStreams
from migrations_api.rest.problems import STATUS_BY_CODE
from migrations_api.views.tenants import TenantsView
from tenants.exceptions import NoConnectionToSpare, ServiceError
from tenants.models import Tenant
from tests.http_api import refused, registered
from tests.processes import GIVE_UP

ClientOf = Callable[[str | None], APIClient]
MIGRATE = "/tenants/acme/migrate"


@pytest.fixture
def acme(db: None) -> Iterator[None]:
    """The tenant, which a request that is refused leaves without a run."""
    registered("acme", name="Acme")
    yield
    assert not MigrationRun.objects.exists()
    assert Tenant.objects.get().name == "Acme"


def post(client: APIClient, body: bytes | str, content_type: str = "application/json", path: str = MIGRATE) -> Any:
    return client.generic("POST", path, body, content_type)


# Codes


def subclasses(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from subclasses(each)


def test_codes__each_error_has_its_status_and_each_status_its_error() -> None:
    kinds = [kind for kind in subclasses(ServiceError) if not kind.__module__.startswith("tests.")]
    assert {kind.code for kind in kinds} == STATUS_BY_CODE.keys()
    assert set(STATUS_BY_CODE.values()) <= {404, 409, 412, 422, 500, 502, 503}


def test_codes__are_of_one_error_each() -> None:
    """But for those that only the service tells apart."""
    kinds = [kind for kind in subclasses(ServiceError) if not kind.__module__.startswith("tests.")]
    codes = [kind.code for kind in kinds if "code" in vars(kind)]
    assert [kind for kind in kinds if "code" not in vars(kind)] == [NoConnectionToSpare]
    assert sorted(codes) == sorted(set(codes))


def test_codes__unavailable_says_when_to_come_again(admin: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise TooManyStreams

    monkeypatch.setattr(TenantsView, "get", full)
    response = admin.get("/tenants")
    refused(response, 503, "too_many_streams")
    assert int(response["Retry-After"]) > 0


# Routes and methods


@pytest.mark.parametrize("role", [None, "admin"])
@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/tenants/", "/tenants/acme/", "/tenant", "/runs/1/steps", "//tenants"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_route__that_there_is_not(client_of: ClientOf, role: str | None, path: str, method: str) -> None:
    refused(client_of(role).generic(method, path), 404, "not_found")


def test_method__that_is_not_offered(admin: APIClient) -> None:
    response = admin.put("/tenants/acme", {"name": "x"})
    body = refused(response, 405, "method_not_allowed")
    assert response["Allow"] == "GET, PATCH, DELETE, HEAD, OPTIONS"
    assert body["detail"].startswith("PUT is not allowed here; allowed: GET, PATCH, DELETE")
    refused(admin.generic("BREW", "/tenants"), 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_method__of_the_machines_routes(path: str, db: None) -> None:
    response = APIClient().post(path)
    refused(response, 405, "method_not_allowed")
    assert response["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/tenants", "/tenants/acme", "/runs", "/rollouts", "/fleet"])
def test_head__is_as_get_without_a_body(admin: APIClient, path: str) -> None:
    registered("acme")
    response = admin.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert admin.head("/tenants?search=ac&page_size=1").status_code == 200
    assert admin.head("/tenants?serach=ac").status_code == 400


# Bodies


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "",
        "a/b/c",
    ],
)
def test_body__that_is_not_declared_as_json(admin: APIClient, acme: None, content_type: str) -> None:
    refused(post(admin, "{}", content_type), 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"])
def test_body__that_is(admin: APIClient, db: None, content_type: str) -> None:
    registered("acme")
    assert post(admin, "{}", content_type).status_code == 202


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_body__none_is_as_an_empty_object(admin: APIClient, db: None, content_type: str) -> None:
    registered("acme")
    assert post(admin, b"", content_type).status_code == 202
    body = refused(post(admin, b"", content_type, "/tenants"), 400, "invalid", "errors")
    assert {error["pointer"] for error in body["errors"]} == {"/tenant_id", "/isolation"}


DEEP = 100_000
NO_JSON = {
    "nothing but space": b" ",
    "half an object": b'{"fake": ',
    "two objects": b"{}{}",
    "single quotes": b"{'fake': true}",
    "a comment": b"{} // no",
    "NaN": b'{"fake": NaN}',
    "Infinity": b'{"fake": -Infinity}',
    "a name twice": b'{"fake": true, "fake": false}',
    "invalid UTF-8": b'{"app_label": "\xff"}',
    "UTF-16": '{"fake": true}'.encode("utf-16"),
    "a UTF-8 mark": b"\xef\xbb\xbf{}",
    "a raw control character": b'{"app_label": "a\x00b"}',
    "a number of 5,000 digits": b'{"fake": ' + b"9" * 5000 + b"}",
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep and unfinished": b"[" * DEEP,
    "as deep as the parser can": b'{"app_label": ' + b"[" * 900 + b"]" * 900 + b"}",
    "deeper than any request": b'{"labels": ' + b'{"a":' * 40 + b"1" + b"}" * 40 + b"}",
}


@pytest.mark.parametrize("name", NO_JSON)
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}])
def test_body__that_is_no_json_of_ours(admin: APIClient, acme: None, name: str, headers: dict[str, str]) -> None:
    response = admin.generic("POST", MIGRATE, NO_JSON[name], "application/json", headers=headers)
    refused(response, 400, "parse_error")
    assert "sys." not in response.json()["detail"]


@pytest.mark.parametrize("body", ["[]", "null", "true", '"fake"', "7", "1e999", "[{}]"])
@pytest.mark.parametrize("path", [MIGRATE, "/tenants/migrate-all", "/tenants"])
def test_body__that_is_no_object(admin: APIClient, acme: None, path: str, body: str) -> None:
    found = refused(post(admin, body, path=path), 400, "invalid", "errors")
    assert [error["pointer"] for error in found["errors"]] == [""]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (r'{"app_label": "a\u0000b"}', "/app_label"),
        (r'{"app_label": "\ud800"}', "/app_label"),
        (r'{"on_error": "\udfff"}', "/on_error"),
        (r'{"isolation": ["x", "\ud83d"]}', "/isolation/1"),
        (r'{"a/b": {"c~d": "\u0000"}}', "/a~1b/c~0d"),
        (r'{"\ud800": 1}', ""),
        (r'{"labels": {"\u0000": "x"}}', "/labels"),
        (r'["\ud800"]', "/0"),
        (r'"\ud800"', ""),
    ],
)
@pytest.mark.parametrize("path", [MIGRATE, "/tenants/migrate-all", "/tenants"])
def test_body__text_that_no_database_takes(admin: APIClient, acme: None, path: str, body: str, pointer: str) -> None:
    found = refused(post(admin, body, path=path), 400, "invalid", "errors")
    assert [error["pointer"] for error in found["errors"]] == [pointer]


def test_body__a_pair_of_surrogates_is_one_character(admin: APIClient, db: None) -> None:
    body = r'{"tenant_id": "acme", "isolation": "schema", "provision": false, "name": "\ud83d\ude80"}'
    assert post(admin, body, path="/tenants").json()["name"] == "🚀"


@pytest.mark.parametrize("number", ["9" * 400, "-1", "1e400", "0.1"])
def test_body__number_where_none_belongs(admin: APIClient, acme: None, number: str) -> None:
    for name in ("app_label", "fake", "confirm"):
        found = refused(post(admin, f'{{"{name}": {number}}}'), 400, "invalid", "errors")
        assert [error["pointer"] for error in found["errors"]] == [f"/{name}"]


def test_body__too_large(admin: APIClient, acme: None) -> None:
    refused(post(admin, b'{"app_label": "' + b"x" * 1_000_000 + b'"}'), 413, "too_large")
    # Of the size that is allowed, it is looked at.
    body = b'{"app_label": "' + b"x" * (1_000_000 - 17) + b'"}'
    assert len(body) == 1_000_000
    refused(post(admin, body), 400, "invalid", "errors")


def test_body__unknown_fields_are_all_named(admin: APIClient, acme: None) -> None:
    found = refused(admin.post(MIGRATE, {"fakes": True, "a/b": 1, "fake": True}), 400, "invalid", "errors")
    assert [(error["pointer"], error["code"]) for error in found["errors"]] == [
        ("/a~1b", "unknown_field"),
        ("/fakes", "unknown_field"),
    ]
    assert "allowed: app_label, migration_name, fake," in found["errors"][0]["detail"]


# Queries

LISTS = ["/tenants", "/runs", "/rollouts", "/rollouts/1/runs"]
ROUTES = [*LISTS, "/fleet", "/tenants/plan", "/tenants/acme", "/tenants/acme/plan", "/tenants/acme/migrations"]


@pytest.mark.parametrize("path", [*ROUTES, "/runs/1", "/runs/1/events", "/rollouts/1", "/rollouts/1/failures"])
def test_query__parameter_that_is_not_known(admin: APIClient, acme: None, path: str) -> None:
    body = refused(admin.get(path, {"tennant": "x"}), 400, "invalid_query")
    assert body["detail"].startswith("Unknown query parameter 'tennant'; allowed: ")
    refused(admin.get(path, {"": "x"}), 400, "invalid_query")
    refused(admin.get(f"{path}?%00=1"), 400, "invalid_query")
    refused(admin.get(f"{path}?%ED%A0%80=%FF"), 400, "invalid_query")


@pytest.mark.parametrize("path", [MIGRATE, "/tenants/migrate-all", "/tenants", "/runs/1/cancel", "/rollouts/1/cancel"])
def test_query__of_a_post(admin: APIClient, acme: None, path: str) -> None:
    refused(admin.post(f"{path}?fake=true", {}), 400, "invalid_query")


def test_query__given_twice(admin: APIClient, acme: None) -> None:
    for query in ("search=a&search=b", "search=a&search=a", "page_size=1&page_size=2", "cursor=&cursor="):
        body = refused(admin.get(f"/tenants?{query}"), 400, "invalid_query")
        assert "more than once" in body["detail"]
    refused(admin.get("/tenants/acme/plan?app_label=users&app_label=orders"), 400, "invalid_query")


def test_query__too_many_parameters(admin: APIClient, acme: None) -> None:
    query = "&".join(f"a{number}=1" for number in range(1001))
    refused(admin.get(f"/tenants?{query}"), 400, "bad_request")


@pytest.mark.parametrize("name", ["search", "label", "cursor", "isolation", "status", "ordering", "page_size"])
@pytest.mark.parametrize("value", ["%00", "%ED%A0%80", "%FF", "a%00b", "9" * 3000])
def test_query__value_that_no_database_takes(admin: APIClient, acme: None, name: str, value: str) -> None:
    """What is not UTF-8 is read with replacement characters, for which one may search."""
    status = admin.get(f"/tenants?{name}={value}").status_code
    assert status == 400 or (name == "search" and "%00" not in value and len(value) < 200 and status == 200)


def cursor(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


CURSORS = {
    "not base64": "ää",
    "not base64 either": "*",
    "a length that base64 has not": "a",
    "the other alphabet": "+/+/",
    "not JSON": base64.urlsafe_b64encode(b"{").decode(),
    "not UTF-8": base64.urlsafe_b64encode(b"\xff\xfe\xfd").decode(),
    "an object": base64.urlsafe_b64encode(b"{}").decode(),
    "an empty list": cursor(),
    "too few": cursor("tenant_id"),
    "too many": cursor("tenant_id", "a", "a", "a"),
    "of another type": cursor("tenant_id", 1, 2),
    "null": cursor("tenant_id", None, None),
    "a NUL": cursor("tenant_id", "a\0", "a\0"),
    "a lone surrogate": cursor("tenant_id", "\ud800", "\ud800"),
    "deep": base64.urlsafe_b64encode(b"[" * 700).decode(),
    "of another ordering": cursor("name", "a", "a"),
    "of another list": cursor("-id", "1", "1"),
    "two numbers": cursor(1, 2, 3),
}


@pytest.mark.parametrize("name", CURSORS)
@pytest.mark.parametrize("path", ["/tenants", "/runs"])
def test_cursor__crafted(admin: APIClient, acme: None, path: str, name: str) -> None:
    if (path, name) == ("/runs", "of another list"):
        return
    refused(admin.get(path, {"cursor": CURSORS[name]}), 400, "invalid_cursor")


@pytest.mark.parametrize(
    "at",
    [
        "yesterday",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00+16:00",
        "2026-01-01T00:00:00+23:59",
        "2026-13-01T00:00:00+00:00",
        "99999-01-01T00:00:00+00:00",
        "0000-01-01T00:00:00+00:00",
        "infinity",
        "",
    ],
)
def test_cursor__crafted_time(admin: APIClient, acme: None, at: str) -> None:
    query = {"ordering": "created_at", "cursor": cursor("created_at", at, "acme")}
    refused(admin.get("/tenants", query), 400, "invalid_cursor")


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00"])
def test_cursor__a_time_that_is_far_away(admin: APIClient, acme: None, at: str) -> None:
    query = {"ordering": "created_at", "cursor": cursor("created_at", at, "acme")}
    assert len(admin.get("/tenants", query).json()["results"]) == (1 if at < "1" else 0)


@pytest.mark.parametrize("number", ["x", "", "1.5", "1e3", "0x1", "None"])
def test_cursor__crafted_number(admin: APIClient, acme: None, number: str) -> None:
    refused(admin.get("/runs", {"cursor": cursor("-id", number, number)}), 400, "invalid_cursor")


@pytest.mark.parametrize("number", ["9" * 300, "-" + "9" * 300, "0", "-1"])
def test_cursor__number_beyond_the_database(admin: APIClient, acme: None, number: str) -> None:
    assert admin.get("/runs", {"cursor": cursor("-id", number, number)}).json() == {"next": None, "results": []}


# Headers, on a real server: a test client would not send them


@pytest.fixture
def raw(plane: None, live_server: Any, token_of: Any) -> Callable[..., http.client.HTTPResponse]:
    _, key = token_of("admin")
    address = urlsplit(live_server.url)

    def ask(method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=GIVE_UP)
        connection.putrequest(method, path, skip_host="Host" in headers)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Authorization": f"Bearer {key}", **named}.items():
            connection.putheader(name, value.encode("latin-1"))
        if body is not None and "Content-Length" not in named:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        response.content = response.read()  # type: ignore[attr-defined]
        connection.close()
        return response

    return ask


def the_problem(response: Any) -> tuple[int, str]:
    body = json.loads(response.content)
    assert response.getheader("Content-Type") == "application/problem+json"
    assert body["status"] == response.status
    return body["status"], body["code"]


def test_header__bytes_that_are_no_text(raw: Any) -> None:
    registered("acme")
    for header in ("Idempotency_Key", "If_Match", "Prefer"):
        for value in ("\xff\xfe", "\x85", "\xc3\xa9"):
            response = raw("POST", MIGRATE, b"", **{header: value})
            assert the_problem(response) == (400, "malformed_header"), (header, value)
    assert the_problem(raw("GET", "/tenants", Authorization="Bearer \xff")) == (401, "authentication_failed")
    assert raw("GET", "/tenants", X_Request_ID="\xff\x01").getheader("X-Request-ID").isalnum()
    assert raw("GET", "/tenants", Accept="\xff").status == 200
    assert not MigrationRun.objects.exists()


def test_header__host_that_is_not_allowed(raw: Any, settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["service.example"]
    for host in ("evil.example", "a b", "\xff", "[::1", "x" * 300, "service.example:http"):
        for path in ("/tenants", "/healthz", "/nothing"):
            response = raw("GET", path, Host=host)
            assert the_problem(response) == (400, "bad_request"), host
            assert response.getheader("X-Request-ID")


@pytest.mark.parametrize(
    "path", ["/tenants/%00", "/tenants/%ff%fe", "/tenants/%ed%a0%80/plan", "/tenants/%F0%9F%98%80"]
)
def test_path__bytes_that_are_no_text(raw: Any, path: str) -> None:
    assert the_problem(raw("GET", path)) == (404, "tenant_not_found")


# Django's own pages


def test_django__csrf_failure_of_the_admin(db: None) -> None:
    client = Client(enforce_csrf_checks=True)
    body = refused(client.post("/admin/login/", {"username": "x"}), 403, "csrf_failed")
    assert "bearer token" in body["detail"]


def test_django__bad_host(settings: Any, db: None) -> None:
    settings.ALLOWED_HOSTS = ["service.example"]
    refused(APIClient().get("/tenants"), 400, "bad_request")


class SecretError(Exception):
    pass


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise SecretError("p@ss:w/rd#")

    monkeypatch.setattr(TenantsView, "get", fail)
    monkeypatch.setattr("migrations_api.orchestrator.requests.request_run", fail)
    monkeypatch.setattr("service.urls.admin.site.login", fail)


def test_failure__tells_nothing_but_where_to_look(
    admin: APIClient, failing: None, caplog: pytest.LogCaptureFixture
) -> None:
    registered("acme")
    for response in (
        admin.get("/tenants", headers={"X-Request-ID": "deploy-7"}),
        admin.post(MIGRATE, headers={"X-Request-ID": "deploy-7"}),
    ):
        refused(response, 500, "server_error")
        assert response["X-Request-ID"] == "deploy-7"
        for secret in ("Traceback", "SecretError", "p@ss", "File "):
            assert secret not in response.content.decode()
    assert "SecretError" in caplog.text
    [entry] = AuditEntry.objects.all()
    assert (entry.action, entry.status, entry.outcome) == ("migrate_tenant", 500, "server_error")
    assert (entry.request_id, entry.tenant_ids, entry.actor) == ("deploy-7", ["acme"], "admin")


def test_failure__outside_of_the_views(monkeypatch: pytest.MonkeyPatch, db: None) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise SecretError("p@ss:w/rd#")

    monkeypatch.setattr("django.contrib.sessions.middleware.SessionMiddleware.process_request", fail)
    client = Client(raise_request_exception=False)
    for path in ("/tenants", "/healthz", "/admin/"):
        response = client.get(path)
        refused(response, 500, "server_error")
        assert response["X-Request-ID"]
        assert "p@ss" not in response.content.decode()


def test_failure__after_the_rows_leaves_none(admin: APIClient, acme: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key, what was accepted and its record are one transaction, and a failure frees both."""

    def fail(*arguments: Any, **named: Any) -> None:
        raise SecretError

    monkeypatch.setattr("migrations_api.views.tenants.accepted_run", fail)
    for headers in ({}, {"Idempotency-Key": "k"}):
        refused(admin.post(MIGRATE, headers=headers), 500, "server_error")
        assert not MigrationRun.objects.exists()
