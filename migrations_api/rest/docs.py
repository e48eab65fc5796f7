"""What the OpenAPI schema says beyond what the code shows: ids, errors, headers."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final

from drf_spectacular.extensions import OpenApiSerializerFieldExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import serializers

from migrations_api.rest.problems import MEDIA_TYPE, SERVER_ERROR, problem


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
    500: ("The service failed to answer.", "server_error", SERVER_ERROR),
    502: ("The tenant's database server is at fault.", "unreachable", "The database server refused the connection."),
    503: ("The service cannot take it on now.", "too_many_runs", "Too many runs are waiting to be carried out."),
}
_DESCRIPTIONS: Final = {
    "list_tenants": "Tenants, each with where it stood when it was last looked at.",
    "create_tenant": "Register a tenant and create its schema or database; without `provision`, only register it.",
    "get_tenant": "One tenant, with where it stood when it was last looked at.",
    "update_tenant": "Change a tenant's name or labels; what decides where its data is stays as it is.",
    "delete_tenant": "Forget a tenant. Its data stays, unless `drop` is asked for and `confirm` repeats its id.",
    "list_tenant_migrations": "What is applied in the tenant, when, and what is pending; read from the tenant now.",
    "get_tenant_plan": "The steps from where the tenant stands now to the target; changes nothing. Its ETag pins it.",
    "migrate_tenant": "Ask for a run that migrates the tenant to a target, or to the newest of every app.",
    "get_rollback_plan": "What a rollback would undo, in order, from where the tenant stands now; changes nothing.",
    "rollback_tenant": "Ask for a run that undoes what the tenant's last run applied, or another's, or the last steps.",
    "get_reset_plan": "The steps that would take every app of the tenant to zero; changes nothing.",
    "reset_tenant": "Ask for a run that takes every app of the tenant to zero. Its rows are lost.",
    "get_refresh_plan": "The steps that would take every app of the tenant to zero and forwards again.",
    "refresh_tenant": "Ask for a run that takes every app of the tenant to zero and forwards again. Its rows are lost.",
    "reset_all_tenants": "Ask for a rollout that resets every selected tenant, shared tenants last.",
    "refresh_all_tenants": "Ask for a rollout that refreshes every selected tenant, shared tenants first.",
    "rollback_rollout": "Ask for a rollout that undoes, in each tenant, just what its run of this rollout applied.",
    "get_fleet_plan": "One plan for each distinct set of applied migrations, with the tenants that have it.",
    "migrate_all_tenants": "Ask for a rollout: a run for every selected tenant, shared tenants first, then by waves.",
    "hold_tenant": "Leave a tenant out of everything until it is released; a run of it that is pending is skipped.",
    "release_tenant": "Let a tenant that is held be migrated again.",
    "list_runs": "Runs, the newest first.",
    "get_run": "One run with its steps. It has ended once `finished_at` is set; `state` says how.",
    "stream_rollout_events": "A rollout's progress as server-sent events, until it ends.",
    "stream_run_events": "A run's progress as server-sent events, until it ends. Polling the run tells as much.",
    "cancel_run": "Cancel a run: at once if it is pending, otherwise after the step in flight, or in it (`interrupt`).",
    "get_run_repair": "What a partial run has left of the step in which it stopped, and the ways out; changes nothing.",
    "repair_run": "Ask for a run that brings the tenant to one end of that step. What it does is checked, not guessed.",
    "skip_run": "Leave a tenant whose run is pending out of this rollout, with a reason.",
    "retry_run": "Ask once more for what a run that has ended was asked for; the new run's `retry_of` names it.",
    "list_rollouts": "Rollouts, the newest first.",
    "get_rollout": "One rollout, with how many of its runs are in each state, its waves and its speed.",
    "list_rollout_runs": "The runs of a rollout, in the order in which they were asked for.",
    "list_rollout_failures": "The failed runs of a rollout, grouped by error.",
    "pause_rollout": "Start nothing more. What is in flight goes on to its end; then the rollout is `paused`.",
    "resume_rollout": "Go on with a rollout that is paused. Failures that it was paused for no longer count.",
    "promote_rollout": "Open the next wave now, once the open one has ended; with `full`, all that follow.",
    "cancel_rollout": "Cancel a rollout: what is pending is not started, what runs stops after its step in flight.",
    "retry_rollout": "Ask for a new rollout over the tenants that this one has not migrated; `retry_of` names it.",
    "get_fleet": "How many tenants stand where, as last looked at.",
    "get_metrics": "Numbers for Prometheus, in its text format.",
}
_TO_ONE: Final = {"app_label": "orders", "migration_name": "0002"}
_REQUEST_EXAMPLES: Final = {
    "create_tenant": {
        "tenant_id": "acme",
        "name": "ACME Corporation",
        "isolation": "schema",
        "database": "default",
        "labels": {"region": "eu"},
    },
    "update_tenant": {"name": "ACME Corporation", "labels": {"region": "eu"}},
    "migrate_tenant": _TO_ONE,
    "migrate_all_tenants": {
        **_TO_ONE,
        "selector": {"labels": {"region": "eu"}, "exclude": ["globex"]},
        "strategy": {"canary": 1, "waves": ["10%"], "bake_time": 300, "max_failures": "2%", "on_error": "pause"},
    },
    "rollback_tenant": {"run": 7, "confirm": "acme"},
    "reset_tenant": {"confirm": "acme"},
    "refresh_tenant": {"confirm": "acme"},
    "reset_all_tenants": {"selector": {"labels": {"tier": "demo"}}, "confirm": 3},
    "refresh_all_tenants": {"selector": {"labels": {"tier": "demo"}}, "confirm": 3},
    "rollback_rollout": {"strategy": {"canary": 1, "max_failures": 0}, "confirm": 120},
    "hold_tenant": {"reason": "Waits for its data to be cleaned."},
    "repair_run": {"way": "redo"},
    "skip_run": {"reason": "The customer asked for another day."},
    "pause_rollout": {"reason": "Errors at the canary."},
}
_PERCENTAGE: Final = r"(100(\.0{1,4})?|[0-9]{1,2}(\.[0-9]{1,4})?)%$"
_LABELS: Final = {
    "type": "object",
    "propertyNames": {"type": "string", "pattern": r"^[^=\u0000]{1,63}$"},
    "additionalProperties": {"type": "string", "maxLength": 255},
}
_LABEL_GROUP: Final = {
    "type": "object",
    "description": "Those that have all of these labels.",
    "properties": {"labels": {**_LABELS, "minProperties": 1}},
    "required": ["labels"],
    "additionalProperties": False,
}
_ALWAYS: Final = (400, 401, 403, 405, 429, 500)
_WITH_BODY: Final = (413, 415)
_WITH_KEY: Final = (409, 422)

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
    OpenApiParameter.HEADER,
    description="1 to 255 printable ASCII characters. The same key and request are carried out once.",
)
IF_MATCH = OpenApiParameter(
    "If-Match",
    {"type": "string", "pattern": '^"[0-9a-f]{64}"$'},
    OpenApiParameter.HEADER,
    description="The ETag of the plan: another plan is refused, and checked again under the tenant's lock.",
)
PREFER = OpenApiParameter(
    "Prefer",
    {"type": "string", "pattern": "^wait=([0-9]|[1-5][0-9]|60)$"},
    OpenApiParameter.HEADER,
    description="wait=N: answer when it has ended, or after N seconds (60 at most).",
)
LOCATION = OpenApiParameter(
    "Location", OpenApiTypes.URI, OpenApiParameter.HEADER, description="Where to follow it.", response=[202, 201]
)
ETAG = OpenApiParameter(
    "ETag", OpenApiTypes.STR, OpenApiParameter.HEADER, description="The plan_digest in quotes.", response=[200]
)


class LabelsSchema(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]  # it registers itself
    target_class = "migrations_api.serializers.fields.LabelsField"

    def get_name(self) -> str:
        return "Labels"

    def map_serializer_field(self, auto_schema: Any, direction: str) -> dict[str, Any]:
        return dict(_LABELS)


class AmountSchema(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "migrations_api.serializers.fields.AmountField"

    def get_name(self) -> str:
        return "Amount"

    def map_serializer_field(self, auto_schema: Any, direction: str) -> dict[str, Any]:
        number = {"type": "integer", "minimum": 0, "maximum": 9_999_999}
        percentage = {"type": "string", "pattern": f"^{_PERCENTAGE}"}
        return {"description": "A number of tenants, or a percentage of all.", "oneOf": [number, percentage]}


class WaveGroupSchema(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    target_class = "migrations_api.serializers.fields.WaveField"

    def get_name(self) -> str:
        return "WaveGroup"

    def map_serializer_field(self, auto_schema: Any, direction: str) -> dict[str, Any]:
        number = {"type": "integer", "minimum": 1, "maximum": 9_999_999}
        more_than_nothing = {"type": "string", "pattern": rf"^(?!0+(\.0+)?%){_PERCENTAGE}"}
        description = "So many tenants, a percentage of all, or those that have all of some labels."
        # A component of its own, which generated clients have a name for.
        schemas, name = ResolvedComponent.SCHEMA, "LabelGroup"
        labels = ResolvedComponent(name, schemas, _LABEL_GROUP, object=name)  # type: ignore[no-untyped-call]
        auto_schema.registry.register_on_missing(labels)
        return {"description": description, "oneOf": [number, more_than_nothing, labels.ref]}


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
    parameters = list(parameters)
    with_body = _WITH_BODY if request is not None else ()
    with_key = _WITH_KEY if IDEMPOTENCY_KEY in parameters else ()
    codes = sorted({*_ALWAYS, *errors, *with_body, *with_key})
    described = {status: _error(status) for status in codes}
    return extend_schema(
        operation_id=operation_id,
        description=_DESCRIPTIONS.get(operation_id),
        examples=_request_examples(operation_id),
        request=request,
        responses={**responses, **described},
        parameters=parameters,
        **options,
    )


def _request_examples(operation_id: str) -> list[OpenApiExample]:
    value = _REQUEST_EXAMPLES.get(operation_id)
    return [OpenApiExample(operation_id, value=value, request_only=True)] if value else []


def _error(status: int) -> Any:
    meaning, code, detail = _MEANINGS[status]
    example = OpenApiExample(code, value=problem(status, code, detail), response_only=True, status_codes=[str(status)])
    return OpenApiResponse(ProblemSerializer, description=meaning, examples=[example])


@cache
def openapi() -> dict[str, Any]:
    """The schema that /schema serves; the same for everybody, and half a second's work to make."""
    made: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return made


def shared_problems(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """A drf-spectacular hook: errors are application/problem+json, whatever the renderer, and described once."""
    shared = result["components"].setdefault("responses", {})
    for path in result["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    name = f"Problem{status}"
                    shared[name] = {**response, "content": {MEDIA_TYPE: _only(response["content"])}}
                    operation["responses"][status] = {"$ref": f"#/components/responses/{name}"}
    result["components"]["responses"] = dict(sorted(shared.items()))
    return result


def _only(content: Mapping[str, Any]) -> Any:
    [description] = content.values()
    return description


def strict_requests(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """A drf-spectacular hook: request bodies with fields that are not known are refused."""
    for name, component in result["components"].get("schemas", {}).items():
        if name.endswith("Request"):
            component["additionalProperties"] = False
    return result


def with_health(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """A drf-spectacular hook: the two endpoints for machines that watch, which have no credentials."""
    result["paths"]["/healthz"] = _health("get_health", "The process lives.", ["status"], {})
    not_ready = {"503": _health_response("Not ready; `checks` says why.", ["status", "checks"])}
    result["paths"]["/readyz"] = _health("get_readiness", "It can carry out work.", ["status", "checks"], not_ready)
    return result


def _health(operation_id: str, description: str, names: list[str], more: dict[str, Any]) -> dict[str, Any]:
    responses = {"200": _health_response(description, names), **more}
    operation = {"operationId": operation_id, "description": description, "tags": ["health"], "security": [{}]}
    return {"get": {**operation, "responses": responses}}


def _health_response(description: str, names: list[str]) -> dict[str, Any]:
    kinds = {"status": {"type": "string"}, "checks": {"type": "object", "additionalProperties": {"type": "string"}}}
    schema = {"type": "object", "properties": {name: kinds[name] for name in names}, "required": names}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
