from django.contrib import admin
from django.urls import include, path

from migrations_api.views.documentation import DocsView, SchemaView

admin.site.site_header = admin.site.site_title = "Tenant migrations"
admin.site.site_url = "/docs"

urlpatterns = [
    path("", include("migrations_api.urls")),
    path("schema", SchemaView.as_view(), name="schema"),
    path("docs", DocsView.as_view(url_name="schema"), name="docs"),
    path("admin/", admin.site.urls),
]

handler400 = "migrations_api.rest.problems.bad_request"
handler403 = "migrations_api.rest.problems.permission_denied"
handler404 = "migrations_api.rest.problems.not_found"
handler500 = "migrations_api.rest.problems.server_error"
