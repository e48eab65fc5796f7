import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import extend_schema
from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from migrations_api.models import ApiToken
from migrations_api.rest.authentication import ApiTokenAuthentication

MakeToken = Callable[..., tuple[ApiToken, str]]


class WhoView(APIView):
    """Tells who asks."""

    authentication_classes = (ApiTokenAuthentication, SessionAuthentication)
    permission_classes = (IsAuthenticated,)
    schema = AutoSchema()

    @extend_schema(responses=None)
    def get(self, request: Request) -> Response:
        return Response({"user": request.user.get_username(), "prefix": getattr(request.auth, "prefix", None)})

    @extend_schema(request=None, responses=None)
    def post(self, request: Request) -> Response:
        return self.get(request)


urlpatterns = [path("who", WhoView.as_view())]
pytestmark = pytest.mark.urls(__name__)
REFUSAL = "This is not a valid API token."


def ask(header: str | None, client: APIClient | None = None) -> Any:
    client = client or APIClient()
    return client.get("/who", **({} if header is None else {"HTTP_AUTHORIZATION": header}))


def assert_refused(response: Any) -> None:
    assert response.status_code == 401
    assert response["WWW-Authenticate"] == "Bearer"
    assert response.json()["detail"] == REFUSAL


def test_token__is_its_user(token_of: MakeToken) -> None:
    token, key = token_of("viewer")

    assert ask(f"Bearer {key}").json() == {"user": "viewer", "prefix": token.prefix}


def test_token__scheme_in_any_case(token_of: MakeToken) -> None:
    _, key = token_of("viewer")

    assert ask(f"bearer  {key}").status_code == 200


def test_token__none_given(db: None) -> None:
    response = ask(None)

    assert response.status_code == 401
    assert response["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "change",
    [
        {"revoked": True},
        {"expiry_date": timezone.now() - timedelta(seconds=1)},
    ],
    ids=["revoked", "expired"],
)
def test_token__no_longer_valid(token_of: MakeToken, change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    token, key = token_of("viewer", **change)

    with caplog.at_level(logging.WARNING, logger="migrations_api.rest.authentication"):
        assert_refused(ask(f"Bearer {key}"))

    assert token.prefix in caplog.text
    assert key.partition(".")[2] not in caplog.text


def test_token__of_an_inactive_user(token_of: MakeToken) -> None:
    token, key = token_of("viewer")
    get_user_model().objects.filter(pk=token.user.pk).update(is_active=False)

    assert_refused(ask(f"Bearer {key}"))


def test_token__of_a_deleted_user(token_of: MakeToken) -> None:
    token, key = token_of("viewer")
    token.user.delete()

    assert_refused(ask(f"Bearer {key}"))


def test_token__another_tokens_secret(token_of: MakeToken) -> None:
    token, _ = token_of("viewer")
    _, other = token_of("viewer")

    assert_refused(ask(f"Bearer {token.prefix}.{other.partition('.')[2]}"))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer {key} {key}",
        "Bearer {key}, Bearer {key}",
        "Bearer {key} ",
        "Bearer\t{key}",
        "Bearer {key}\n",
        "Bearer {key}\x00",
        "Bearer {upper}",
        "Basic dmlld2VyOnZpZXdlcg==",
        "Token {key}",
        "{key}",
        "Bearer {prefix}",
        "Bearer {prefix}.",
        "Bearer {prefix}.\x00",
        "Bearer \x00\x00\x00\x00\x00\x00\x00\x00." + "a" * 32,
        "Bearer aaaaaaa\xe9." + "a" * 32,
        "Bearer aaaaaaa\ud800." + "a" * 32,
        "Bearer aaaaaaaa." + "\u212a" * 32,
        "Bearer aaaaaaaa." + "a" * 32,
        "Bearer aaaaaaaa." + "a" * 10_000,
        "B" * 10_000,
    ],
)
def test_header__not_one_valid_token(token_of: MakeToken, header: str) -> None:
    token, key = token_of("viewer")
    given = header.format(key=key, upper=key.upper(), prefix=token.prefix)

    assert_refused(ask(given))


def test_header__malformed_costs_no_query(db: None, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert_refused(ask("Bearer " + "a" * 10_000))


def test_header__wrong_is_not_overruled_by_a_session(token_of: MakeToken) -> None:
    token, _ = token_of("viewer")
    client = APIClient()
    client.force_login(token.user)

    assert_refused(ask("Bearer nonsense", client))


def test_last_used__is_written_once_a_minute(token_of: MakeToken) -> None:
    token, key = token_of("viewer")
    assert token.last_used_at is None

    ask(f"Bearer {key}")
    token.refresh_from_db()
    first = token.last_used_at
    with CaptureQueriesContext(connection) as queries:
        ask(f"Bearer {key}")
    token.refresh_from_db()

    assert first is not None
    assert token.last_used_at == first
    assert not [query for query in queries if query["sql"].startswith("UPDATE")]


def test_last_used__moves_on_after_a_minute(token_of: MakeToken) -> None:
    token, key = token_of("viewer")
    before = timezone.now() - timedelta(seconds=61)
    ApiToken.objects.filter(pk=token.pk).update(last_used_at=before)

    ask(f"Bearer {key}")

    token.refresh_from_db()
    assert token.last_used_at is not None
    assert token.last_used_at > before + timedelta(seconds=60)


def test_last_used__is_not_moved_by_a_refused_token(token_of: MakeToken) -> None:
    token, key = token_of("viewer", revoked=True)

    ask(f"Bearer {key}")

    token.refresh_from_db()
    assert token.last_used_at is None


def test_last_used__leaves_a_revocation_alone(token_of: MakeToken) -> None:
    """What is written is that one column, so a request in flight cannot take a revocation back."""
    _, key = token_of("viewer")

    with CaptureQueriesContext(connection) as queries:
        ask(f"Bearer {key}")

    (update,) = [query["sql"] for query in queries if query["sql"].startswith("UPDATE")]
    assert "last_used_at" in update
    assert '"revoked"' not in update.partition("WHERE")[0]


def test_last_used__is_written_by_one_of_many(token_of: MakeToken) -> None:
    """Requests at once have all read the old time: the statement itself decides."""
    _, key = token_of("viewer")

    with CaptureQueriesContext(connection) as queries:
        ask(f"Bearer {key}")

    (update,) = [query["sql"] for query in queries if query["sql"].startswith("UPDATE")]
    with connection.cursor() as cursor:
        cursor.execute(update)
        assert cursor.rowcount == 0


def test_token__two_queries(token_of: MakeToken, django_assert_num_queries: Any) -> None:
    _, key = token_of("viewer")

    with django_assert_num_queries(2):
        ask(f"Bearer {key}")
    with django_assert_num_queries(1):
        ask(f"Bearer {key}")


def test_token__key_is_stored_nowhere(token_of: MakeToken) -> None:
    token, key = token_of("viewer")

    (row,) = ApiToken.objects.filter(pk=token.pk).values()

    assert token.pk == token.prefix
    assert key.partition(".")[2] not in str(row)
    assert row["hashed_key"].startswith("sha512$$")


def test_session__reads(token_of: MakeToken) -> None:
    token, _ = token_of("viewer")
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(token.user)

    assert client.get("/who").json() == {"user": "viewer", "prefix": None}


def test_session__write_needs_the_csrf_token(token_of: MakeToken) -> None:
    token, key = token_of("viewer")
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(token.user)

    assert client.post("/who").status_code == 403
    assert client.post("/who", HTTP_AUTHORIZATION=f"Bearer {key}").status_code == 200


def test_session__of_an_inactive_user(token_of: MakeToken) -> None:
    token, _ = token_of("viewer")
    client = APIClient()
    client.force_login(token.user)
    get_user_model().objects.filter(pk=token.user.pk).update(is_active=False)

    assert client.get("/who").status_code == 401


def test_schema__names_the_bearer_scheme() -> None:
    schema = SchemaGenerator(patterns=[path("who", WhoView.as_view())]).get_schema(request=None, public=True)

    schemes = schema["components"]["securitySchemes"]
    assert schemes["bearerAuth"] == {"type": "http", "scheme": "bearer", "bearerFormat": "<prefix>.<secret>"}
    assert schema["paths"]["/who"]["get"]["security"] == [{"bearerAuth": []}, {"cookieAuth": []}]
