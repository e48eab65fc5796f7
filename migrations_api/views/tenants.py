from typing import Any, ClassVar

from django.db.models import Q, QuerySet
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.models import RequestedVia, Role
from migrations_api.orchestrator import registration, requests
from migrations_api.orchestrator.batches import last_batches, migration_status
from migrations_api.orchestrator.fleet import plan_for
from migrations_api.orchestrator.holds import hold, release
from migrations_api.orchestrator.observations import statuses_filter, stored_standings
from migrations_api.plan import Target
from migrations_api.rest import docs
from migrations_api.rest.accepted import accepted_run, accepting
from migrations_api.rest.asking import request_of
from migrations_api.rest.base import ServiceView
from migrations_api.rest.docs import documented
from migrations_api.rest.idempotency import idempotent, idempotent_outside
from migrations_api.rest.pages import page_of
from migrations_api.rest.pagination import paginate
from migrations_api.rest.preconditions import expected_digest
from migrations_api.rest.pretending import planned
from migrations_api.rest.problems import Problem
from migrations_api.serializers.bodies import (
    CreateTenantRequestSerializer,
    EmptyRequestSerializer,
    MigrateRequestSerializer,
    ReasonRequestSerializer,
    UpdateTenantRequestSerializer,
)
from migrations_api.serializers.plans import PlanSerializer
from migrations_api.serializers.queries import (
    DeleteTenantQuerySerializer,
    TargetSqlQuerySerializer,
    TenantListQuerySerializer,
)
from migrations_api.serializers.runs import MigrationRunSerializer
from migrations_api.serializers.tenants import TenantMigrationSerializer, TenantSerializer
from tenants.models import Tenant
from tenants.names import validate_name


def tenant_data(tenants: list[Tenant]) -> Any:
    context = {"standings": stored_standings(tenants), "batches": last_batches([tenant.pk for tenant in tenants])}
    return TenantSerializer(tenants, many=True, context=context).data


class TenantsView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER, "POST": Role.ADMIN}
    query_serializers: ClassVar = {"GET": TenantListQuerySerializer}
    action_name = "create_tenant"

    @documented("list_tenants", {200: page_of("Tenant", TenantSerializer)}, parameters=[TenantListQuerySerializer])
    def get(self, request: Request) -> Response:
        found = _filtered(Tenant.objects.all(), self.query)
        return paginate(request, found, tenant_data, query=self.query, ordering=self.query["ordering"])

    @documented(
        "create_tenant",
        {201: TenantSerializer},
        errors=[409, 422, 502, 503],
        request=CreateTenantRequestSerializer,
        parameters=[docs.IDEMPOTENCY_KEY, docs.LOCATION],
    )
    @idempotent_outside
    def post(self, request: Request) -> Response:
        body = self.body(CreateTenantRequestSerializer).validated_data
        self.touched = [body["tenant_id"]]
        tenant = self._from_template(request, body) if body.pop("template") else registration.create(**body)
        location = request.build_absolute_uri(reverse("tenant", kwargs={"tenant_id": tenant.tenant_id}))
        return Response(tenant_data([tenant])[0], status=201, headers={"Location": location})

    def _from_template(self, request: Request, body: dict[str, Any]) -> Tenant:
        by = request.user.get_username()
        tenant, _ = registration.create_from_template(**body, by=by, via=RequestedVia.API)
        return tenant


class TenantView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER, "PATCH": Role.OPERATOR, "DELETE": Role.ADMIN}
    query_serializers: ClassVar = {"DELETE": DeleteTenantQuerySerializer}
    action_name = "change_tenant"

    @documented("get_tenant", {200: TenantSerializer}, errors=[404])
    def get(self, request: Request, tenant_id: str) -> Response:
        return Response(tenant_data([self.tenant()])[0])

    @documented("update_tenant", {200: TenantSerializer}, errors=[404, 422], request=UpdateTenantRequestSerializer)
    def patch(self, request: Request, tenant_id: str) -> Response:
        tenant = self.tenant()
        body = self.body(UpdateTenantRequestSerializer).validated_data
        validate_name(body.get("name", ""))
        Tenant.objects.filter(pk=tenant.pk).update(**body)
        return Response(tenant_data([self.tenant()])[0])

    @documented("delete_tenant", {204: None}, errors=[404, 409, 422, 502], parameters=[DeleteTenantQuerySerializer])
    def delete(self, request: Request, tenant_id: str) -> Response:
        tenant = self.tenant()
        if self.query["drop"] and self.query["confirm"] != tenant_id:
            raise Problem(422, "confirmation_required", f"To drop all its data, send confirm={tenant_id} as well.")
        registration.forget(tenant, drop=self.query["drop"])
        return Response(status=204)


class TenantHoldView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "hold_tenant"

    @documented(
        "hold_tenant",
        {200: TenantSerializer},
        errors=[404],
        request=ReasonRequestSerializer,
        parameters=[docs.IDEMPOTENCY_KEY],
    )
    @idempotent
    def post(self, request: Request, tenant_id: str) -> Response:
        reason = self.body(ReasonRequestSerializer).validated_data["reason"]
        hold(self.tenant(), by=request.user.get_username(), reason=reason)
        return Response(tenant_data([self.tenant()])[0])


class TenantReleaseView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "release_tenant"

    @documented(
        "release_tenant",
        {200: TenantSerializer},
        errors=[404, 409],
        request=EmptyRequestSerializer,
        parameters=[docs.IDEMPOTENCY_KEY],
    )
    @idempotent
    def post(self, request: Request, tenant_id: str) -> Response:
        self.body(EmptyRequestSerializer)
        release(self.tenant())
        return Response(tenant_data([self.tenant()])[0])


class TenantMigrationsView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}

    @documented("list_tenant_migrations", {200: TenantMigrationSerializer(many=True)}, errors=[404, 409, 502])
    def get(self, request: Request, tenant_id: str) -> Response:
        return Response(TenantMigrationSerializer(migration_status(self.tenant()), many=True).data)


class TenantPlanView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}
    query_serializers: ClassVar = {"GET": TargetSqlQuerySerializer}

    @documented(
        "get_tenant_plan",
        {200: PlanSerializer},
        errors=[404, 409, 422, 502, 503],
        parameters=[TargetSqlQuerySerializer, docs.ETAG],
    )
    def get(self, request: Request, tenant_id: str) -> Response:
        tenant, target = self.tenant(), dict(self.query)
        sql = target.pop("sql")
        return planned(request, tenant, plan_for(tenant, Target(**target)), sql=sql)


class TenantMigrateView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "migrate_tenant"

    @documented(
        "migrate_tenant",
        {202: MigrationRunSerializer},
        errors=[404, 409, 412, 422, 502, 503],
        request=MigrateRequestSerializer,
        parameters=[docs.IDEMPOTENCY_KEY, docs.IF_MATCH, docs.PREFER, docs.LOCATION],
    )
    @accepting
    def post(self, request: Request, tenant_id: str) -> Response:
        tenant = self.tenant()
        asked = request_of(request, self.body(MigrateRequestSerializer).validated_data, subject=tenant_id)
        if digest := expected_digest(request):
            requests.require_plan(tenant, asked.target, digest)
        run = requests.request_run(tenant, asked, expected_digest=digest)
        self.object_id = str(run.pk)
        return accepted_run(request, run)


def _filtered(tenants: QuerySet[Tenant], query: Any) -> QuerySet[Tenant]:
    if isolation := query.get("isolation"):
        tenants = tenants.filter(isolation=isolation)
    if status := query.get("status"):
        tenants = tenants.filter(statuses_filter(status))
    for label in query.get("label", []):
        key, _, value = label.partition("=")
        tenants = tenants.filter(labels__contains={key: value})
    if search := query.get("search"):
        tenants = tenants.filter(Q(tenant_id__icontains=search) | Q(name__icontains=search))
    return tenants
