"""What a partial run has left, and the ways out."""

from typing import Any

from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers

from migrations_api.models import RepairWay
from migrations_api.serializers.fields import ReasonField, StrictSerializer


class OperationStandingSerializer(serializers.Serializer[Any]):
    description = serializers.CharField()
    standing = serializers.ChoiceField(choices=["done", "open", "unclear"])


class RepairWaySerializer(serializers.Serializer[Any]):
    way = serializers.ChoiceField(source="name", choices=RepairWay.choices)
    possible = serializers.BooleanField()
    does = serializers.CharField(help_text="What it does, or why it is not possible.")


class DiagnosisSerializer(serializers.Serializer[Any]):
    """What is there of the step in which the run stopped, and what is missing; read from the tenant now."""

    step = serializers.CharField()
    backwards = serializers.BooleanField()
    recorded = serializers.BooleanField(help_text="Whether django_migrations has the step.")
    operations = OperationStandingSerializer(many=True)
    invalid_indexes = serializers.ListField(child=serializers.CharField())
    ways = RepairWaySerializer(many=True)


@extend_schema_serializer(component_name="Repair")
class RepairRequestSerializer(StrictSerializer):
    way = serializers.ChoiceField(choices=RepairWay.choices)
    reason = ReasonField(required=False, default="")
