"""What clients and `--format json` see of tenants, plans, runs and rollouts, and what they may send."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from django.db import DEFAULT_DB_ALIAS
from drf_spectacular.utils import extend_schema_field, extend_schema_serializer
from rest_framework import serializers

from migrations_api.models import MigrationRun, Rollout, RunStep
from migrations_api.orchestrator.fleet import TenantStatus
from migrations_api.plan.risk import RiskKind
from migrations_api.states import RunState
from tenants.models import Isolation, Tenant


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses fields that it does not know: a mistyped option must not be an option left out."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (unknown := sorted(set(data) - set(self.fields))):
            allowed = ", ".join(self.fields) or "(none)"
            message = f"Unknown field; allowed: {allowed}."
            raise serializers.ValidationError({name: [message] for name in unknown}, code="unknown_field")
        return super().to_internal_value(data)


RISK_KINDS = [(kind.value, kind.value) for kind in RiskKind]
LABEL_KEY = re.compile("[^=]{1,63}")
MAX_LABEL = 255  # characters of a label's value
STATUSES = [(status.value, status.value) for status in TenantStatus]


class StatusField(serializers.ChoiceField):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=STATUSES, **kwargs)


class TenantSerializer(serializers.ModelSerializer[Tenant]):
    """A tenant with where it stood when it was last looked at; `context["standings"]` has that by tenant id."""

    labels = serializers.DictField(child=serializers.CharField())
    status = serializers.SerializerMethodField()
    status_detail = serializers.SerializerMethodField()
    pending = serializers.SerializerMethodField(help_text="How many migrations are not applied.")
    observed_at = serializers.SerializerMethodField(help_text="When the tenant was last looked at.")

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
            "status",
            "status_detail",
            "pending",
            "observed_at",
        ]

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


class TenantMigrationSerializer(serializers.Serializer[Any]):
    app_label = serializers.CharField()
    name = serializers.CharField()
    applied = serializers.DateTimeField(allow_null=True, help_text="When; null while it is pending.")
    known = serializers.BooleanField(help_text="False for one that is applied and not in this code.")


class RunStepSerializer(serializers.ModelSerializer[RunStep]):
    class Meta:
        model = RunStep
        fields: ClassVar = ["app_label", "name", "backwards", "atomic", "state", "started_at", "seconds"]


class RunOptionsSerializer(serializers.Serializer[Any]):
    """The options that differ from their defaults."""

    fake = serializers.BooleanField(required=False)
    fake_initial = serializers.BooleanField(required=False)
    run_syncdb = serializers.BooleanField(required=False)
    prune = serializers.BooleanField(required=False)
    allow_backwards = serializers.BooleanField(required=False)


RUN_FIELDS = [
    "id",
    "tenant_id",
    "rollout_id",
    "retry_of",
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
    "plan_digest",
    "applied_before",
    "applied_after",
    "error_code",
    "error_class",
    "sqlstate",
    "failed_step",
    "message",
]


class MigrationRunSummarySerializer(serializers.ModelSerializer[MigrationRun]):
    """A run without its steps, as lists have it."""

    tenant_id = serializers.CharField()
    rollout_id = serializers.IntegerField(allow_null=True)
    retry_of = serializers.IntegerField(source="retry_of_id", allow_null=True)
    options = RunOptionsSerializer()
    applied_before = serializers.CharField(
        source="applied_before_id", allow_null=True, help_text="Fingerprint of the applied set that the run found."
    )
    applied_after = serializers.CharField(
        source="applied_after_id", allow_null=True, help_text="Fingerprint of the applied set that the run left."
    )

    class Meta:
        model = MigrationRun
        fields: ClassVar = RUN_FIELDS


class MigrationRunSerializer(MigrationRunSummarySerializer):
    steps = RunStepSerializer(many=True)

    class Meta(MigrationRunSummarySerializer.Meta):
        fields: ClassVar = [*RUN_FIELDS, "steps"]


class RunCountsSerializer(serializers.Serializer[Any]):
    """How many of the rollout's runs are in each state."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        return {state: serializers.IntegerField() for state in RunState.values}


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    options = RunOptionsSerializer()
    runs = serializers.SerializerMethodField()

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
            "runs",
        ]

    @extend_schema_field(RunCountsSerializer)
    def get_runs(self, rollout: Rollout) -> dict[str, int]:
        counts = self.context["counts"].get(rollout.pk, {})
        return {state: counts.get(state, 0) for state in RunState.values}


class FailureGroupSerializer(serializers.Serializer[Any]):
    """Runs of a rollout that failed in the same way."""

    count = serializers.IntegerField()
    error_code = serializers.CharField()
    error_class = serializers.CharField()
    sqlstate = serializers.CharField()
    failed_step = serializers.CharField()
    example_run_id = serializers.IntegerField()
    message = serializers.CharField(help_text="That of the example run.")


class StatusCountsSerializer(serializers.Serializer[Any]):
    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        return {status.value: serializers.IntegerField() for status in TenantStatus}


class FleetSerializer(serializers.Serializer[Any]):
    total = serializers.IntegerField()
    by_status = StatusCountsSerializer()
    by_database = serializers.DictField(child=serializers.IntegerField())
    starting_states = serializers.IntegerField(help_text="How many different sets of applied migrations there are.")
    oldest_observation = serializers.DateTimeField(allow_null=True)


class TextField(serializers.CharField):
    """A JSON string as it stands: a number is not text, and spaces around an id are not meant to be there."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trim_whitespace": False, **kwargs})

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class FlagField(serializers.BooleanField):
    """true or false, and none of the words that a form would take for them."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class QueryFlagField(serializers.BooleanField):
    def to_internal_value(self, data: Any) -> bool:
        if data not in {"true", "false"}:
            self.fail("invalid", input=data)
        return bool(data == "true")


class LabelsField(serializers.DictField):
    child = TextField(max_length=MAX_LABEL, allow_blank=True)

    def to_internal_value(self, data: Any) -> Any:
        labels = super().to_internal_value(data)
        if wrong := [key for key in labels if not LABEL_KEY.fullmatch(key)]:
            message = "A label's key takes 1 to 63 characters without '='."
            raise serializers.ValidationError({key: [message] for key in wrong})
        return labels


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


@extend_schema_serializer(component_name="UpdateTenant")
class UpdateTenantRequestSerializer(StrictSerializer):
    name = TextField(max_length=200, required=False)
    labels = LabelsField(required=False)


@extend_schema_serializer(component_name="Migrate")
class MigrateRequestSerializer(StrictSerializer):
    app_label = TextField(max_length=255, required=False, default="")
    migration_name = TextField(max_length=255, required=False, default="")
    fake = FlagField(required=False, default=False)
    fake_initial = FlagField(required=False, default=False)
    run_syncdb = FlagField(required=False, default=False)
    prune = FlagField(required=False, default=False)
    confirm = TextField(
        max_length=63,
        required=False,
        default="",
        help_text="The tenant id once more (migrate-all: the word all), for what undoes, fakes or prunes migrations.",
    )


@extend_schema_serializer(component_name="MigrateAll")
class MigrateAllRequestSerializer(MigrateRequestSerializer):
    isolation = serializers.ChoiceField(
        choices=Isolation.choices, required=False, allow_null=True, default=None, help_text="Only tenants of this kind."
    )
    on_error = serializers.ChoiceField(
        choices=Rollout.OnError.choices, required=False, default=Rollout.OnError.CONTINUE
    )


class EmptyRequestSerializer(StrictSerializer):
    """No fields; an empty body or {}."""


class PageQuerySerializer(serializers.Serializer[Any]):
    cursor = serializers.CharField(required=False, default="", allow_blank=True, max_length=1000)
    page_size = serializers.IntegerField(required=False, default=50, min_value=1, max_value=200)


class TenantListQuerySerializer(PageQuerySerializer):
    isolation = serializers.ChoiceField(choices=Isolation.choices, required=False)
    status = StatusField(required=False)
    label = serializers.ListField(  # type: ignore[assignment]  # the parameter's name, also a field attribute's
        child=serializers.RegexField(r"^[^=]+=.*$"), required=False, help_text="key=value; given twice, both must hold."
    )
    search = serializers.CharField(required=False, max_length=200, help_text="Part of the tenant id or name.")
    ordering = serializers.ChoiceField(
        choices=["tenant_id", "-tenant_id", "name", "-name", "created_at", "-created_at"],
        required=False,
        default="tenant_id",
    )


class TargetQuerySerializer(serializers.Serializer[Any]):
    app_label = serializers.CharField(required=False, max_length=255)
    migration_name = serializers.CharField(required=False, max_length=255)


class DeleteTenantQuerySerializer(serializers.Serializer[Any]):
    drop = QueryFlagField(required=False, default=False, help_text="Drop the schema or database as well.")
    confirm = serializers.CharField(required=False, default="", help_text="The tenant id once more, for drop.")


class RunListQuerySerializer(PageQuerySerializer):
    tenant_id = serializers.CharField(required=False, max_length=63)
    state = serializers.ChoiceField(choices=RunState.choices, required=False)


class RolloutRunsQuerySerializer(PageQuerySerializer):
    state = serializers.ChoiceField(choices=RunState.choices, required=False)
