from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import cache
from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView

from migrations_api.models import Role
from migrations_api.rest.throttles import ReadThrottle, ThrottleFirst, WriteThrottle

ClientOf = Callable[[str | None], APIClient]


class CountedView(ThrottleFirst, APIView):
    throttle_classes = (ReadThrottle, WriteThrottle)
    required_roles = {"GET": Role.VIEWER, "POST": Role.OPERATOR}

    def get(self, request: Request) -> Response:
        return Response()

    def post(self, request: Request) -> Response:
        return Response()


urlpatterns = [path("counted", CountedView.as_view())]
pytestmark = pytest.mark.urls(__name__)


@pytest.fixture
def rates(settings: Any) -> Iterator[Callable[..., None]]:
    """Set rates by scope; those not named are without limit."""

    def choose(**chosen: str) -> None:
        every = {"read": None, "write": None, "failed_authentication": None, **chosen}
        settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "DEFAULT_THROTTLE_RATES": every}

    cache.clear()
    yield choose
    cache.clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The throttles' time, in seconds, as its only item."""
    now = [1000.0]
    monkeypatch.setattr(SimpleRateThrottle, "timer", staticmethod(lambda: now[0]))
    return now


def statuses(client: APIClient, *methods: str, **headers: Any) -> list[int]:
    return [client.generic(method, "/counted", **headers).status_code for method in methods]


def test_throttle__reads_and_writes_apart(client_of: ClientOf, rates: Any) -> None:
    rates(read="2/minute", write="1/minute")

    assert statuses(client_of("operator"), "GET", "GET", "GET", "POST", "POST") == [200, 200, 429, 200, 429]


def test_throttle__says_when_to_come_back(client_of: ClientOf, rates: Any, clock: list[float]) -> None:
    rates(read="1/minute")
    client = client_of("viewer")
    client.get("/counted")
    clock[0] += 20

    refused = client.get("/counted")
    clock[0] += int(refused["Retry-After"])

    assert refused.status_code == 429
    assert 40 <= int(refused["Retry-After"]) <= 41
    assert client.get("/counted").status_code == 200


def test_throttle__counts_a_user_over_all_tokens(client_of: ClientOf, rates: Any) -> None:
    rates(read="1/minute")

    assert statuses(client_of("viewer"), "GET") == [200]
    assert statuses(client_of("viewer"), "GET") == [429]
    assert statuses(client_of("operator"), "GET") == [200]


def test_throttle__counts_nobody_by_address(client_of: ClientOf, rates: Any) -> None:
    rates(read="1/minute")

    assert statuses(client_of(None), "GET", "GET", REMOTE_ADDR="10.0.0.1") == [401, 429]
    assert statuses(client_of(None), "GET", REMOTE_ADDR="10.0.0.2") == [401]


def test_throttle__header_of_a_client_does_not_make_it_another(client_of: ClientOf, rates: Any) -> None:
    rates(read="1/minute")

    assert statuses(client_of(None), "GET", HTTP_X_FORWARDED_FOR="1.1.1.1") == [401]
    assert statuses(client_of(None), "GET", HTTP_X_FORWARDED_FOR="1.1.1.2") == [429]


def test_throttle__refused_requests_count(client_of: ClientOf, rates: Any) -> None:
    rates(write="2/minute")

    assert statuses(client_of("viewer"), "POST", "POST", "POST") == [403, 403, 429]


def test_throttle__no_rate_is_no_limit(client_of: ClientOf, rates: Any) -> None:
    rates()

    assert statuses(client_of("viewer"), *["GET"] * 5) == [200] * 5


def test_failed_authentication__by_address(client_of: ClientOf, rates: Any, clock: list[float]) -> None:
    rates(failed_authentication="2/minute")
    wrong = {"HTTP_AUTHORIZATION": "Bearer aaaaaaaa." + "a" * 32}

    assert statuses(APIClient(), "GET", "GET", "GET", REMOTE_ADDR="10.0.0.1", **wrong) == [401, 401, 429]
    assert statuses(APIClient(), "GET", REMOTE_ADDR="10.0.0.2", **wrong) == [401]
    assert 60 <= int(APIClient().get("/counted", REMOTE_ADDR="10.0.0.1", **wrong)["Retry-After"]) <= 61


def test_failed_authentication__does_not_shut_out_a_right_token(client_of: ClientOf, rates: Any) -> None:
    rates(failed_authentication="1/minute")
    statuses(APIClient(), "GET", "GET", HTTP_AUTHORIZATION="Bearer nonsense")

    assert statuses(client_of("viewer"), "GET") == [200]
