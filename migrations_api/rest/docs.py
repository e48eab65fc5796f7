"""What the OpenAPI schema says beyond what the code shows: ids, errors, headers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers

from migrations_api.rest.problems import MEDIA_TYPE, problem


class ProblemErrorSerializer(serializers.Serializer[Any]):
    pointer = serializers.CharField(required=False, help_text="Place in the body, as a JSON pointer (RFC 6901).")
    parameter = serializers.CharField(required=False, help_text="Name of the query parameter.")
    code = serializers.CharField()
    detail = serializers.CharField()


class ProblemSerializer(serializers.Serializer[Any]):
    """RFC 9457 problem details; `code` is stable, `detail` is for people."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    code = serializers.CharField()
    detail = serializers.CharField()
    run_id = serializers.IntegerField(required=False, help_text="The run in the way, for run_active.")
    plan_digest = serializers.CharField(required=False, help_text="The plan as it is now, for plan_changed.")
    errors = ProblemErrorSerializer(many=True, required=False)  # type: ignore[assignment]  # RFC 9457 has the name


_MEANINGS: Final = {
    400: (
        "The request is malformed.",
        "invalid_query",
        "Unknown query parameter 'tenant'; allowed: cursor, page_size.",
    ),
    401: ("No or no valid credentials.", "not_authenticated", "Authentication credentials were not provided."),
    403: ("The role does not allow it.", "permission_denied", "This needs the operator role."),
    404: ("It does not exist.", "tenant_not_found", "Tenant 'unknown' does not exist."),
    405: ("The method is not offered here.", "method_not_allowed", "PUT is not allowed here; allowed: GET."),
    409: ("It conflicts with what is there.", "run_active", "Tenant 'acme' has an unfinished run: 7."),
    412: ("The plan is not the pinned one.", "plan_changed", "The plan of tenant 'acme' has changed."),
    413: ("The body is too large.", "too_large", "The body may have 1,000,000 bytes."),
    415: ("The body is not JSON.", "unsupported_media_type", 'Unsupported media type "text/plain" in request.'),
    422: ("It cannot be done as asked.", "unknown_app", "App 'crm' is not installed; choose from: orders."),
    429: ("Too many requests.", "throttled", "Request was throttled. Expected available in 3 seconds."),
    502: ("The tenant's database server is at fault.", "unreachable", "The database server refused the connection."),
    503: ("The service cannot take it on now.", "too_many_runs", "Too many runs are waiting to be carried out."),
}
_ALWAYS: Final = (400, 401, 403, 405, 429)
_WITH_BODY: Final = (413, 415)

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="1 to 255 printable ASCII characters. The same key and request are carried out once.",
)
IF_MATCH = OpenApiParameter(
    "If-Match",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="The ETag of the plan: another plan is refused, and checked again under the tenant's lock.",
)
PREFER = OpenApiParameter(
    "Prefer",
    OpenApiTypes.STR,
    OpenApiParameter.HEADER,
    description="wait=N: answer when it has ended, or after N seconds (60 at most).",
)
LOCATION = OpenApiParameter(
    "Location", OpenApiTypes.URI, OpenApiParameter.HEADER, description="Where to follow it.", response=[202, 201]
)
ETAG = OpenApiParameter(
    "ETag", OpenApiTypes.STR, OpenApiParameter.HEADER, description="The plan_digest in quotes.", response=[200]
)


def documented(
    operation_id: str,
    responses: Mapping[Any, Any],
    *,
    errors: Iterable[int] = (),
    request: Any = None,
    parameters: Iterable[Any] = (),
    **options: Any,
) -> Callable[[Any], Any]:
    """extend_schema() with every error that the operation can answer with."""
    codes = sorted({*_ALWAYS, *errors, *(_WITH_BODY if request is not None else ())})
    described = {status: _error(status) for status in codes}
    return extend_schema(
        operation_id=operation_id,
        request=request,
        responses={**responses, **described},
        parameters=list(parameters),
        **options,
    )


def _error(status: int) -> Any:
    meaning, code, detail = _MEANINGS[status]
    example = OpenApiExample(code, value=problem(status, code, detail), response_only=True, status_codes=[str(status)])
    return OpenApiResponse(ProblemSerializer, description=meaning, examples=[example])


def problems_as_problem_json(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """A drf-spectacular hook: errors are sent as application/problem+json, whatever the renderer."""
    for path in result["paths"].values():
        for operation in path.values():
            for status, response in operation.get("responses", {}).items():
                content = response.get("content", {})
                if status >= "400" and "application/json" in content:
                    content[MEDIA_TYPE] = content.pop("application/json")
    return result
