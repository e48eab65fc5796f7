"""What clients and `--format json` see of tenants, plans and runs."""

from typing import ClassVar

from rest_framework import serializers

from migrations_api.models import MigrationRun, Rollout, RunStep
from tenants.models import Tenant


class TenantSerializer(serializers.ModelSerializer[Tenant]):
    class Meta:
        model = Tenant
        fields: ClassVar = [
            "tenant_id",
            "name",
            "isolation",
            "database",
            "database_name",
            "schema_name",
            "labels",
            "created_at",
            "provisioned_at",
        ]


class StepSerializer(serializers.Serializer):  # type: ignore[type-arg]  # of a dataclass, not a model
    app_label = serializers.CharField()
    name = serializers.CharField()
    backwards = serializers.BooleanField()
    atomic = serializers.BooleanField()
    reversible = serializers.BooleanField()
    operations = serializers.ListField(child=serializers.CharField())


class PlanSerializer(serializers.Serializer):  # type: ignore[type-arg]  # of a dataclass, not a model
    plan_digest = serializers.CharField(source="digest")
    steps = StepSerializer(many=True)
    unknown = serializers.ListField(child=serializers.CharField())


class RunStepSerializer(serializers.ModelSerializer[RunStep]):
    class Meta:
        model = RunStep
        fields: ClassVar = ["app_label", "name", "backwards", "atomic", "state", "started_at", "seconds"]


class MigrationRunSerializer(serializers.ModelSerializer[MigrationRun]):
    tenant_id = serializers.CharField()
    rollout_id = serializers.IntegerField(allow_null=True)
    applied_before = serializers.CharField(source="applied_before_id", allow_null=True)
    applied_after = serializers.CharField(source="applied_after_id", allow_null=True)
    steps = RunStepSerializer(many=True)

    class Meta:
        model = MigrationRun
        fields: ClassVar = [
            "id",
            "tenant_id",
            "rollout_id",
            "state",
            "waiting_cause",
            "app_label",
            "migration_name",
            "options",
            "requested_by",
            "requested_via",
            "created_at",
            "started_at",
            "finished_at",
            "attempt",
            "plan_digest",
            "applied_before",
            "applied_after",
            "steps",
            "error_code",
            "error_class",
            "sqlstate",
            "failed_step",
            "message",
        ]


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    class Meta:
        model = Rollout
        fields: ClassVar = [
            "id",
            "state",
            "app_label",
            "migration_name",
            "options",
            "on_error",
            "requested_by",
            "requested_via",
            "created_at",
            "started_at",
            "finished_at",
        ]
