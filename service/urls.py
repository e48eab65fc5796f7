from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerView

urlpatterns = [
    path("", include("migrations_api.urls")),
    path("schema", SpectacularJSONAPIView.as_view(), name="schema"),
    path("docs", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path("admin/", admin.site.urls),
]

handler400 = "migrations_api.rest.problems.bad_request"
handler403 = "migrations_api.rest.problems.permission_denied"
handler404 = "migrations_api.rest.problems.not_found"
handler500 = "migrations_api.rest.problems.server_error"
