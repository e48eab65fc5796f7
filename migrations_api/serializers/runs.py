"""What clients and `--format json` see of runs."""

from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from migrations_api.models import MigrationRun, RepairWay, RunStep
from migrations_api.states import RunState


class RunStepSerializer(serializers.ModelSerializer[RunStep]):
    class Meta:
        model = RunStep
        fields: ClassVar = [
            "app_label",
            "name",
            "backwards",
            "atomic",
            "state",
            "started_at",
            "seconds",
            "operation",
            "statements",
        ]
        read_only_fields = fields


class RunOptionsSerializer(serializers.Serializer[Any]):
    """The options that differ from their defaults."""

    fake = serializers.BooleanField(required=False)
    fake_initial = serializers.BooleanField(required=False)
    run_syncdb = serializers.BooleanField(required=False)
    prune = serializers.BooleanField(required=False)
    template = serializers.BooleanField(required=False)
    allow_backwards = serializers.BooleanField(required=False)


RUN_FIELDS = [
    "id",
    "tenant_id",
    "rollout_id",
    "action",
    "retry_of",
    "undoes",
    "repair_of",
    "repair_way",
    "repair_reason",
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
    "cancel_requested",
    "interrupt_requested",
    "wave",
    "plan_digest",
    "applied_before",
    "applied_after",
    "error_code",
    "error_class",
    "sqlstate",
    "failed_step",
    "message",
    "findings",
]


class FindingSerializer(serializers.Serializer[Any]):
    code = serializers.CharField()
    detail = serializers.CharField()


class MigrationRunSummarySerializer(serializers.ModelSerializer[MigrationRun]):
    """A run without its steps, as lists have it."""

    tenant_id = serializers.CharField()
    rollout_id = serializers.IntegerField(allow_null=True)
    retry_of = serializers.IntegerField(source="retry_of_id", allow_null=True)
    undoes = serializers.IntegerField(
        source="undoes_id", allow_null=True, help_text="The run whose migrations a rollback undoes."
    )
    repair_of = serializers.IntegerField(source="repair_of_id", allow_null=True)
    repair_way = serializers.SerializerMethodField()
    options = RunOptionsSerializer()
    findings = FindingSerializer(many=True)
    applied_before = serializers.CharField(
        source="applied_before_id", allow_null=True, help_text="Fingerprint of the applied set that the run found."
    )
    applied_after = serializers.CharField(
        source="applied_after_id", allow_null=True, help_text="Fingerprint of the applied set that the run left."
    )

    class Meta:
        model = MigrationRun
        fields: ClassVar = RUN_FIELDS
        read_only_fields = fields

    @extend_schema_field(serializers.ChoiceField(choices=RepairWay.choices, allow_null=True))
    def get_repair_way(self, run: MigrationRun) -> str | None:
        return run.repair_way or None


class MigrationRunSerializer(MigrationRunSummarySerializer):
    steps = RunStepSerializer(many=True)

    class Meta(MigrationRunSummarySerializer.Meta):
        fields: ClassVar = [*RUN_FIELDS, "steps"]
        read_only_fields = fields


class RunCountsSerializer(serializers.Serializer[Any]):
    """How many of the rollout's runs are in each state."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        return {state: serializers.IntegerField() for state in RunState.values}
