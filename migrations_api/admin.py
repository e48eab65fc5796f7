from typing import Any, Final

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.module_loading import import_string
from rest_framework_api_key.admin import APIKeyModelAdmin
from rest_framework_api_key.models import APIKey

from migrations_api.models import (
    ApiToken,
    AppliedSet,
    AuditEntry,
    IdempotencyRecord,
    MigrationRun,
    Rollout,
    RunStep,
    TenantObservation,
)
from migrations_api.models.access import TOKEN_LIFETIME
from tenants.admin import ReadOnlyAdmin

# Every command of a project with the admin loads this module; REST framework is not for them.
RECORD: Final = "migrations_api.rest.audit.record"

# Importing the library's admin has just registered its own keys, which open nothing here.
admin.site.unregister(APIKey)


@admin.register(ApiToken)
class ApiTokenAdmin(APIKeyModelAdmin):
    """The key is shown once, after it was made. What a token may do is settled then; it can only be revoked."""

    fields = ("prefix", "name", "user", "scope", "expiry_date", "revoked", "created", "last_used_at")
    list_display = ("prefix", "name", "user", "scope", "created", "expiry_date", "last_used_at", "revoked")  # type: ignore[assignment]
    list_filter = ("scope", "revoked")  # type: ignore[assignment]
    list_select_related = ("user",)
    raw_id_fields = ("user",)
    search_fields = ("name", "prefix", f"user__{get_user_model().USERNAME_FIELD}")  # type: ignore[assignment]

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"expiry_date": timezone.now() + TOKEN_LIFETIME, **super().get_changeform_initial_data(request)}

    def get_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        return self.fields if obj else ("name", "user", "scope", "expiry_date")

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> tuple[str, ...]:
        settled = ("prefix", "user", "scope", "expiry_date", "created", "last_used_at") if obj else ()
        return tuple({*settled, *super().get_readonly_fields(request, obj)})  # type: ignore[arg-type]

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: ApiToken, form: Any, change: bool) -> None:  # type: ignore[override]  # noqa: FBT001
        if change:
            # Only what was edited: a form left open must not take back a revocation.
            obj.save(update_fields=form.changed_data)
        else:
            super().save_model(request, obj, form, change)
        action = "change_api_token" if change else "create_api_token"
        action = "revoke_api_token" if "revoked" in form.changed_data else action
        import_string(RECORD)(request, HttpResponse(), action=action, object_id=obj.prefix)


class RunStepInline(admin.TabularInline):  # type: ignore[type-arg]
    model = RunStep
    fields = ("position", "app_label", "name", "backwards", "atomic", "state", "started_at", "seconds")
    can_delete = False
    max_num = 0

    def has_add_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False


@admin.register(MigrationRun)
class MigrationRunAdmin(ReadOnlyAdmin):
    # By id: a join would leave out the runs of tenants that were forgotten.
    list_display = ("id", "tenant_id", "state", "error_code", "failed_step", "rollout_id", "requested_by", "created_at")
    list_filter = ("state", "requested_via")
    # Not tenant_id__exact: for that, Django 6.1 asks for a tenant that still exists.
    search_fields = ("tenant__tenant_id__exact",)
    inlines = (RunStepInline,)


@admin.register(Rollout)
class RolloutAdmin(ReadOnlyAdmin):
    list_display = ("id", "state", "app_label", "migration_name", "requested_by", "requested_via", "created_at")
    list_filter = ("state",)


@admin.register(AppliedSet)
class AppliedSetAdmin(ReadOnlyAdmin):
    list_display = ("fingerprint",)


@admin.register(TenantObservation)
class TenantObservationAdmin(ReadOnlyAdmin):
    list_display = ("tenant_id", "applied_id", "partial", "error_code", "observed_at")
    list_filter = ("partial",)
    search_fields = ("tenant__tenant_id__exact",)


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    list_display = ("at", "actor", "token_prefix", "remote_address", "action", "object_id", "status", "outcome")
    search_fields = ("actor__exact", "token_prefix__exact", "request_id__exact")


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(ReadOnlyAdmin):
    list_display = ("key", "actor", "status", "created_at")
    search_fields = ("key__exact",)
