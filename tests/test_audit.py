import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, transaction
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.urls import path
from rest_framework.exceptions import NotAcceptable
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from migrations_api.models import AuditEntry, Role
from migrations_api.rest import audit

ClientOf = Callable[[str | None], APIClient]


class AuditedView(APIView):
    """Answers with the status and code that the body asks for."""

    required_roles = {"POST": Role.OPERATOR}

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        if not force and request.META.get("HTTP_ACCEPT") == "text/csv":
            raise NotAcceptable
        return super().perform_content_negotiation(request, force)

    def post(self, request: Request, tenant_id: str) -> Response:
        return Response(request.data["answer"], status=request.data["status"])

    def finalize_response(self, request: HttpRequest, response: Response, *args: Any, **kwargs: Any) -> Response:
        audit.record(
            self.request, response, action="migrate_tenant", tenant_ids=[self.kwargs["tenant_id"]], object_id="17"
        )
        return super().finalize_response(request, response, *args, **kwargs)


urlpatterns = [path("audited/<tenant_id>", AuditedView.as_view())]
pytestmark = pytest.mark.urls(__name__)


def post(client: APIClient, *, status: int = 202, answer: Any = None, tenant_id: str = "acme", **headers: Any) -> Any:
    return client.post(f"/audited/{tenant_id}", {"status": status, "answer": answer}, **headers)


def the_entry() -> AuditEntry:
    return AuditEntry.objects.get()


def test_record__accepted(token_of: Any) -> None:
    token, key = token_of("operator")

    post(
        APIClient(),
        HTTP_AUTHORIZATION=f"Bearer {key}",
        HTTP_X_REQUEST_ID="6f1c-22",
        REMOTE_ADDR="10.1.2.3",
    )

    (row,) = AuditEntry.objects.values()
    assert row.pop("at") is not None
    assert row.pop("id") is not None
    assert row == {
        "actor": "operator",
        "token_prefix": token.prefix,
        "remote_address": "10.1.2.3",
        "request_id": "6f1c-22",
        "action": "migrate_tenant",
        "tenant_ids": ["acme"],
        "object_id": "17",
        "status": 202,
        "outcome": "accepted",
    }


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "tenant_not_found"), (409, "run_active"), (412, "plan_changed"), (422, "unknown_app"), (429, "throttled")],
)
def test_record__refused_with_a_code(client_of: ClientOf, status: int, code: str) -> None:
    post(client_of("operator"), status=status, answer={"code": code, "detail": "No."})

    assert (the_entry().status, the_entry().outcome) == (status, code)


@pytest.mark.parametrize("answer", [None, [], "no", {"detail": "No."}, {"code": None}])
def test_record__refused_without_a_code(client_of: ClientOf, answer: Any) -> None:
    post(client_of("operator"), status=400, answer=answer)

    assert the_entry().outcome == "refused"


def test_record__right_missing(client_of: ClientOf) -> None:
    assert post(client_of("viewer")).status_code == 403

    assert (the_entry().actor, the_entry().status) == ("viewer", 403)


def test_record__wrong_token(token_of: Any) -> None:
    _, key = token_of("operator", revoked=True)

    assert post(APIClient(), HTTP_AUTHORIZATION=f"Bearer {key}").status_code == 401

    assert (the_entry().actor, the_entry().token_prefix, the_entry().status) == ("", "", 401)


def test_record__refused_before_anybody_was_asked_for(token_of: Any) -> None:
    _, key = token_of("operator", revoked=True)

    assert post(APIClient(), HTTP_AUTHORIZATION=f"Bearer {key}", HTTP_ACCEPT="text/csv").status_code == 406

    assert (the_entry().actor, the_entry().status) == ("", 406)


def test_record__session(token_of: Any) -> None:
    token, _ = token_of("operator")
    client = APIClient()
    client.force_login(token.user)

    post(client)

    assert (the_entry().actor, the_entry().token_prefix) == ("operator", "")


def test_record__address_of_the_proxys_client(client_of: ClientOf, settings: Any) -> None:
    settings.TRUSTED_PROXIES = 1

    post(client_of("operator"), HTTP_X_FORWARDED_FOR="6.6.6.6, 1.1.1.1")

    assert the_entry().remote_address == "1.1.1.1"


def test_record__client_without_an_address(client_of: ClientOf) -> None:
    post(client_of("operator"), REMOTE_ADDR="")

    assert the_entry().remote_address is None


@pytest.mark.parametrize("tenant_id", ["a\x00b", "a\ud800b", "x" * 5000, "A CME", "a\nb"])
def test_record__crafted_names_fit(db: None, tenant_id: str) -> None:
    request = RequestFactory().post("/")
    request.user = None  # type: ignore[assignment]

    audit.record(request, HttpResponse(status=404), action="x" * 500, tenant_ids=[tenant_id], object_id=tenant_id)

    (stored,) = the_entry().tenant_ids
    assert len(stored) <= 63
    assert stored.isprintable()


def test_record__holds_no_secret(client_of: ClientOf) -> None:
    canary = "p@ss:w/rd#100%"
    client = client_of("operator")

    post(client, status=422, answer={"code": "invalid", "detail": canary}, HTTP_COOKIE=f"x={canary}")

    (row,) = AuditEntry.objects.values()
    key = client._credentials["HTTP_AUTHORIZATION"].partition(".")[2]
    text = json.dumps(row, default=str)
    assert canary not in text
    assert key not in text


def test_entry__is_only_ever_added(client_of: ClientOf) -> None:
    post(client_of("operator"))
    entry = the_entry()

    entry.outcome = "refused"
    for change in (
        entry.save,
        lambda: AuditEntry.objects.update(outcome="refused"),
        lambda: AuditEntry.objects.all()._raw_delete("default"),
        lambda: AuditEntry.objects.all().delete(),
    ):
        with pytest.raises(DatabaseError, match="only ever added"), transaction.atomic():
            change()
    with pytest.raises(TypeError):
        entry.delete()

    assert the_entry().outcome == "accepted"


def test_entry__outlives_its_user(token_of: Any) -> None:
    token, key = token_of("operator")
    post(APIClient(), HTTP_AUTHORIZATION=f"Bearer {key}")

    token.user.delete()

    assert (the_entry().actor, the_entry().token_prefix) == ("operator", token.prefix)
