import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.test import APIClient

from migrations_api.models import ApiToken, AuditEntry, MigrationRun, Role
from tests.http_api import refused, registered

ClientOf = Callable[[str | None], APIClient]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"]
ANYBODY = "anybody"
# The least role that each method of each route takes; what is not here is not offered.
EXPECTED = {
    "tenants": {"GET": "viewer", "POST": "admin"},
    "tenants/plan": {"GET": "viewer"},
    "tenants/migrate-all": {"POST": "operator"},
    "tenants/<str:tenant_id>": {"GET": "viewer", "PATCH": "operator", "DELETE": "admin"},
    "tenants/<str:tenant_id>/migrations": {"GET": "viewer"},
    "tenants/<str:tenant_id>/plan": {"GET": "viewer"},
    "tenants/<str:tenant_id>/migrate": {"POST": "operator"},
    "tenants/reset-all": {"POST": "admin"},
    "tenants/refresh-all": {"POST": "admin"},
    "tenants/<str:tenant_id>/rollback": {"GET": "viewer", "POST": "admin"},
    "tenants/<str:tenant_id>/reset": {"GET": "viewer", "POST": "admin"},
    "tenants/<str:tenant_id>/refresh": {"GET": "viewer", "POST": "admin"},
    "tenants/<str:tenant_id>/hold": {"POST": "operator"},
    "tenants/<str:tenant_id>/release": {"POST": "operator"},
    "runs": {"GET": "viewer"},
    "runs/<int:run_id>": {"GET": "viewer"},
    "runs/<int:run_id>/events": {"GET": "viewer"},
    "rollouts/<int:rollout_id>/events": {"GET": "viewer"},
    "runs/<int:run_id>/cancel": {"POST": "operator"},
    "runs/<int:run_id>/retry": {"POST": "operator"},
    "runs/<int:run_id>/skip": {"POST": "operator"},
    "runs/<int:run_id>/repair": {"GET": "viewer", "POST": "admin"},
    "rollouts": {"GET": "viewer"},
    "rollouts/<int:rollout_id>/pause": {"POST": "operator"},
    "rollouts/<int:rollout_id>/resume": {"POST": "operator"},
    "rollouts/<int:rollout_id>/promote": {"POST": "operator"},
    "rollouts/<int:rollout_id>/retry": {"POST": "operator"},
    "rollouts/<int:rollout_id>/rollback": {"POST": "admin"},
    "rollouts/<int:rollout_id>": {"GET": "viewer"},
    "rollouts/<int:rollout_id>/runs": {"GET": "viewer"},
    "rollouts/<int:rollout_id>/failures": {"GET": "viewer"},
    "rollouts/<int:rollout_id>/cancel": {"POST": "operator"},
    "fleet": {"GET": "viewer"},
    "metrics": {"GET": "viewer"},
    "schema": {"GET": "viewer"},
    "docs": {"GET": "viewer"},
    "healthz": {"GET": ANYBODY},
    "readyz": {"GET": ANYBODY},
}


def routes(patterns: Any = None, prefix: str = "") -> Iterator[str]:
    """Every route of the URLconf but for the admin's, which has users and rights of its own."""
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        route = f"{prefix}{pattern.pattern}"
        if isinstance(pattern, URLResolver):
            if route != "admin/":
                yield from routes(pattern.url_patterns, route)
        elif isinstance(pattern, URLPattern):
            yield route


def address(route: str) -> str:
    return "/" + re.sub(r"<int:\w+>", "1", re.sub(r"<str:\w+>", "acme", route))


def expected_status(route: str, method: str, role: str | None) -> set[int]:
    """The statuses that refuse, or none for what is allowed."""
    offered = EXPECTED[route]
    needed = offered.get("GET" if method == "HEAD" else method)
    if ANYBODY in offered.values():
        return set() if needed else {405}
    if role is None:
        return {401}
    if role == "nobody":
        return {403}
    if method == "OPTIONS":
        return {403}
    if needed is None:
        return {405}
    return set() if Role(role).rank >= Role(needed).rank else {403}


@pytest.fixture
def clients(client_of: ClientOf) -> dict[str | None, APIClient]:
    """By role; `nobody` is a user who has none, `None` has no credentials."""
    clients = {role: client_of(role) for role in (None, *Role.values)}
    user = get_user_model().objects.create_user("nobody")
    user.groups.add(Group.objects.create(name="accounting"))
    _, key = ApiToken.objects.create_key(user=user, name="nobody", scope="admin")
    clients["nobody"] = APIClient(HTTP_AUTHORIZATION=f"Bearer {key}")
    return clients


def test_routes__each_has_its_entry() -> None:
    assert sorted(routes()) == sorted(EXPECTED)


@pytest.mark.parametrize("route", EXPECTED)
def test_route__who_may_do_what(clients: dict[str | None, APIClient], route: str) -> None:
    """There are no tenants and no runs, so that what is allowed mostly ends in a 404."""
    wrong = {}
    for role, client in clients.items():
        for method in METHODS:
            status = client.generic(method, address(route), "{}", "application/json").status_code
            refusals = expected_status(route, method, role)
            allowed = status not in {401, 403, 405} and (status < 500 or route == "readyz")
            if not (status in refusals if refusals else allowed):
                wrong[role, method] = status
    assert wrong == {}


@pytest.mark.parametrize("route", [route for route, methods in EXPECTED.items() if ANYBODY not in methods.values()])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_route__refusal_is_a_problem_and_says_nothing_of_what_there_is(
    clients: dict[str | None, APIClient], route: str, method: str
) -> None:
    registered("acme")
    nobody = clients[None].generic(method, address(route))
    refused(nobody, 401, "not_authenticated")
    assert nobody["WWW-Authenticate"] == "Bearer"
    refused(clients["nobody"].generic(method, address(route)), 403, "permission_denied")


CHANGES = [
    (method, route, role)
    for route, methods in EXPECTED.items()
    for method, role in methods.items()
    if method not in {"GET", "HEAD"}
]


@pytest.mark.parametrize(("method", "route", "needed"), CHANGES)
def test_change__leaves_an_audit_entry_accepted_or_not(
    clients: dict[str | None, APIClient], method: str, route: str, needed: str
) -> None:
    for role, client in clients.items():
        response = client.generic(method, address(route), "{}", "application/json")
        entry = AuditEntry.objects.first()
        assert entry is not None
        assert (entry.actor, entry.status) == (role or "", response.status_code)
        assert entry.action not in {"", "TenantsView", "TenantView"}
        if "<str:tenant_id>" in route:
            assert entry.tenant_ids == ["acme"]
    assert AuditEntry.objects.count() == len(clients)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("group", "scope"), [(a, b) for a in Role.values for b in Role.values])
def test_token__gives_the_lower_of_its_scope_and_its_users_role(
    token_of: Callable[..., Any], change: tuple[str, str, str], group: str, scope: str
) -> None:
    method, route, needed = change
    _, key = token_of(group, scope=scope)
    client = APIClient(HTTP_AUTHORIZATION=f"Bearer {key}")
    status = client.generic(method, address(route), "{}", "application/json").status_code
    allowed = min(Role(group).rank, Role(scope).rank) >= Role(needed).rank
    assert (status == 403) is not allowed


# Sessions


@pytest.fixture
def browser(token_of: Callable[..., Any]) -> APIClient:
    """An operator who has logged in, and whose browser checks for CSRF."""
    user = token_of("operator")[0].user
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(user)
    return client


def test_session__reads(browser: APIClient) -> None:
    assert browser.get("/tenants").status_code == 200


def test_session__changes_with_a_csrf_token_only(browser: APIClient) -> None:
    registered("acme")
    body = refused(browser.post("/tenants/acme/migrate"), 403, "permission_denied")
    assert "CSRF" in body["detail"]
    assert not MigrationRun.objects.exists()

    token = "a" * 32
    browser.cookies["csrftoken"] = token
    refused(browser.post("/tenants/acme/migrate", headers={"X-CSRFToken": "b" * 32}), 403, "permission_denied")
    assert browser.post("/tenants/acme/migrate", headers={"X-CSRFToken": token}).status_code == 202
    assert AuditEntry.objects.get(status=202).token_prefix == ""


def test_session__has_the_role_of_its_user(browser: APIClient) -> None:
    browser.cookies["csrftoken"] = "a" * 32
    response = browser.delete("/tenants/acme", headers={"X-CSRFToken": "a" * 32})
    body = refused(response, 403, "permission_denied")
    assert body["detail"] == "This needs the role admin; you have operator."


def test_session__beside_a_wrong_token_counts_for_nothing(browser: APIClient) -> None:
    refused(browser.get("/tenants", headers={"Authorization": "Bearer x"}), 401, "authentication_failed")


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_session__form_is_not_searched_for_a_csrf_token(browser: APIClient, content_type: str) -> None:
    """A form that cannot be parsed, or that is too large, is none of our formats before it is anything else."""
    browser.cookies["csrftoken"] = "a" * 32
    many = "&".join(f"a{number}=1" for number in range(1001))
    refused(browser.generic("POST", "/tenants/acme/migrate", many, content_type), 415, "unsupported_media_type")
