"""What somebody asked to be changed, and what came of it."""

from collections.abc import Sequence
from http import HTTPStatus

from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.exceptions import APIException
from rest_framework.request import Request

from migrations_api.models import ApiToken, AuditEntry
from migrations_api.rest.client_address import client_address


def record(
    request: Request | HttpRequest,
    response: HttpResponseBase,
    *,
    action: str,
    tenant_ids: Sequence[str] = (),
    object_id: str = "",
) -> AuditEntry:
    """Add the audit entry of one request; nothing of its body, its headers or the response's detail is in it."""
    user = _user(request)
    token = getattr(request, "auth", None)
    return AuditEntry.objects.create(
        actor=_storable(user.get_username(), 150),
        token_prefix=token.prefix if isinstance(token, ApiToken) else "",
        remote_address=client_address(request),
        request_id=_storable(getattr(request, "request_id", ""), 64),
        action=_storable(action, 100),
        tenant_ids=[_storable(tenant_id, 63) for tenant_id in tenant_ids],
        object_id=_storable(object_id, 100),
        status=response.status_code,
        outcome=_storable(_outcome(response), 50),
    )


def _user(request: Request | HttpRequest) -> AbstractBaseUser | AnonymousUser:
    try:
        return request.user or AnonymousUser()
    except APIException:  # it was refused before anybody asked who it is, and who it is cannot be said either
        return AnonymousUser()


def _outcome(response: HttpResponseBase) -> str:
    if response.status_code < HTTPStatus.BAD_REQUEST:
        return "accepted"
    data = getattr(response, "data", None)
    code = data.get("code") if isinstance(data, dict) else None
    return str(code or "refused")


def _storable(text: str, length: int) -> str:
    """What PostgreSQL takes of a text that may have come from an address: no NUL, no lone surrogate."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)[:length]
