import re
import uuid
from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from migrations_api import log_context

HEADER = "X-Request-ID"
WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RequestIdMiddleware:
    """Names the request, as its sender does where that is well-formed, in the response and in every log line."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        given = request.headers.get(HEADER, "")
        name = given if WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
        request.request_id = name  # type: ignore[attr-defined]
        token = log_context.request_id.set(name)
        try:
            response = self.get_response(request)
        finally:
            log_context.request_id.reset(token)
        response.headers[HEADER] = name
        return response
