"""What clients and `--format json` see of plans."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from migrations_api.executor.transcript import Transcript
from migrations_api.plan import Plan, Step
from migrations_api.plan.risk import RiskKind
from migrations_api.serializers.fields import OldestObservationField

RISK_KINDS = [(kind.value, kind.value) for kind in RiskKind]


class RiskSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=RISK_KINDS)
    operation = serializers.CharField()
    reason = serializers.CharField()


class StatementSerializer(serializers.Serializer[Any]):
    text = serializers.CharField(help_text="SQL as the server gets it, or what the opaque code is.")
    opaque = serializers.BooleanField(help_text="Python code: what it does with the tenant's rows is not shown.")


class StepSerializer(serializers.Serializer[Any]):
    app_label = serializers.CharField()
    name = serializers.CharField()
    backwards = serializers.BooleanField()
    atomic = serializers.BooleanField()
    reversible = serializers.BooleanField()
    fake = serializers.BooleanField(help_text="It was recorded without being run, and is undone in the same way.")
    operations = serializers.ListField(child=serializers.CharField())
    risks = RiskSerializer(many=True)
    statements = serializers.SerializerMethodField(help_text="In order; null unless the SQL is asked for.")

    @extend_schema_field(StatementSerializer(many=True, allow_null=True))
    def get_statements(self, step: Step) -> Any:
        transcript: Transcript | None = self.context.get("transcript")
        return StatementSerializer(transcript.of(step), many=True).data if transcript else None


class PlanSerializer(serializers.Serializer[Any]):
    """`context["transcript"]` has the SQL, if it was asked for."""

    plan_digest = serializers.CharField(source="digest")
    steps = StepSerializer(many=True)
    differences = serializers.SerializerMethodField(
        help_text="With the SQL: what the tenant's structure has (+) and lacks (-) beside what its migrations make. "
        "Where there is any, the SQL may name things otherwise than the tenant does. null unless asked for."
    )
    unknown = serializers.ListField(
        child=serializers.CharField(), help_text="Applied migrations that this code does not have: the tenant is ahead."
    )

    @extend_schema_field(serializers.ListField(child=serializers.CharField(), allow_null=True))
    def get_differences(self, plan: Plan) -> Any:
        transcript: Transcript | None = self.context.get("transcript")
        return list(transcript.differences) if transcript else None


class FleetPlanGroupSerializer(serializers.Serializer[Any]):
    """Tenants that stand at the same place, and their one plan."""

    plan = PlanSerializer()
    tenant_count = serializers.IntegerField()
    tenant_ids = serializers.ListField(child=serializers.CharField())


class FleetPlanProblemSerializer(serializers.Serializer[Any]):
    tenant_id = serializers.CharField()
    code = serializers.CharField()
    detail = serializers.CharField()


class FleetPlanSerializer(serializers.Serializer[Any]):
    groups = FleetPlanGroupSerializer(many=True)
    problems = FleetPlanProblemSerializer(many=True, help_text="Tenants for which no plan can be made.")
    oldest_observation = OldestObservationField()
