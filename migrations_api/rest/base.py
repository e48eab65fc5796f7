"""What every view has in common: strict input, JSON only, problems as errors, an audit row for each change."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, ClassVar, NoReturn, TypeVar, cast

from django.http import HttpRequest
from rest_framework import serializers
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.mediatypes import media_type_matches
from rest_framework.views import APIView

from migrations_api.models import Role
from migrations_api.orchestrator.requests import get_tenant
from migrations_api.rest import audit, problems
from migrations_api.rest.permissions import RolePermission
from migrations_api.rest.throttles import ThrottleFirst
from tenants.models import Tenant

S = TypeVar("S", bound=serializers.BaseSerializer[Any])

MAX_BODY = 1_000_000  # bytes; a selector with 10,000 tenant ids fits
MAX_DEPTH = 32
MAX_DIGITS = 1000
NESTED = "The JSON is nested too deeply."
UNSTORABLE = "A NUL character or a lone surrogate is not text."
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class StrictJSONParser(BaseParser):
    """JSON as RFC 8259 has it, of bounded size; what Python's parser chokes on is the sender's mistake."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        data = stream.read(MAX_BODY + 1)
        if len(data) > MAX_BODY:
            raise problems.Problem(413, "too_large", f"The body may have {MAX_BODY:,} bytes.")
        try:
            found = json.loads(
                data.decode(), parse_constant=_no_constant, object_pairs_hook=_object, parse_int=_integer
            )
        except RecursionError as error:
            raise ParseError(NESTED) from error
        except ValueError as error:
            raise ParseError(f"The body is not JSON: {error}.") from error
        if mistakes := list(_unfit(found)):
            raise problems.invalid(mistakes)
        return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return int(digits)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Of two members with one name, parsers disagree about which one counts (RFC 8259, section 4)."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _unfit(found: Any) -> Iterator[dict[str, str]]:
    """The strings that PostgreSQL cannot store, each with its place; raises ParseError for what nests too deeply."""
    waiting = [("", found, 0)]
    while waiting:
        pointer, value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ParseError(NESTED)
        if isinstance(value, str) and _UNSTORABLE.search(value):
            yield {"pointer": pointer, "code": "invalid", "detail": UNSTORABLE}
        elif isinstance(value, list):
            waiting += [(f"{pointer}/{index}", inner, depth + 1) for index, inner in enumerate(value)]
        elif isinstance(value, dict):
            if any(_UNSTORABLE.search(name) for name in value):
                yield {"pointer": pointer, "code": "invalid", "detail": UNSTORABLE}
                continue
            waiting += [(problems.pointer(pointer, name), inner, depth + 1) for name, inner in value.items()]


class ProblemRenderer(JSONRenderer):
    """JSON; errors under their own media type."""

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> Any:
        response = (renderer_context or {}).get("response")
        if response is not None and response.status_code >= 400:
            response.content_type = problems.MEDIA_TYPE
        return super().render(data, accepted_media_type, renderer_context)


class EventStreamRenderer(ProblemRenderer):
    """Lets a client ask for text/event-stream; what is rendered through it are only errors."""

    media_type = "text/event-stream"
    format = "events"


class AlwaysJSON(BaseContentNegotiation):
    """There is one representation; an Accept header that wants another gets it all the same (RFC 9110, 12.5.1)."""

    def select_parser(self, request: Request, parsers: Iterable[Any]) -> Any:
        return next((parser for parser in parsers if media_type_matches(parser.media_type, request.content_type)), None)

    def select_renderer(self, request: Request, renderers: Iterable[Any], format_suffix: str | None = None) -> Any:
        first = next(iter(renderers))
        return first, first.media_type


class ServiceView(ThrottleFirst, APIView):
    """A view that grants what `required_roles` names and nothing else, and accepts what it declares and nothing else.

    `query_serializer` declares the query parameters by method name; without one, there are none.
    """

    permission_classes = (RolePermission,)
    parser_classes = (StrictJSONParser,)
    renderer_classes = (ProblemRenderer,)
    content_negotiation_class = AlwaysJSON
    required_roles: ClassVar[Mapping[str, Role]] = {}
    query_serializers: ClassVar[Mapping[str, type[serializers.Serializer[Any]]]] = {}
    action_name: ClassVar[str] = ""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.touched: Sequence[str] = [kwargs["tenant_id"]] if "tenant_id" in kwargs else []
        self.object_id = str(kwargs.get("run_id") or kwargs.get("rollout_id") or "")
        super().initial(request, *args, **kwargs)
        # A method that is not offered is refused for that, whatever else is wrong.
        self.query = self._validated_query(request) if request.method in self.allowed_methods else {}

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Response:
        if request.method not in {"GET", "HEAD", "OPTIONS"}:
            audit.record(
                self.request,
                response,
                action=self.action_name or type(self).__name__,
                tenant_ids=getattr(self, "touched", []),
                object_id=getattr(self, "object_id", ""),
            )
        return super().finalize_response(request, response, *args, **kwargs)

    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> NoReturn:
        allowed = ", ".join(self.allowed_methods)
        raise problems.Problem(405, "method_not_allowed", f"{request.method} is not allowed here; allowed: {allowed}.")

    def body(self, serializer_class: type[S]) -> S:
        """The request's body, validated; raises ValidationError with every mistake."""
        serializer = serializer_class(data=self.request.data, context={"request": self.request})
        serializer.is_valid(raise_exception=True)
        return serializer

    def tenant(self) -> Tenant:
        return get_tenant(self.kwargs["tenant_id"])

    def _validated_query(self, request: Request) -> Mapping[str, Any]:
        method = "GET" if request.method == "HEAD" else request.method or ""
        declared = self.query_serializers.get(method, serializers.Serializer)
        many = {name for name, field in declared().fields.items() if isinstance(field, serializers.ListField)}
        given: dict[str, Any] = {}
        for name, values in request.query_params.lists():
            if len(values) > 1 and name not in many:
                raise problems.Problem(400, "invalid_query", f"The query parameter '{name}' is given more than once.")
            given[name] = values if name in many else values[0]
        if unknown := sorted(set(given) - set(declared().fields)):
            allowed = ", ".join(declared().fields) or "(none)"
            detail = f"Unknown query parameter {unknown[0]!r}; allowed: {allowed}."
            raise problems.Problem(400, "invalid_query", detail)
        serializer = declared(data=given)
        if not serializer.is_valid():
            errors = [
                {"parameter": item["pointer"].removeprefix("/"), "code": item["code"], "detail": item["detail"]}
                for item in problems.field_errors(serializer.errors)
            ]
            raise problems.Problem(400, "invalid_query", "A query parameter is not valid.", errors=errors)
        return cast("Mapping[str, Any]", serializer.validated_data)
