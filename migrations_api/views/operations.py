"""For the machines that watch the service: is it alive, can it work, how does it do."""

import logging
from typing import ClassVar

from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.types import OpenApiTypes
from prometheus_client import CONTENT_TYPE_LATEST
from rest_framework.request import Request

from migrations_api.models import Role
from migrations_api.orchestrator.readiness import OK, checks
from migrations_api.rest.base import ServiceView
from migrations_api.rest.docs import documented
from migrations_api.rest.metrics import cache
from migrations_api.rest.problems import Problem, safe_only

logger = logging.getLogger(__name__)


@csrf_exempt
@never_cache
@safe_only
def healthz(request: HttpRequest) -> JsonResponse:
    """The process lives; says nothing of the database."""
    return JsonResponse({"status": OK})


@csrf_exempt
@never_cache
@safe_only
def readyz(request: HttpRequest) -> JsonResponse:
    found = checks()
    ready = set(found.values()) == {OK}
    return JsonResponse({"status": OK if ready else "not ready", "checks": found}, status=200 if ready else 503)


class MetricsView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}

    @documented("get_metrics", {(200, "text/plain"): OpenApiTypes.STR}, errors=[503])
    def get(self, request: Request) -> HttpResponse:
        try:
            page = cache.page()
        except DatabaseError as error:
            logger.warning("the metrics cannot be read", exc_info=True)
            raise Problem(503, "control_plane_unreachable", "The control plane cannot be read.") from error
        return HttpResponse(page, content_type=CONTENT_TYPE_LATEST)
