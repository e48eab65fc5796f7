from typing import ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.models import Role
from migrations_api.orchestrator.observations import fleet_counts, fleet_plans
from migrations_api.plan import Target
from migrations_api.rest.base import ServiceView
from migrations_api.rest.docs import documented
from migrations_api.serializers.plans import FleetPlanSerializer
from migrations_api.serializers.queries import TargetQuerySerializer
from migrations_api.serializers.tenants import FleetSerializer


class FleetView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}

    @documented("get_fleet", {200: FleetSerializer})
    def get(self, request: Request) -> Response:
        return Response(FleetSerializer(fleet_counts()).data)


class FleetPlanView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}
    query_serializers: ClassVar = {"GET": TargetQuerySerializer}

    @documented("get_fleet_plan", {200: FleetPlanSerializer}, errors=[409, 422], parameters=[TargetQuerySerializer])
    def get(self, request: Request) -> Response:
        return Response(FleetPlanSerializer(fleet_plans(Target(**self.query))).data)
