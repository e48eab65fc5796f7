from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from migrations_api.models import Role
from migrations_api.rest.permissions import require_role, role_of

ClientOf = Callable[[str | None], APIClient]
MakeToken = Callable[..., Any]


class GuardedView(APIView):
    """One method for each role, and one that nobody was granted. The service's defaults guard it."""

    required_roles = {"GET": Role.VIEWER, "POST": Role.OPERATOR, "DELETE": Role.ADMIN}

    def get(self, request: Request) -> Response:
        return Response({"role": role_of(request)})

    def post(self, request: Request) -> Response:
        if "zero" in request.data:
            require_role(request, Role.ADMIN, "zero needs the admin role.")
        return Response()

    def delete(self, request: Request) -> Response:
        return Response()

    def put(self, request: Request) -> Response:
        return Response()


class BareView(APIView):
    """A view whose author forgot about rights."""

    def get(self, request: Request) -> Response:
        return Response()


urlpatterns = [path("guarded", GuardedView.as_view()), path("bare", BareView.as_view())]
pytestmark = pytest.mark.urls(__name__)

ALLOWED = {
    None: {},
    "viewer": {"GET": 200, "HEAD": 200},
    "operator": {"GET": 200, "HEAD": 200, "POST": 200},
    "admin": {"GET": 200, "HEAD": 200, "POST": 200, "DELETE": 200},
}


@pytest.mark.parametrize("role", ALLOWED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS"])
def test_permission__by_role_and_method(client_of: ClientOf, role: str | None, method: str) -> None:
    response = client_of(role).generic(method, "/guarded")

    assert response.status_code == ALLOWED[role].get(method, 401 if role is None else 403)


def test_permission__view_without_roles_is_closed(client_of: ClientOf) -> None:
    assert client_of("admin").get("/bare").status_code == 403


def test_permission__method_the_view_does_not_have(client_of: ClientOf) -> None:
    assert client_of(None).patch("/guarded").status_code == 401
    assert client_of("viewer").patch("/guarded").status_code == 405
    assert client_of("viewer").generic("DISPATCH", "/guarded").status_code == 405


def test_permission__refusal_names_both_roles(client_of: ClientOf) -> None:
    response = client_of("viewer").post("/guarded")

    assert response.json()["detail"] == "This needs the role operator; you have viewer."


def test_permission__user_without_a_group(token_of: MakeToken) -> None:
    token, key = token_of("viewer")
    token.user.groups.set([Group.objects.create(name="accounting")])

    response = APIClient().get("/guarded", HTTP_AUTHORIZATION=f"Bearer {key}")

    assert response.status_code == 403
    assert response.json()["detail"] == "You have none of the roles viewer, operator and admin."


@pytest.mark.parametrize(
    ("groups", "scope", "role"),
    [
        (["viewer"], "admin", "viewer"),
        (["admin"], "viewer", "viewer"),
        (["viewer", "admin", "operator"], "admin", "admin"),
        (["viewer", "operator"], "admin", "operator"),
        ([], "admin", None),
    ],
)
def test_role__is_the_lower_of_user_and_token(
    token_of: MakeToken, groups: list[str], scope: str, role: str | None
) -> None:
    token, key = token_of("viewer", scope=scope)
    token.user.groups.set(Group.objects.filter(name__in=groups))

    response = APIClient().get("/guarded", HTTP_AUTHORIZATION=f"Bearer {key}")

    assert response.json().get("role") == role


def test_role__of_a_superuser(token_of: MakeToken, roles: None) -> None:
    root = get_user_model().objects.create_superuser("root")
    client = APIClient()
    client.force_login(root)
    _, key = token_of("viewer", user=root, scope="operator")

    assert client.get("/guarded").json() == {"role": "admin"}
    assert APIClient().get("/guarded", HTTP_AUTHORIZATION=f"Bearer {key}").json() == {"role": "operator"}


def test_role__of_a_session_is_not_capped(token_of: MakeToken) -> None:
    token, _ = token_of("admin", scope="viewer")
    client = APIClient()
    client.force_login(token.user)

    assert client.get("/guarded").json() == {"role": "admin"}


def test_role__is_lost_with_the_group(token_of: MakeToken) -> None:
    token, key = token_of("viewer")
    token.user.groups.clear()

    assert APIClient().get("/guarded", HTTP_AUTHORIZATION=f"Bearer {key}").status_code == 403


def test_role__is_asked_for_once(token_of: MakeToken, django_assert_num_queries: Any) -> None:
    """The token, its last use, the groups; the view asks for the role again."""
    _, key = token_of("viewer")

    with django_assert_num_queries(3):
        APIClient().get("/guarded", HTTP_AUTHORIZATION=f"Bearer {key}")


def test_require_role__gives_the_reason(client_of: ClientOf) -> None:
    refused = client_of("operator").post("/guarded", {"zero": True})

    assert refused.status_code == 403
    assert refused.json()["detail"] == "zero needs the admin role."
    assert client_of("admin").post("/guarded", {"zero": True}).status_code == 200
