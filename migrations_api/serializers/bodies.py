"""What clients send."""

from django.db import DEFAULT_DB_ALIAS
from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers

from migrations_api.serializers.fields import (
    FlagField,
    LabelsField,
    ReasonField,
    StrictSerializer,
    TextField,
    WholeNumberField,
)
from migrations_api.serializers.rollouts import SelectorSerializer, StrategySerializer
from tenants.models import Isolation


@extend_schema_serializer(component_name="CreateTenant")
class CreateTenantRequestSerializer(StrictSerializer):
    tenant_id = TextField(max_length=63)
    name = TextField(max_length=200, required=False, default="")
    isolation = serializers.ChoiceField(choices=Isolation.choices)
    database = TextField(max_length=63, required=False, default=DEFAULT_DB_ALIAS)
    labels = LabelsField(required=False, default=dict)
    provision = FlagField(
        required=False,
        default=True,
        help_text="Create the schema or database; otherwise the tenant is only registered.",
    )
    template = FlagField(
        required=False,
        default=False,
        help_text="Ask for its migration at once, by a run that copies a template where that is exact.",
    )


@extend_schema_serializer(component_name="UpdateTenant")
class UpdateTenantRequestSerializer(StrictSerializer):
    name = TextField(max_length=200, required=False)
    labels = LabelsField(required=False)
    suspended = FlagField(required=False, help_text="Rollouts leave a suspended tenant out.")


@extend_schema_serializer(component_name="Migrate")
class MigrateRequestSerializer(StrictSerializer):
    app_label = TextField(max_length=255, required=False, default="")
    migration_name = TextField(max_length=255, required=False, default="")
    fake = FlagField(required=False, default=False)
    fake_initial = FlagField(required=False, default=False)
    run_syncdb = FlagField(required=False, default=False)
    prune = FlagField(required=False, default=False)
    template = FlagField(
        required=False,
        default=False,
        help_text="Copy a tenant that has nothing yet from a template, where that is exact; otherwise migrate it.",
    )
    confirm = TextField(
        max_length=63,
        required=False,
        default="",
        help_text="The tenant id once more (migrate-all: the word all), for what undoes, fakes or prunes migrations.",
    )


@extend_schema_serializer(component_name="MigrateAll")
class MigrateAllRequestSerializer(MigrateRequestSerializer):
    selector = SelectorSerializer(required=False, default=dict)
    strategy = StrategySerializer(required=False, default=dict)
    dry_run = FlagField(required=False, default=False, help_text="Only show what would be done.")


@extend_schema_serializer(component_name="WholeTenant")
class WholeTenantRequestSerializer(StrictSerializer):
    """What undoes migrations is confirmed by name."""

    confirm = TextField(max_length=63, help_text="The tenant id once more.")


@extend_schema_serializer(component_name="Rollback")
class RollbackRequestSerializer(WholeTenantRequestSerializer):
    """Without `run` and `steps`, the last run that applied something."""

    run = WholeNumberField(required=False, min_value=1, help_text="Undo what that run applied.")
    steps = WholeNumberField(required=False, min_value=1, help_text="Undo so many of the migrations applied last.")


@extend_schema_serializer(component_name="RollbackRollout")
class RollbackRolloutRequestSerializer(StrictSerializer):
    confirm = WholeNumberField(
        required=False, min_value=0, help_text="For how many tenants it is, as `total` of a dry run says."
    )
    strategy = StrategySerializer(required=False, default=dict)
    dry_run = FlagField(required=False, default=False, help_text="Only show what would be done.")


@extend_schema_serializer(component_name="WholeTenants")
class WholeTenantsRequestSerializer(RollbackRolloutRequestSerializer):
    selector = SelectorSerializer(required=False, default=dict)


class EmptyRequestSerializer(StrictSerializer):
    """No fields; an empty body or {}."""


@extend_schema_serializer(component_name="Cancel")
class CancelRequestSerializer(StrictSerializer):
    interrupt = FlagField(
        required=False, default=False, help_text="Cancel the statement in flight, too, instead of ending its step."
    )


@extend_schema_serializer(component_name="Promote")
class PromoteRequestSerializer(StrictSerializer):
    full = FlagField(required=False, default=False, help_text="All waves that follow, each when the last has ended.")


@extend_schema_serializer(component_name="Reason")
class ReasonRequestSerializer(StrictSerializer):
    reason = ReasonField()


@extend_schema_serializer(component_name="Pause")
class PauseRequestSerializer(StrictSerializer):
    reason = ReasonField(required=False, default="")
