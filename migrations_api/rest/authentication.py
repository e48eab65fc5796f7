"""Bearer tokens."""

import logging
import re
from datetime import timedelta
from typing import Any, Final

from django.contrib.auth.base_user import AbstractBaseUser
from django.db.models.functions import Now
from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from migrations_api.models import ApiToken
from migrations_api.rest.throttles import count_failed_authentication

logger = logging.getLogger(__name__)

CREDENTIALS: Final = re.compile(r"bearer +(([a-z0-9]{8})\.[a-z0-9]{32,128})", re.ASCII | re.IGNORECASE)
REFUSED: Final = "This is not a valid API token."
LAST_USED_PRECISION: Final = timedelta(minutes=1)


class ApiTokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer <prefix>.<secret>`; the request's `auth` is then the ApiToken.

    A header that is no such thing is refused rather than left to the session: whoever sent it meant to be somebody.
    """

    def authenticate(self, request: Request) -> tuple[AbstractBaseUser, ApiToken] | None:
        header = request.META.get("HTTP_AUTHORIZATION")
        if header is None:
            return None
        token = _token_of(header)
        if token is None:
            count_failed_authentication(request)
            raise AuthenticationFailed(REFUSED)
        _note_use(token)
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


def _token_of(header: str) -> ApiToken | None:
    match = CREDENTIALS.fullmatch(header)
    if match is None:
        return None
    key, prefix = match.groups()
    token: ApiToken | None = ApiToken.objects.select_related("user").filter(prefix=prefix).first()
    if token is None or not token.is_valid(key):
        return None
    # Only the log tells which it was, and only for somebody who has the secret.
    for cause, refused in (
        ("revoked", token.revoked),
        ("expired", token.has_expired),
        ("its user is inactive", not token.user.is_active),
    ):
        if refused:
            logger.warning("API token %s refused: %s", prefix, cause)
            return None
    return token


def _note_use(token: ApiToken) -> None:
    stale = timezone.now() - LAST_USED_PRECISION
    if token.last_used_at is None or token.last_used_at < stale:
        # Conditional, so that of many requests at once one writes.
        ApiToken.objects.filter(pk=token.pk).exclude(last_used_at__gte=stale).update(last_used_at=Now())


class ApiTokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # it registers itself
    target_class = "migrations_api.rest.authentication.ApiTokenAuthentication"
    name = "bearerAuth"

    def get_security_definition(self, auto_schema: Any) -> dict[str, Any]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "<prefix>.<secret>"}
