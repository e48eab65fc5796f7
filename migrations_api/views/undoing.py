"""What takes migrations back. Each action is confirmed, and on the same route is the question what it would do."""

from typing import Any, ClassVar, Final

from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.exceptions import PlanChanged
from migrations_api.models import Action, RequestedVia, Role
from migrations_api.orchestrator import requests
from migrations_api.orchestrator.fleet import plan_for
from migrations_api.orchestrator.previews import Preview, preview_rollout
from migrations_api.orchestrator.rollbacks import (
    chosen,
    preview_rollout_rollback,
    request_rollback,
    request_rollout_rollback,
    rollback_plan,
)
from migrations_api.orchestrator.selection import Selector, select
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.plan import Plan
from migrations_api.rest import docs
from migrations_api.rest.accepted import accepted_rollout, accepted_run, accepting
from migrations_api.rest.base import ServiceView
from migrations_api.rest.docs import documented
from migrations_api.rest.preconditions import expected_digest
from migrations_api.rest.pretending import planned
from migrations_api.rest.problems import Problem
from migrations_api.serializers.bodies import (
    RollbackRequestSerializer,
    RollbackRolloutRequestSerializer,
    WholeTenantRequestSerializer,
    WholeTenantsRequestSerializer,
)
from migrations_api.serializers.plans import PlanSerializer
from migrations_api.serializers.queries import RollbackQuerySerializer, SqlQuerySerializer
from migrations_api.serializers.rollouts import RolloutPreviewSerializer, RolloutSerializer
from migrations_api.serializers.runs import MigrationRunSerializer
from migrations_api.views.rollouts import get_rollout
from tenants.models import Tenant

PLAN_ERRORS: Final = [403, 404, 409, 422, 502, 503]
RUN_ERRORS: Final = [404, 409, 412, 422, 502, 503]
RUN_PARAMETERS: Final[list[Any]] = [docs.IDEMPOTENCY_KEY, docs.IF_MATCH, docs.PREFER, docs.LOCATION]
ROLLOUT_PARAMETERS: Final[list[Any]] = [docs.IDEMPOTENCY_KEY, docs.PREFER, docs.LOCATION]


def asking(http: Request, action: Action) -> requests.Request:
    return requests.Request(action=action, by=http.user.get_username(), via=RequestedVia.API)


def require_confirmed(given: object, expected: object) -> None:
    if given != expected:
        written = f'"{expected}"' if isinstance(expected, str) else expected
        raise Problem(422, "confirmation_required", f'To confirm, send "confirm": {written}.')


def require_plan(tenant: Tenant, plan: Plan, digest: str) -> None:
    if digest and plan.digest != digest:
        raise PlanChanged(tenant.tenant_id, plan.digest)


class TenantRollbackView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER, "POST": Role.ADMIN}
    query_serializers: ClassVar = {"GET": RollbackQuerySerializer}
    action_name = "rollback_tenant"

    @documented(
        "get_rollback_plan",
        {200: PlanSerializer},
        errors=PLAN_ERRORS,
        parameters=[RollbackQuerySerializer, docs.ETAG],
    )
    def get(self, request: Request, tenant_id: str) -> Response:
        tenant = self.tenant()
        choose = chosen(tenant, run_id=self.query.get("run"), steps=self.query.get("steps"))
        return planned(request, tenant, rollback_plan(tenant, choose), sql=self.query["sql"])

    @documented(
        "rollback_tenant",
        {202: MigrationRunSerializer},
        errors=RUN_ERRORS,
        request=RollbackRequestSerializer,
        parameters=RUN_PARAMETERS,
    )
    @accepting
    def post(self, request: Request, tenant_id: str) -> Response:
        body = self.body(RollbackRequestSerializer).validated_data
        tenant = self.tenant()
        require_confirmed(body["confirm"], tenant_id)
        choose = chosen(tenant, run_id=body.get("run"), steps=body.get("steps"))
        if digest := expected_digest(request):
            require_plan(tenant, rollback_plan(tenant, choose), digest)
        run = request_rollback(tenant, choose, asking(request, Action.ROLLBACK), expected_digest=digest)
        self.object_id = str(run.pk)
        return accepted_run(request, run)


class WholeTenantView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER, "POST": Role.ADMIN}
    query_serializers: ClassVar = {"GET": SqlQuerySerializer}
    action: ClassVar[Action]

    def plan(self, request: Request) -> Response:
        tenant = self.tenant()
        goal = requests.Request(action=self.action).goal
        return planned(request, tenant, plan_for(tenant, goal), sql=self.query["sql"])

    def accept(self, request: Request) -> Response:
        body = self.body(WholeTenantRequestSerializer).validated_data
        tenant, asked = self.tenant(), asking(request, self.action)
        require_confirmed(body["confirm"], tenant.tenant_id)
        if digest := expected_digest(request):
            requests.require_plan(tenant, asked.goal, digest)
        run = requests.request_run(tenant, asked, expected_digest=digest)
        self.object_id = str(run.pk)
        return accepted_run(request, run)


class TenantResetView(WholeTenantView):
    action = Action.RESET
    action_name = "reset_tenant"

    @documented("get_reset_plan", {200: PlanSerializer}, errors=PLAN_ERRORS, parameters=[SqlQuerySerializer, docs.ETAG])
    def get(self, request: Request, tenant_id: str) -> Response:
        return self.plan(request)

    @documented(
        "reset_tenant",
        {202: MigrationRunSerializer},
        errors=RUN_ERRORS,
        request=WholeTenantRequestSerializer,
        parameters=RUN_PARAMETERS,
    )
    @accepting
    def post(self, request: Request, tenant_id: str) -> Response:
        return self.accept(request)


class TenantRefreshView(WholeTenantView):
    action = Action.REFRESH
    action_name = "refresh_tenant"

    @documented(
        "get_refresh_plan", {200: PlanSerializer}, errors=PLAN_ERRORS, parameters=[SqlQuerySerializer, docs.ETAG]
    )
    def get(self, request: Request, tenant_id: str) -> Response:
        return self.plan(request)

    @documented(
        "refresh_tenant",
        {202: MigrationRunSerializer},
        errors=RUN_ERRORS,
        request=WholeTenantRequestSerializer,
        parameters=RUN_PARAMETERS,
    )
    @accepting
    def post(self, request: Request, tenant_id: str) -> Response:
        return self.accept(request)


class WholeTenantsView(ServiceView):
    required_roles: ClassVar = {"POST": Role.ADMIN}
    action: ClassVar[Action]

    def accept(self, request: Request) -> Response:
        body = self.body(WholeTenantsRequestSerializer).validated_data
        asked = asking(request, self.action)
        selector = Selector.from_dict(body["selector"]).seeded()
        strategy = Strategy.from_dict(body["strategy"])
        tenants = select(selector)
        if body["dry_run"] or "confirm" not in body:
            preview = preview_rollout(tenants, asked, strategy=strategy, selector=selector)
            return previewed(preview, dry_run=body["dry_run"])
        rollout = requests.request_rollout(
            tenants, asked, strategy=strategy, selector=selector, confirmed=body["confirm"]
        )
        self.object_id = str(rollout.pk)
        return accepted_rollout(request, rollout)


def previewed(preview: Preview, *, dry_run: bool) -> Response:
    if not dry_run:
        require_confirmed(None, preview.arrangement.total)
    return Response(RolloutPreviewSerializer(preview).data)


class ResetAllView(WholeTenantsView):
    action = Action.RESET
    action_name = "reset_all_tenants"

    @documented(
        "reset_all_tenants",
        {200: RolloutPreviewSerializer, 202: RolloutSerializer},
        errors=[409, 422, 503],
        request=WholeTenantsRequestSerializer,
        parameters=ROLLOUT_PARAMETERS,
    )
    @accepting
    def post(self, request: Request) -> Response:
        return self.accept(request)


class RefreshAllView(WholeTenantsView):
    action = Action.REFRESH
    action_name = "refresh_all_tenants"

    @documented(
        "refresh_all_tenants",
        {200: RolloutPreviewSerializer, 202: RolloutSerializer},
        errors=[409, 422, 503],
        request=WholeTenantsRequestSerializer,
        parameters=ROLLOUT_PARAMETERS,
    )
    @accepting
    def post(self, request: Request) -> Response:
        return self.accept(request)


class RolloutRollbackView(ServiceView):
    required_roles: ClassVar = {"POST": Role.ADMIN}
    action_name = "rollback_rollout"

    @documented(
        "rollback_rollout",
        {200: RolloutPreviewSerializer, 202: RolloutSerializer},
        errors=[404, 409, 422, 503],
        request=RollbackRolloutRequestSerializer,
        parameters=ROLLOUT_PARAMETERS,
    )
    @accepting
    def post(self, request: Request, rollout_id: int) -> Response:
        body = self.body(RollbackRolloutRequestSerializer).validated_data
        undone, strategy = get_rollout(rollout_id), Strategy.from_dict(body["strategy"])
        if body["dry_run"] or "confirm" not in body:
            return previewed(preview_rollout_rollback(undone, strategy=strategy), dry_run=body["dry_run"])
        rollout = request_rollout_rollback(
            undone, asking(request, Action.ROLLBACK), strategy=strategy, confirmed=body["confirm"]
        )
        self.object_id = str(rollout.pk)
        return accepted_rollout(request, rollout)
