"""Every error as RFC 9457 problem details with a stable `code`, and the table from codes to HTTP statuses."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from http import HTTPStatus
from typing import Any, Final

from django.core.exceptions import BadRequest, SuspiciousOperation
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from rest_framework import exceptions as drf
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.views import set_rollback

from migrations_api import exceptions
from migrations_api.orchestrator.progress import AttemptLost
from migrations_api.rest.events import TooManyStreams
from tenants import exceptions as tenant_exceptions
from tenants.exceptions import ServiceError

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
SERVER_ERROR: Final = "The service failed to answer. Its log has more under the X-Request-ID of this response."
TYPE_PREFIX: Final = "urn:tenant-migrations:problem:"

MALFORMED: Final = "The request is malformed."
RETRY_AFTER: Final = 30  # seconds
View = Callable[[HttpRequest], HttpResponse]

# RFC 9110's names; Python has them from 3.13 on.
TITLES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}

STATUS_BY_CODE: Final[Mapping[str, int]] = {
    AttemptLost.code: 409,
    TooManyStreams.code: 503,
    exceptions.AmbiguousMigration.code: 422,
    exceptions.AppWithoutMigrations.code: 422,
    exceptions.CannotCreateMigration.code: 409,
    exceptions.CannotPretend.code: 409,
    exceptions.CannotPrune.code: 409,
    exceptions.CannotReset.code: 409,
    exceptions.CannotRollBack.code: 409,
    exceptions.ConfirmationRequired.code: 422,
    exceptions.ConflictingMigrations.code: 409,
    exceptions.DependentMigrations.code: 409,
    exceptions.InconsistentHistory.code: 409,
    exceptions.InvalidOptions.code: 422,
    exceptions.InvalidTransition.code: 409,
    exceptions.IrreversibleMigration.code: 409,
    exceptions.MissingRecord.code: 409,
    exceptions.NotAdoptable.code: 409,
    exceptions.NotCopyable.code: 409,
    exceptions.NothingToRollBack.code: 409,
    exceptions.OutcomeUnknown.code: 502,
    exceptions.PlanChanged.code: 412,
    exceptions.PretendedTooLong.code: 503,
    exceptions.PlanError.code: 409,
    exceptions.RepairImpossible.code: 409,
    exceptions.RunActive.code: 409,
    exceptions.TenantLocked.code: 409,
    exceptions.TenantHeld.code: 409,
    exceptions.TenantPartial.code: 409,
    exceptions.TooManyPretended.code: 503,
    exceptions.TooManyRuns.code: 503,
    exceptions.UnknownApp.code: 422,
    exceptions.UnknownMigration.code: 422,
    exceptions.UnknownRollout.code: 422,
    exceptions.UnknownTenants.code: 422,
    exceptions.UnloadableMigrations.code: 409,
    tenant_exceptions.AlreadyProvisioned.code: 409,
    tenant_exceptions.AuthenticationFailed.code: 502,
    tenant_exceptions.ForeignRecord.code: 409,
    tenant_exceptions.HomeLeftBehind.code: 502,
    tenant_exceptions.InvalidName.code: 422,
    tenant_exceptions.IsControlPlane.code: 409,
    tenant_exceptions.NotProvisioned.code: 409,
    tenant_exceptions.OutsideTenant.code: 409,
    tenant_exceptions.PermissionDenied.code: 502,
    tenant_exceptions.PoolerInBetween.code: 502,
    tenant_exceptions.ServerError.code: 502,
    tenant_exceptions.ServerNotConfigured.code: 422,
    tenant_exceptions.ServerUnreachable.code: 502,
    tenant_exceptions.ServiceError.code: 500,
    tenant_exceptions.TenantExists.code: 409,
    tenant_exceptions.TenantNotFound.code: 404,
}


_DJANGO: Final[Mapping[type[Exception], tuple[int, str, str]]] = {
    Http404: (404, "not_found", "There is nothing here."),
    DjangoPermissionDenied: (403, "permission_denied", "You may not do this."),
    # Too many parameters, too large a form, a body that ended early: each as Django's own handler has it.
    SuspiciousOperation: (400, "bad_request", MALFORMED),
    BadRequest: (400, "bad_request", MALFORMED),
    MultiPartParserError: (400, "bad_request", MALFORMED),
    UnreadablePostError: (400, "bad_request", MALFORMED),
}


class Problem(drf.APIException):
    """A problem that only the HTTP edge knows of, such as a malformed header."""

    def __init__(self, status: int, code: str, detail: str, **extra: Any) -> None:
        super().__init__(detail, code)
        self.status_code = status
        self.code = code
        self.extra = extra


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """DRF's hook. What is nobody's fault but ours is logged whole and told in one sentence."""
    set_rollback()
    found = problem_of(error)
    if found is None:
        logger.error("%s failed", type(context["view"]).__name__, exc_info=error)
        found = problem(500, "server_error", SERVER_ERROR)
    return Response(found, status=found["status"], headers=_headers(error), content_type=MEDIA_TYPE)


def problem_of(error: Exception) -> dict[str, Any] | None:
    if isinstance(error, ServiceError):
        return _service_problem(error)
    if isinstance(error, drf.ValidationError):
        error = invalid(list(field_errors(error.detail)))
    if isinstance(error, Problem):
        return problem(error.status_code, error.code, str(error.detail), **error.extra)
    for kind, (status, code, detail) in _DJANGO.items():
        if isinstance(error, kind):
            return problem(status, code, detail)
    if isinstance(error, drf.APIException):
        codes = error.get_codes()
        return problem(error.status_code, codes if isinstance(codes, str) else "error", _sentence(error))
    return None


def problem(status: int, code: str, detail: str, **extra: Any) -> dict[str, Any]:
    return {
        "type": f"{TYPE_PREFIX}{code}",
        "title": TITLES.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
        **extra,
    }


def invalid(errors: list[dict[str, str]]) -> Problem:
    """What field_errors() found, as one Problem."""
    return Problem(400, "invalid", "The request is not valid; `errors` names each mistake.", errors=errors)


def _service_problem(error: ServiceError) -> dict[str, Any]:
    extra: dict[str, object] = {}
    if isinstance(error, exceptions.RunActive):
        extra["run_id"] = error.run_id
    if isinstance(error, exceptions.PlanChanged):
        extra["plan_digest"] = error.digest
    return problem(STATUS_BY_CODE.get(error.code, 500), error.code, error.message, **extra)


def _sentence(error: drf.APIException) -> str:
    return error.detail if isinstance(error.detail, str) else str(error.default_detail)


def _headers(error: Exception) -> dict[str, str]:
    headers: dict[str, str] = {}
    if challenge := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = challenge
    if (wait := getattr(error, "wait", None)) is not None:
        headers["Retry-After"] = str(math.ceil(wait))
    if isinstance(error, ServiceError) and STATUS_BY_CODE.get(error.code) == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER)
    return headers


def pointer(parent: str, name: str) -> str:
    """The place of a member of an object, as a JSON pointer (RFC 6901)."""
    return f"{parent}/{name.replace('~', '~0').replace('/', '~1')}"


def field_errors(detail: Any, place: str = "") -> Iterator[dict[str, str]]:
    """Each mistake with its place in the body as a JSON pointer."""
    if isinstance(detail, Mapping):
        for name, inner in detail.items():
            whole = name == api_settings.NON_FIELD_ERRORS_KEY
            yield from field_errors(inner, place if whole else pointer(place, str(name)))
    elif isinstance(detail, list):
        for index, inner in enumerate(detail):
            nested = isinstance(inner, Mapping | list)
            yield from field_errors(inner, f"{place}/{index}" if nested else place)
    else:
        yield {"pointer": place, "code": getattr(detail, "code", "invalid"), "detail": str(detail)}


def _json(status: int, code: str, detail: str) -> JsonResponse:
    return JsonResponse(problem(status, code, detail), status=status, content_type=MEDIA_TYPE)


def safe_only(view: View) -> View:
    """As Django's require_safe, which answers without a body."""

    @wraps(view)
    def answer(request: HttpRequest) -> HttpResponse:
        if request.method in {"GET", "HEAD"}:
            return view(request)
        response = _json(405, "method_not_allowed", f"{request.method} is not allowed here; allowed: GET, HEAD.")
        response["Allow"] = "GET, HEAD"
        return response

    return answer


def bad_request(request: HttpRequest, exception: Exception) -> JsonResponse:
    return _json(400, "bad_request", MALFORMED)


def permission_denied(request: HttpRequest, exception: Exception) -> JsonResponse:
    return _json(403, "permission_denied", "You may not do this.")


def csrf_failure(request: HttpRequest, reason: str = "") -> JsonResponse:
    return _json(403, "csrf_failed", "The CSRF token is missing or wrong. Use a bearer token outside of a browser.")


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    return _json(404, "not_found", "There is nothing here. The API's routes are listed at /docs.")


def server_error(request: HttpRequest) -> JsonResponse:
    return _json(500, "server_error", SERVER_ERROR)
