"""What clients and `--format json` see of plans."""

from typing import Any

from rest_framework import serializers

from migrations_api.plan.risk import RiskKind

RISK_KINDS = [(kind.value, kind.value) for kind in RiskKind]


class RiskSerializer(serializers.Serializer[Any]):
    kind = serializers.ChoiceField(choices=RISK_KINDS)
    operation = serializers.CharField()
    reason = serializers.CharField()


class StepSerializer(serializers.Serializer[Any]):
    app_label = serializers.CharField()
    name = serializers.CharField()
    backwards = serializers.BooleanField()
    atomic = serializers.BooleanField()
    reversible = serializers.BooleanField()
    operations = serializers.ListField(child=serializers.CharField())
    risks = RiskSerializer(many=True)


class PlanSerializer(serializers.Serializer[Any]):
    plan_digest = serializers.CharField(source="digest")
    steps = StepSerializer(many=True)
    unknown = serializers.ListField(
        child=serializers.CharField(), help_text="Applied migrations that this code does not have: the tenant is ahead."
    )


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
