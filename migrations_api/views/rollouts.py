from typing import ClassVar

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.models import Role, Rollout
from migrations_api.orchestrator import reports, requests
from migrations_api.orchestrator.endings import failure_groups
from migrations_api.orchestrator.previews import preview_rollout
from migrations_api.orchestrator.selection import Selector, select
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.rest import docs
from migrations_api.rest.accepted import accepted_rollout, accepting, rollout_data
from migrations_api.rest.asking import ALL, request_of
from migrations_api.rest.base import EventStreamRenderer, ServiceView
from migrations_api.rest.docs import documented
from migrations_api.rest.events import rollout_events
from migrations_api.rest.pages import page_of
from migrations_api.rest.pagination import paginate
from migrations_api.serializers.bodies import MigrateAllRequestSerializer
from migrations_api.serializers.queries import PageQuerySerializer, RolloutRunsQuerySerializer
from migrations_api.serializers.rollouts import (
    FailureGroupSerializer,
    RolloutDetailSerializer,
    RolloutPreviewSerializer,
    RolloutSerializer,
)
from migrations_api.serializers.runs import MigrationRunSummarySerializer
from migrations_api.views.runs import streamed, summaries


def get_rollout(rollout_id: int) -> Rollout:
    return get_object_or_404(Rollout, pk=rollout_id)


class MigrateAllView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "migrate_all_tenants"

    @documented(
        "migrate_all_tenants",
        {200: RolloutPreviewSerializer, 202: RolloutSerializer},
        errors=[409, 422, 503],
        request=MigrateAllRequestSerializer,
        parameters=[docs.IDEMPOTENCY_KEY, docs.PREFER, docs.LOCATION],
    )
    @accepting
    def post(self, request: Request) -> Response:
        body = self.body(MigrateAllRequestSerializer).validated_data
        asked = request_of(request, body, subject=ALL)
        selector = Selector.from_dict(body["selector"]).seeded()
        strategy = Strategy.from_dict(body["strategy"])
        if body["dry_run"]:
            preview = preview_rollout(select(selector), asked, strategy=strategy, selector=selector)
            return Response(RolloutPreviewSerializer(preview).data)
        rollout = requests.request_rollout(select(selector), asked, strategy=strategy, selector=selector)
        self.object_id = str(rollout.pk)
        return accepted_rollout(request, rollout)


class RolloutsView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}
    query_serializers: ClassVar = {"GET": PageQuerySerializer}

    @documented("list_rollouts", {200: page_of("Rollout", RolloutSerializer)}, parameters=[PageQuerySerializer])
    def get(self, request: Request) -> Response:
        return paginate(request, Rollout.objects.defer("selector"), rollout_data, query=self.query, ordering="-id")


class RolloutView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}

    @documented("get_rollout", {200: RolloutDetailSerializer}, errors=[404])
    def get(self, request: Request, rollout_id: int) -> Response:
        rollout = get_rollout(rollout_id)
        found = {"reports": reports.reports([rollout])}
        return Response(RolloutDetailSerializer(rollout, context=found).data)


class RolloutRunsView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}
    query_serializers: ClassVar = {"GET": RolloutRunsQuerySerializer}

    @documented(
        "list_rollout_runs",
        {200: page_of("MigrationRun", MigrationRunSummarySerializer)},
        errors=[404],
        parameters=[RolloutRunsQuerySerializer],
    )
    def get(self, request: Request, rollout_id: int) -> Response:
        filters = {"state": self.query["state"]} if "state" in self.query else {}
        found = get_rollout(rollout_id).runs.filter(**filters)
        return paginate(request, found, summaries, query=self.query, ordering="id")


class RolloutFailuresView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}

    @documented("list_rollout_failures", {200: FailureGroupSerializer(many=True)}, errors=[404])
    def get(self, request: Request, rollout_id: int) -> Response:
        return Response(FailureGroupSerializer(failure_groups(get_rollout(rollout_id)), many=True).data)


class RolloutEventsView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}
    renderer_classes = (EventStreamRenderer,)

    @documented("stream_rollout_events", {(200, "text/event-stream"): OpenApiTypes.STR}, errors=[404, 503])
    def get(self, request: Request, rollout_id: int) -> StreamingHttpResponse:
        get_rollout(rollout_id)
        return streamed(rollout_events(rollout_id, last_event_id=request.headers.get("Last-Event-ID", "")))
