from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any, ClassVar, Final, Self

from django.db import models
from django.db.models import Q

from migrations_api.plan import Applied, fingerprint
from migrations_api.states import (
    ACTIVE_RUN_STATES,
    IN_FLIGHT_RUN_STATES,
    ROLLOUT_TRANSITIONS,
    RUN_TRANSITIONS,
    RolloutState,
    RunState,
    StepState,
)
from tenants.models import Tenant


class RequestedVia(models.TextChoices):
    COMMAND = "command"
    API = "api"


class Action(models.TextChoices):
    """What a run does to its tenant, and a rollout to each of its tenants.

    `rollback` undoes what another run applied; `reset` takes every app to zero, and `refresh` forwards from there.
    """

    MIGRATE = "migrate"
    ROLLBACK = "rollback"
    RESET = "reset"
    REFRESH = "refresh"
    REPAIR = "repair"


# Options with which a run leaves applied what receivers of post_migrate were not told of.
RECORDING: Final = ("fake", "fake_initial", "prune")


class RepairWay(models.TextChoices):
    """How a tenant that stands between two migrations is brought to one of them."""

    RECORD = "record"
    REDO = "redo"
    UNDO = "undo"
    MARK = "mark"


class AppliedSet(models.Model):
    """A set of applied migrations, named by its content: thousands of tenants stand at a few of them."""

    fingerprint = models.CharField(max_length=64, primary_key=True)
    migrations = models.JSONField()

    def __str__(self) -> str:
        return self.fingerprint[:12]

    @staticmethod
    def store(applied: Applied) -> str:
        """The set's fingerprint, under which it can be read from now on."""
        rows = sorted([app_label, migration] for app_label, migration in applied)
        name = fingerprint(applied)
        AppliedSet.objects.bulk_create([AppliedSet(fingerprint=name, migrations=rows)], ignore_conflicts=True)
        return name

    @property
    def keys(self) -> Applied:
        return frozenset((app_label, name) for app_label, name in self.migrations)


class RolloutQuerySet(models.QuerySet["Rollout"]):
    def transition(self, action: str, **values: Any) -> bool:
        """Do `action` on the one rollout selected, if its state allows it; False if not."""
        sources, to = ROLLOUT_TRANSITIONS[action]
        return self.filter(state__in=sources).update(state=to, **values) == 1


class Rollout(models.Model):
    """One migrate-all: what was asked for, and how far its waves are. What came of it is in its runs."""

    state = models.CharField(max_length=9, choices=RolloutState, default=RolloutState.PENDING)
    action = models.CharField(max_length=8, choices=Action, default=Action.MIGRATE)
    # The one whose runs are rolled back.
    undoes = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, related_name="rollbacks")
    app_label = models.CharField(max_length=255, blank=True)
    migration_name = models.CharField(max_length=255, blank=True)
    options = models.JSONField(default=dict, blank=True)
    # As asked for; the tenants that were selected are those that have a run.
    selector = models.JSONField(default=dict, blank=True)
    strategy = models.JSONField(default=dict, blank=True)
    total = models.PositiveIntegerField(default=0, help_text="Tenants of the rollout, those left out included.")
    requested_by = models.CharField(max_length=150, blank=True)
    requested_via = models.CharField(max_length=7, choices=RequestedVia)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    retry_of = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, related_name="retries")
    open_wave = models.PositiveIntegerField(default=0, help_text="Runs of later waves are not started.")
    last_wave = models.PositiveIntegerField(default=0)
    next_wave_at = models.DateTimeField(null=True, help_text="When the next wave opens by itself.")
    awaits_promotion = models.BooleanField(default=False)
    promoted_fully = models.BooleanField(default=False, help_text="Waves open without waiting.")
    # Failures that somebody has seen and let pass by resuming; they no longer count against max_failures.
    pardoned = models.PositiveIntegerField(default=0)
    # Since then the rollout should have made progress.
    progress_at = models.DateTimeField(null=True)
    stop_code = models.CharField(max_length=50, blank=True, help_text="Why it was paused or stopped.")
    stop_reason = models.CharField(max_length=500, blank=True)
    # A command that was started for it carries it out; otherwise the coordinator does.
    foreground = models.BooleanField(default=False)
    # Whoever drives the rollout renews this; a rollout of which nobody does has lost its driver.
    lease_expires_at = models.DateTimeField(null=True)

    objects = RolloutQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"rollout {self.pk}"


class MigrationRunQuerySet(models.QuerySet["MigrationRun"]):
    def active(self) -> Self:
        return self.filter(state__in=ACTIVE_RUN_STATES)

    def in_flight(self) -> Self:
        """Those that a worker has."""
        return self.filter(state__in=IN_FLIGHT_RUN_STATES)

    def transition(self, action: str, **values: Any) -> int:
        """Do `action` on those of the runs whose state allows it; returns on how many."""
        sources, to = RUN_TRANSITIONS[action]
        return self.filter(state__in=sources).update(state=to, **values)

    def held_as(self, attempts: Mapping[int, int]) -> Self:
        """Those of the runs whose newest attempt that still is."""
        numbers = {number: [pk for pk, each in attempts.items() if each == number] for number in attempts.values()}
        held = (Q(pk__in=pks, attempt=number) for number, pks in numbers.items())
        return self.filter(reduce(or_, held, Q(pk__in=[])))

    def held_by(self, run_id: int, attempt: int) -> Self:
        """The run, while that attempt is its newest: the attempt number is a fencing token."""
        return self.filter(pk=run_id, attempt=attempt)


class MigrationRun(models.Model):
    """One tenant, one attempt to carry out a plan; kept when the tenant is forgotten."""

    # No index of their own: those below begin with them.
    tenant = models.ForeignKey(
        Tenant, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="runs"
    )
    rollout = models.ForeignKey(Rollout, on_delete=models.PROTECT, null=True, db_index=False, related_name="runs")
    wave = models.PositiveIntegerField(default=0)
    state = models.CharField(max_length=9, choices=RunState, default=RunState.PENDING)
    action = models.CharField(max_length=8, choices=Action, default=Action.MIGRATE)
    waiting_cause = models.CharField(max_length=500, blank=True)
    app_label = models.CharField(max_length=255, blank=True)
    migration_name = models.CharField(max_length=255, blank=True)
    options = models.JSONField(default=dict, blank=True)
    requested_by = models.CharField(max_length=150, blank=True)
    requested_via = models.CharField(max_length=7, choices=RequestedVia)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    attempt = models.PositiveIntegerField(default=0)
    # Its worker looks at this between two steps,
    cancel_requested = models.BooleanField(default=False)
    # and at this, about once a second, to cancel the statement that it is executing.
    interrupt_requested = models.BooleanField(default=False)
    retry_of = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, db_index=False, related_name="retries")
    # The run that a rollback takes back; none where it goes by steps, which may be those of several runs.
    undoes = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, db_index=False, related_name="rollbacks")
    # Newest ids of the tenant's permissions and content types before the run; empty where nobody looked.
    model_marks = models.JSONField(default=list, blank=True)
    # What a rollback was asked to undo, as batches.Batch has it.
    undo = models.JSONField(default=dict, blank=True)
    # A run that repairs what a partial one has left carries out no plan of its own.
    repair_of = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, db_index=False, related_name="repairs")
    repair_way = models.CharField(max_length=6, choices=RepairWay, blank=True)
    repair_reason = models.CharField(max_length=500, blank=True)
    lease_expires_at = models.DateTimeField(null=True)
    expected_digest = models.CharField(max_length=64, blank=True)
    plan_digest = models.CharField(max_length=64, blank=True)
    # Nobody looks for the runs of a set, and sets are not deleted.
    applied_before = models.ForeignKey(
        AppliedSet, on_delete=models.PROTECT, null=True, db_index=False, related_name="+"
    )
    applied_after = models.ForeignKey(AppliedSet, on_delete=models.PROTECT, null=True, db_index=False, related_name="+")
    error_code = models.CharField(max_length=50, blank=True)
    error_class = models.CharField(max_length=200, blank=True)
    sqlstate = models.CharField(max_length=5, blank=True)
    failed_step = models.CharField(max_length=511, blank=True)
    message = models.CharField(max_length=1000, blank=True)
    findings = models.JSONField(default=list, blank=True, help_text="What the run left that is worth knowing.")

    # Of one that was just claimed: the fingerprint of what the tenant's last run has left, if that has succeeded, and
    # receivers of post_migrate were told of all of it.
    left_before: str | None = None

    objects = MigrationRunQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["tenant"], condition=Q(state__in=sorted(ACTIVE_RUN_STATES)), name="one_active_run_per_tenant"
            ),
            models.UniqueConstraint(fields=["rollout", "tenant"], name="one_run_per_tenant_and_rollout"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["tenant", "-id"], name="run_by_tenant"),
            models.Index(fields=["state", "-id"], name="run_by_state"),
            models.Index(fields=["rollout", "id"], name="run_by_rollout"),
            models.Index(fields=["rollout", "state", "wave", "tenant"], name="run_by_rollout_wave"),
            models.Index(
                fields=["lease_expires_at"], condition=Q(state__in=sorted(ACTIVE_RUN_STATES)), name="run_by_lease"
            ),
            # Most runs come from no other; without these, to delete one would mean to read all.
            models.Index(fields=["retry_of"], condition=Q(retry_of__isnull=False), name="run_by_retried"),
            models.Index(fields=["undoes"], condition=Q(undoes__isnull=False), name="run_by_undone"),
            models.Index(fields=["repair_of"], condition=Q(repair_of__isnull=False), name="run_by_repaired"),
        ]

    def __str__(self) -> str:
        return f"run {self.pk}"

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE_RUN_STATES


class RunStep(models.Model):
    """One step of a run's plan. `running` in a run that has ended is where its worker stopped."""

    # The constraint's index begins with it.
    run = models.ForeignKey(MigrationRun, on_delete=models.CASCADE, db_index=False, related_name="steps")
    position = models.PositiveIntegerField()
    app_label = models.CharField(max_length=255)
    name = models.CharField(max_length=255)
    backwards = models.BooleanField(default=False)
    atomic = models.BooleanField(default=True)
    state = models.CharField(max_length=7, choices=StepState, default=StepState.PENDING)
    started_at = models.DateTimeField(null=True)
    seconds = models.FloatField(null=True, help_text="How long the step took.")
    # The journal of a step that is not atomic: the operations before this one are done, and of this one so many
    # statements were begun and not refused.
    operation = models.PositiveIntegerField(null=True, help_text="The operation in flight; those before it are done.")
    statements = models.PositiveIntegerField(default=0, help_text="Statements of it that were begun.")
    first_operation = models.PositiveIntegerField(null=True, help_text="The first that has begun a statement.")

    class Meta:
        ordering: ClassVar = ["position"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["run", "position"], name="step_position_unique")]

    def __str__(self) -> str:
        return f"{self.app_label}.{self.name}"
