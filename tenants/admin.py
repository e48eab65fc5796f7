from typing import Any, ClassVar

from django.contrib import admin
from django.core.paginator import Paginator
from django.db import models
from django.http import HttpRequest
from django.utils.functional import cached_property

from tenants.models import Tenant

COUNTED_ROWS = 10_000


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts, and leads to, the first rows only: a page must not cost more because millions lie behind it."""

    @cached_property
    def count(self) -> int:
        rows: models.QuerySet[models.Model] = self.object_list  # type: ignore[assignment]  # the admin gives a queryset
        return rows[:COUNTED_ROWS].count()


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Records to look at: nobody changes them here, superusers neither."""

    actions = None
    paginator = BoundedPaginator
    show_full_result_count = False
    sortable_by: ClassVar[tuple[str, ...]] = ()

    def get_fields(self, request: HttpRequest, obj: models.Model | None = None) -> list[Any]:
        # The ids rather than the rows they point to: no query for each, and a tenant may be gone.
        return [field.attname for field in self.opts.concrete_fields]

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> list[Any]:
        return self.get_fields(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False


@admin.register(Tenant)
class TenantAdmin(ReadOnlyAdmin):
    list_display = ("tenant_id", "name", "isolation", "database", "schema_name", "database_name", "provisioned_at")
    list_filter = ("isolation",)
    search_fields = ("tenant_id__exact", "name__istartswith")
