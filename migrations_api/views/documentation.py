"""The OpenAPI schema and the page that shows it."""

from typing import Any, ClassVar

from django.contrib.auth.views import redirect_to_login
from django.http import HttpResponseBase
from django.urls import reverse
from drf_spectacular.views import SpectacularSwaggerView
from rest_framework.exceptions import NotAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.models import Role
from migrations_api.rest.base import ProblemRenderer, ServiceView
from migrations_api.rest.docs import openapi
from migrations_api.rest.permissions import RolePermission


class SchemaView(ServiceView):
    required_roles: ClassVar = {"GET": Role.VIEWER}
    schema = None

    def get(self, request: Request) -> Response:
        return Response(openapi())


class DocsView(SpectacularSwaggerView):
    """Swagger UI; somebody who comes with a browser and without a session is sent to where one begins."""

    permission_classes = (RolePermission,)
    required_roles: ClassVar = {"GET": Role.VIEWER}
    schema = None

    def handle_exception(self, exc: Exception) -> Any:
        if isinstance(exc, NotAuthenticated) and self._is_browser():
            return self._to_login()
        renderer = ProblemRenderer()
        self.request.accepted_renderer, self.request.accepted_media_type = renderer, renderer.media_type
        return super().handle_exception(exc)

    def _is_browser(self) -> bool:
        return "text/html" in self.request.headers.get("Accept", "")

    def _to_login(self) -> HttpResponseBase:
        return redirect_to_login(self.request.get_full_path(), reverse("admin:login"))
