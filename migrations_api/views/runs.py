from collections.abc import Iterator
from typing import ClassVar

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.models import MigrationRun, RequestedVia, Role
from migrations_api.orchestrator import verbs
from migrations_api.orchestrator.repairs import diagnosis_of, request_repair
from migrations_api.rest import docs
from migrations_api.rest.accepted import accepted_run, accepting, run_data
from migrations_api.rest.asking import grave_words
from migrations_api.rest.base import EventStreamRenderer, ServiceView
from migrations_api.rest.docs import documented
from migrations_api.rest.events import run_events
from migrations_api.rest.idempotency import idempotent
from migrations_api.rest.pages import page_of
from migrations_api.rest.pagination import paginate
from migrations_api.rest.permissions import require_role, role_of
from migrations_api.serializers.bodies import CancelRequestSerializer, EmptyRequestSerializer, ReasonRequestSerializer
from migrations_api.serializers.queries import RunListQuerySerializer
from migrations_api.serializers.repairs import DiagnosisSerializer, RepairRequestSerializer
from migrations_api.serializers.runs import MigrationRunSerializer, MigrationRunSummarySerializer


def get_run(run_id: int) -> MigrationRun:
    return get_object_or_404(MigrationRun.objects.prefetch_related("steps"), pk=run_id)


class RunsView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}
    query_serializers: ClassVar = {"GET": RunListQuerySerializer}

    @documented(
        "list_runs",
        {200: page_of("MigrationRun", MigrationRunSummarySerializer)},
        parameters=[RunListQuerySerializer],
    )
    def get(self, request: Request) -> Response:
        filters = {name: self.query[name] for name in ("tenant_id", "state") if name in self.query}
        found = MigrationRun.objects.filter(**filters)
        return paginate(request, found, summaries, query=self.query, ordering="-id")


def summaries(runs: list[MigrationRun]) -> object:
    return MigrationRunSummarySerializer(runs, many=True).data


class RunView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}

    @documented("get_run", {200: MigrationRunSerializer}, errors=[404])
    def get(self, request: Request, run_id: int) -> Response:
        return Response(run_data(get_run(run_id)))


class RunEventsView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}
    renderer_classes = (EventStreamRenderer,)

    @documented("stream_run_events", {(200, "text/event-stream"): OpenApiTypes.STR}, errors=[404, 503])
    def get(self, request: Request, run_id: int) -> StreamingHttpResponse:
        get_run(run_id)
        return streamed(run_events(run_id, last_event_id=request.headers.get("Last-Event-ID", "")))


def streamed(events: Iterator[bytes]) -> StreamingHttpResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingHttpResponse(events, content_type="text/event-stream", headers=headers)


class RunCancelView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "cancel_run"

    @documented(
        "cancel_run",
        {202: MigrationRunSerializer},
        errors=[404, 409],
        request=CancelRequestSerializer,
        parameters=[docs.IDEMPOTENCY_KEY, docs.PREFER, docs.LOCATION],
    )
    @accepting
    def post(self, request: Request, run_id: int) -> Response:
        body = self.body(CancelRequestSerializer).validated_data
        run = get_run(run_id)
        self.touched = [run.tenant_id]
        verbs.cancel_run(run, interrupt=body["interrupt"])
        return accepted_run(request, get_run(run_id))


class RunSkipView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "skip_run"

    @documented(
        "skip_run",
        {202: MigrationRunSerializer},
        errors=[404, 409],
        request=ReasonRequestSerializer,
        parameters=[docs.IDEMPOTENCY_KEY, docs.LOCATION],
    )
    @idempotent
    def post(self, request: Request, run_id: int) -> Response:
        body = self.body(ReasonRequestSerializer).validated_data
        run = get_run(run_id)
        self.touched = [run.tenant_id]
        verbs.skip_run(run, by=request.user.get_username(), reason=body["reason"])
        return accepted_run(request, get_run(run_id))


class RunRepairView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER, "POST": Role.ADMIN}
    action_name = "repair_run"

    @documented("get_run_repair", {200: DiagnosisSerializer}, errors=[404, 409, 502])
    def get(self, request: Request, run_id: int) -> Response:
        return Response(DiagnosisSerializer(diagnosis_of(get_run(run_id))).data)

    @documented(
        "repair_run",
        {202: MigrationRunSerializer},
        errors=[404, 409, 422],
        request=RepairRequestSerializer,
        parameters=[docs.IDEMPOTENCY_KEY, docs.PREFER, docs.LOCATION],
    )
    @accepting
    def post(self, request: Request, run_id: int) -> Response:
        body = self.body(RepairRequestSerializer).validated_data
        run = get_run(run_id)
        self.touched = [run.tenant_id]
        repairing = request_repair(run, **body, by=request.user.get_username(), via=RequestedVia.API)
        self.object_id = str(repairing.pk)
        return accepted_run(request, repairing)


class RunRetryView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "retry_run"

    @documented(
        "retry_run",
        {202: MigrationRunSerializer},
        errors=[404, 409, 422, 503],
        request=EmptyRequestSerializer,
        parameters=[docs.IDEMPOTENCY_KEY, docs.PREFER, docs.LOCATION],
    )
    @accepting
    def post(self, request: Request, run_id: int) -> Response:
        self.body(EmptyRequestSerializer)
        run = get_run(run_id)
        self.touched = [run.tenant_id]
        if grave := grave_words(run.options, run.migration_name, run.action):
            require_role(request, Role.ADMIN, f"{grave[0]} needs the admin role.")
        again = verbs.retry_run(
            run, by=request.user.get_username(), via=RequestedVia.API, allow_backwards=role_of(request) is Role.ADMIN
        )
        self.object_id = str(again.pk)
        return accepted_run(request, again)
