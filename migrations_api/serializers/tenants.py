"""What clients and `--format json` see of tenants and of the fleet."""

from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from migrations_api.orchestrator.fleet import TenantStatus
from migrations_api.serializers.fields import LabelsField, OldestObservationField, StatusField
from tenants.models import Tenant


class TenantSerializer(serializers.ModelSerializer[Tenant]):
    """A tenant with where it stood when it was last looked at; `context["standings"]` has that by tenant id,
    and `context["batches"]` what brought it there.
    """

    labels = LabelsField()
    status = serializers.SerializerMethodField()
    status_detail = serializers.SerializerMethodField()
    pending = serializers.SerializerMethodField(help_text="How many migrations are not applied.")
    observed_at = serializers.SerializerMethodField(help_text="When the tenant was last looked at.")
    batch = serializers.SerializerMethodField(help_text="The newest run that has changed it; null if none has.")
    migrated_at = serializers.SerializerMethodField(help_text="When that run ended.")

    class Meta:
        model = Tenant
        fields: ClassVar = [
            "tenant_id",
            "name",
            "isolation",
            "database",
            "database_name",
            "schema_name",
            "role_name",
            "labels",
            "created_at",
            "provisioned_at",
            "held_at",
            "held_by",
            "hold_reason",
            "suspended",
            "status",
            "status_detail",
            "pending",
            "observed_at",
            "batch",
            "migrated_at",
        ]
        read_only_fields = fields

    @extend_schema_field(StatusField())
    def get_status(self, tenant: Tenant) -> str:
        return str(self.context["standings"][tenant.tenant_id].status)

    def get_status_detail(self, tenant: Tenant) -> str:
        return str(self.context["standings"][tenant.tenant_id].detail)

    def get_pending(self, tenant: Tenant) -> int:
        return int(self.context["standings"][tenant.tenant_id].pending)

    @extend_schema_field(serializers.DateTimeField(allow_null=True))
    def get_observed_at(self, tenant: Tenant) -> Any:
        return self.context["standings"][tenant.tenant_id].observed_at

    @extend_schema_field(serializers.IntegerField(allow_null=True))
    def get_batch(self, tenant: Tenant) -> int | None:
        found = self.context["batches"].get(tenant.tenant_id)
        return found.run_id if found else None

    @extend_schema_field(serializers.DateTimeField(allow_null=True))
    def get_migrated_at(self, tenant: Tenant) -> Any:
        found = self.context["batches"].get(tenant.tenant_id)
        return found.ended if found else None


class TenantMigrationSerializer(serializers.Serializer[Any]):
    app_label = serializers.CharField()
    name = serializers.CharField()
    applied = serializers.DateTimeField(allow_null=True, help_text="When; null while it is pending.")
    known = serializers.BooleanField(help_text="False for one that is applied and not in this code.")
    run_id = serializers.IntegerField(allow_null=True, help_text="The run that applied it; null if none did.")


class StatusCountsSerializer(serializers.Serializer[Any]):
    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        return {status.value: serializers.IntegerField() for status in TenantStatus}


class FleetSerializer(serializers.Serializer[Any]):
    total = serializers.IntegerField()
    by_status = StatusCountsSerializer()
    by_database = serializers.DictField(child=serializers.IntegerField())
    starting_states = serializers.IntegerField(help_text="How many different sets of applied migrations there are.")
    oldest_observation = OldestObservationField()
