"""What clients and `--format json` see of rollouts, and how they say which tenants and how."""

from collections.abc import Mapping
from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from migrations_api.exceptions import InvalidOptions
from migrations_api.models import Rollout
from migrations_api.orchestrator import reports, selection
from migrations_api.orchestrator.selection import Shard
from migrations_api.orchestrator.strategy import FailureMode, OnError, Promotion
from migrations_api.serializers.fields import (
    AmountField,
    LabelsField,
    OldestObservationField,
    SecondsField,
    StatusField,
    StrictSerializer,
    TextField,
    WaitingForField,
    WaveField,
    WholeNumberField,
)
from migrations_api.serializers.plans import FleetPlanGroupSerializer, FleetPlanProblemSerializer
from migrations_api.serializers.runs import RunCountsSerializer, RunOptionsSerializer
from migrations_api.states import RunState
from tenants.models import Isolation


class SelectorSerializer(StrictSerializer):
    """Which tenants: those that fit everything given."""

    tenant_ids = serializers.ListField(child=TextField(max_length=63), required=False, allow_empty=False)
    exclude = serializers.ListField(child=TextField(max_length=63), required=False, help_text="Not these.")
    labels = LabelsField(required=False, help_text="Those that have all of these.")
    isolation = serializers.ChoiceField(choices=Isolation.choices, required=False)
    status = serializers.ListField(
        child=StatusField(), required=False, help_text="Those that stood at one of these when last looked at."
    )
    failed_in = WholeNumberField(required=False, min_value=1, help_text="Those that failed in that rollout.")
    unfinished_in = WholeNumberField(required=False, min_value=1, help_text="Those that this rollout has not migrated.")
    shard = serializers.RegexField(
        r"^[0-9]{1,5}/[0-9]{1,5}$",
        required=False,
        trim_whitespace=False,
        help_text="K/N: one of N parts, the same ones each time.",
    )
    sample = AmountField(required=False, help_text="So many of them, chosen by lot.")
    seed = WholeNumberField(required=False, min_value=0, max_value=2**31 - 1, help_text="Of the lot.")

    def validate_shard(self, value: str) -> str:
        try:
            return Shard.parse(value).value
        except InvalidOptions as error:
            raise serializers.ValidationError(error.message) from error


class StrategySerializer(StrictSerializer):
    """How a rollout goes through its tenants. Percentages are of all its tenants."""

    max_concurrency = AmountField(required=False, help_text="At most so many in flight.")
    max_per_database = WholeNumberField(
        required=False, min_value=1, max_value=10_000, help_text="At most so many in flight on one database server."
    )
    max_failures = AmountField(
        required=False, help_text="No tenant is started once more than so many have failed; fractions are dropped."
    )
    failure_mode = serializers.ChoiceField(
        choices=[mode.value for mode in FailureMode],
        required=False,
        help_text="strict: never more in flight than may fail.",
    )
    on_error = serializers.ChoiceField(
        choices=[each.value for each in OnError],
        required=False,
        help_text="What is done once more than max_failures have failed. continue: nothing, unless that is given.",
    )
    canary = WaveField(required=False, help_text="The first wave: a number, a percentage, or those with some labels.")
    waves = serializers.ListField(
        child=WaveField(), required=False, max_length=100, help_text="Those after it; the last one is the rest."
    )
    bake_time = SecondsField(required=False, help_text="Seconds between the end of a wave and the next.")
    promotion = serializers.ChoiceField(
        choices=[each.value for each in Promotion],
        required=False,
        help_text="manual: each wave after the first is opened by promote.",
    )
    progress_deadline = SecondsField(
        required=False, min_value=0.001, help_text="Seconds in which some tenant has to end."
    )


class ProgressSerializer(serializers.Serializer[Any]):
    ended = serializers.IntegerField()
    in_flight = serializers.IntegerField()
    pending = serializers.IntegerField()
    per_minute = serializers.FloatField(
        allow_null=True, help_text="How many tenants ended lately; null unless it is running."
    )
    eta_seconds = serializers.FloatField(
        allow_null=True, help_text="When it ends at this speed; null where nobody knows."
    )


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    """`context["reports"]` has what came of it by the rollout's id."""

    options = RunOptionsSerializer()
    strategy = StrategySerializer()
    retry_of = serializers.IntegerField(source="retry_of_id", allow_null=True)
    undoes = serializers.IntegerField(
        source="undoes_id", allow_null=True, help_text="The rollout whose runs this one rolls back."
    )
    waiting_for = serializers.SerializerMethodField()
    runs = serializers.SerializerMethodField()
    progress = serializers.SerializerMethodField()

    class Meta:
        model = Rollout
        fields: ClassVar = [
            "id",
            "action",
            "state",
            "waiting_for",
            "stop_code",
            "stop_reason",
            "app_label",
            "migration_name",
            "options",
            "strategy",
            "requested_by",
            "requested_via",
            "retry_of",
            "undoes",
            "created_at",
            "started_at",
            "finished_at",
            "total",
            "open_wave",
            "last_wave",
            "next_wave_at",
            "runs",
            "progress",
        ]
        read_only_fields = fields

    @extend_schema_field(WaitingForField())
    def get_waiting_for(self, rollout: Rollout) -> str | None:
        return reports.waiting_for(rollout) or None

    @extend_schema_field(RunCountsSerializer)
    def get_runs(self, rollout: Rollout) -> dict[str, int]:
        return _run_counts(self.context["reports"][rollout.pk].counts)

    @extend_schema_field(ProgressSerializer)
    def get_progress(self, rollout: Rollout) -> Any:
        return ProgressSerializer(self.context["reports"][rollout.pk].progress).data


def _run_counts(counts: Mapping[str, int]) -> dict[str, int]:
    return {state: counts.get(state, 0) for state in RunState.values}


class WaveSerializer(serializers.Serializer[Any]):
    number = serializers.IntegerField(help_text="0 is that of the shared tenants.")
    total = serializers.IntegerField()
    runs = serializers.SerializerMethodField()

    @extend_schema_field(RunCountsSerializer)
    def get_runs(self, wave: reports.Wave) -> dict[str, int]:
        return _run_counts(wave.counts)


class RolloutDetailSerializer(RolloutSerializer):
    """With what lists leave out."""

    # It may name ten thousand tenants.
    selector = SelectorSerializer()
    waves = serializers.SerializerMethodField()
    newcomers = serializers.SerializerMethodField(
        help_text="Tenants created since that its selector fits and that are not in it; the first hundred."
    )

    class Meta(RolloutSerializer.Meta):
        fields: ClassVar = [*RolloutSerializer.Meta.fields, "selector", "waves", "newcomers"]
        read_only_fields = fields

    @extend_schema_field(WaveSerializer(many=True))
    def get_waves(self, rollout: Rollout) -> Any:
        return WaveSerializer(reports.waves(rollout), many=True).data

    def get_newcomers(self, rollout: Rollout) -> list[str]:
        return selection.newcomers(rollout)


class PreviewWaveSerializer(serializers.Serializer[Any]):
    number = serializers.IntegerField(help_text="0 is that of the shared tenants.")
    tenant_count = serializers.IntegerField()
    tenant_ids = serializers.ListField(child=serializers.CharField())


class LeftOutSerializer(serializers.Serializer[Any]):
    tenant_id = serializers.CharField(source="tenant.tenant_id")
    code = serializers.CharField()
    reason = serializers.CharField()


class RolloutPreviewSerializer(serializers.Serializer[Any]):
    """What a rollout would do, from the tenants as they were last looked at."""

    total = serializers.IntegerField(source="arrangement.total")
    selector = serializers.SerializerMethodField(help_text="As given, with the seed of a sample.")
    waves = serializers.SerializerMethodField()
    left_out = LeftOutSerializer(source="arrangement.left_out", many=True, help_text="Selected and not started.")
    max_failures = serializers.IntegerField(allow_null=True, help_text="How many may fail; null is any number.")
    max_concurrency = serializers.IntegerField(allow_null=True, help_text="null is that of the coordinator.")
    groups = FleetPlanGroupSerializer(source="plan.groups", many=True)
    problems = FleetPlanProblemSerializer(source="plan.problems", many=True)
    oldest_observation = OldestObservationField(source="plan.oldest_observation")

    @extend_schema_field(SelectorSerializer)
    def get_selector(self, preview: Any) -> Any:
        return preview.selector.as_dict()

    @extend_schema_field(PreviewWaveSerializer(many=True))
    def get_waves(self, preview: Any) -> Any:
        return [
            {"number": number, "tenant_count": len(tenants), "tenant_ids": [tenant.tenant_id for tenant in tenants]}
            for number, tenants in sorted(preview.arrangement.waves.items())
        ]


class FailureGroupSerializer(serializers.Serializer[Any]):
    """Runs of a rollout that failed in the same way."""

    count = serializers.IntegerField()
    error_code = serializers.CharField()
    error_class = serializers.CharField()
    sqlstate = serializers.CharField()
    failed_step = serializers.CharField()
    example_run_id = serializers.IntegerField()
    message = serializers.CharField(help_text="That of the example run.")
