"""The answer to what would be done: a plan, and the SQL of it if that is asked for."""

from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.models import Role
from migrations_api.orchestrator.pretending import pretend_apart
from migrations_api.plan import Plan
from migrations_api.rest.permissions import require_role
from migrations_api.rest.preconditions import etag
from migrations_api.serializers.plans import PlanSerializer
from tenants.models import Tenant


def planned(http: Request, tenant: Tenant, plan: Plan, *, sql: bool) -> Response:
    """Raises PermissionDenied for the SQL without the operator role: it costs a database and a process."""
    if sql:
        require_role(http, Role.OPERATOR, "The SQL of a plan needs the operator role.")
    transcript = pretend_apart(tenant, plan) if sql else None
    data = PlanSerializer(plan, context={"transcript": transcript}).data
    return Response(data, headers={"ETag": etag(plan.digest)})
