"""Writes what happens to a run, each time as a conditional UPDATE that only the newest attempt can make."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from django.db import transaction
from django.db.models import Max
from django.db.models.functions import Now
from django.utils.timezone import now

from migrations_api.dispatch.base import Emit, ShouldStop
from migrations_api.dispatch.history import describe_action, describe_target, run_ended
from migrations_api.events import Event, RunPlanned, RunPruned, StepFinished, StepStarted
from migrations_api.exceptions import InvalidTransition, PlanChanged
from migrations_api.executor import End, Failure, Outcome, StepResult
from migrations_api.executor.diagnosis import Journal
from migrations_api.models import AppliedSet, MigrationRun, RunStep
from migrations_api.orchestrator import observations
from migrations_api.plan import Applied, Plan, Step
from migrations_api.states import DONE_STEP_STATES, IN_FLIGHT_RUN_STATES, StepState
from tenants.binding import control_plane
from tenants.models import Tenant

logger = logging.getLogger(__name__)

_ENDS = {End.SUCCEEDED: "succeed", End.FAILED: "fail", End.PARTIAL: "leave_partial", End.CANCELED: "cancel"}


class AttemptLost(InvalidTransition):
    """Another worker has taken the run over."""

    code = "attempt_lost"


class Recorder:
    """The executor's observer for one attempt of one run.

    A run that is stopped because `should_stop` says so is canceled, or becomes pending again with `requeues`; one that
    a user cancels is canceled.
    """

    def __init__(self, run: MigrationRun, *, emit: Emit, should_stop: ShouldStop, requeues: bool = False) -> None:
        self.run = run
        self._told_to_stop = should_stop
        self._requeues = requeues
        self._emit = emit
        self._mine = MigrationRun.objects.held_by(run.pk, run.attempt)
        self._steps = RunStep.objects.filter(run=run.pk, run__attempt=run.attempt)
        self._positions: dict[Step, int] = {}
        self._finished: set[Step] = set()

    def tell(self, kind: Callable[..., Event], **values: Any) -> None:
        self._emit(kind(run_id=self.run.pk, tenant_id=self.run.tenant_id, **values))

    def should_stop(self) -> bool:
        if self._told_to_stop():
            return True
        with control_plane():
            return self._mine.filter(cancel_requested=True).exists()

    def planned(self, plan: Plan) -> None:
        with control_plane():
            if self.run.applied_before_id is None:
                before = AppliedSet.store(plan.applied)
                self._update(plan_digest=plan.digest, applied_before_id=before, model_marks=list(plan.marks or ()))
            else:
                self._update()
                self._require_rest(plan)
            if self.run.options.get("prune"):
                return
            last = self._drop_undone() if self.run.attempt > 1 else 0
            self._positions = {step: position for position, step in enumerate(plan.steps, last + 1)}
            RunStep.objects.bulk_create(_row(self.run, step, place) for step, place in self._positions.items())
        self.tell(
            RunPlanned, target=describe_action(self.run) or _target(plan), steps=len(plan.steps), unknown=plan.unknown
        )

    def _drop_undone(self) -> int:
        """What an earlier attempt of the run has done stays done; returns the position of the last such step."""
        self._steps.exclude(state__in=DONE_STEP_STATES).delete()
        last: int | None = self._steps.aggregate(last=Max("position"))["last"]
        return last or 0

    def repairing(self, step: Step, applied: Applied, *, operation: int, statements: int) -> None:
        """A repair has no plan: its one step goes on from wherever an earlier run stopped."""
        with control_plane():
            self._update(applied_before_id=AppliedSet.store(applied))
            self._steps.all().delete()
            self._positions = {step: 1}
            row = _row(self.run, step, 1)
            row.state, row.started_at = StepState.RUNNING, now()
            row.operation, row.statements = operation, statements
            row.save(force_insert=True)
        self.tell(StepStarted, file=step.file, backwards=step.backwards)

    def repaired(self, step: Step) -> None:
        with control_plane():
            self._step(step, state=StepState.DONE)
        self.tell(StepFinished, file=step.file, backwards=step.backwards, faked=False, seconds=0.0)

    def step_started(self, step: Step) -> None:
        with control_plane():
            self._step(step, state=StepState.RUNNING, started_at=Now(), operation=None if step.atomic else 0)
        self.tell(StepStarted, file=step.file, backwards=step.backwards)

    def step_finished(self, result: StepResult) -> None:
        state = StepState.FAKED if result.faked else StepState.DONE
        with control_plane():
            self._step(result.step, state=state, seconds=result.seconds)
        self._finished.add(result.step)
        self.tell(
            StepFinished,
            file=result.step.file,
            backwards=result.step.backwards,
            faked=result.faked,
            seconds=result.seconds,
        )

    def journal(self, step: Step, *, operation: int, statements: int) -> None:
        with control_plane():
            self._step(step, operation=operation, statements=statements)

    def ended(self, outcome: Outcome) -> None:
        running = self._steps.filter(state=StepState.RUNNING)
        self.keep(outcome.results)
        if outcome.end is End.CANCELED and self.requeue(applied_after_id=AppliedSet.store(outcome.after)):
            return
        if outcome.end is End.FAILED and outcome.failure and outcome.failure.step:
            running.update(state=StepState.FAILED)
        if self.run.options.get("prune"):
            self.tell(RunPruned, migrations=outcome.pruned)
        action, failure = self._as_asked(outcome)
        self.finish(
            action,
            failure,
            applied_after=outcome.after,
            findings=[{"code": "unvalidated_constraint", "detail": name} for name in outcome.unvalidated],
            steps=self._steps.filter(state__in=DONE_STEP_STATES).count() + len(outcome.pruned) + len(outcome.synced),
        )

    def _as_asked(self, outcome: Outcome) -> tuple[str, Failure | None]:
        """A statement that was canceled because somebody canceled the run is no failure of the migration."""
        failure = outcome.failure
        if outcome.end is not End.FAILED or failure is None or not failure.is_interruption:
            return _ENDS[outcome.end], failure
        if not self._mine.filter(interrupt_requested=True).exists():
            return _ENDS[outcome.end], failure
        message = "Interrupted, as asked; the tenant stands between two steps."
        return "cancel", replace(failure, code="canceled", message=message)

    def keep(self, results: Sequence[StepResult]) -> None:
        """A step whose COMMIT went through and whose reply was lost is a result that nobody was told of."""
        positions = [self._positions[each.step] for each in results if each.step not in self._finished]
        if positions:
            self._steps.filter(state=StepState.RUNNING, position__in=positions).update(state=StepState.DONE)

    def pause(self, outcome: Outcome) -> None:
        """Between two attempts: should there be no other, this is what the run has left."""
        self.keep(outcome.results)
        self._mine.update(applied_after_id=AppliedSet.store(outcome.after))

    def lose(self, cause: str) -> None:
        """Leave the run `running` without a lease, to be settled by whoever can read the tenant first."""
        self._mine.in_flight().update(waiting_cause=cause[:500], lease_expires_at=Now())

    def finish(
        self,
        action: str,
        failure: Failure | None = None,
        *,
        applied_after: Applied | None = None,
        findings: Sequence[dict[str, str]] = (),
        steps: int = 0,
    ) -> None:
        """End the run by `action`; nothing happens if another attempt has it."""
        values: dict[str, Any] = {"finished_at": Now(), "lease_expires_at": None, "waiting_cause": ""}
        values |= {"findings": list(findings), **failure_values(failure)}
        with transaction.atomic():
            if applied_after is not None:
                values["applied_after_id"] = AppliedSet.store(applied_after)
            if not self._mine.in_flight().transition(action, **values):
                return
            if applied_after is not None:
                observations.after_run(self.run.tenant_id, applied_after, partial=action == "leave_partial")
        self.run.refresh_from_db()
        self._emit(run_ended(self.run, steps=steps))

    def requeue(self, **values: Any) -> bool:
        """Leave the rest of the run to the next coordinator; False if it is not to be carried on with."""
        mine = self._mine.filter(cancel_requested=False)
        if (
            not self._requeues
            or self._is_held()
            or not mine.transition("requeue", lease_expires_at=None, waiting_cause="", **values)
        ):
            return False
        logger.info("run %s of tenant %s is left to the next coordinator", self.run.pk, self.run.tenant_id)
        return True

    def _is_held(self) -> bool:
        return Tenant.objects.filter(pk=self.run.tenant_id, held_at__isnull=False).exists()

    def _require_rest(self, plan: Plan) -> None:
        """Where a plan was agreed to, a later attempt may do the rest of it and nothing else."""
        if not self.run.expected_digest or self.run.options.get("prune"):
            return
        agreed = list(self._steps.values_list("app_label", "name", "backwards"))
        rest = [(step.app_label, step.name, step.backwards) for step in plan.steps]
        if rest != agreed[len(agreed) - len(rest) :]:
            raise PlanChanged(self.run.tenant_id, plan.digest)

    def _update(self, **values: Any) -> None:
        # A run that is pending again is no longer this worker's, even before somebody claims it.
        if not self._mine.in_flight().update(waiting_cause="", **values):
            raise AttemptLost

    def _step(self, step: Step, **values: Any) -> None:
        # One statement: this is written at each step, and before each statement of one that is not atomic.
        mine = self._steps.filter(run__state__in=IN_FLIGHT_RUN_STATES)
        if not mine.filter(position=self._positions[step]).update(**values):
            raise AttemptLost


def session_name(run: MigrationRun) -> str:
    """What the server calls the session of the run's worker, cut at what PostgreSQL keeps of it.

    With the attempt: whoever settles one must not end the session of the next.
    """
    return f"tenant-migrations run={run.pk} attempt={run.attempt} tenant={run.tenant_id}"[:63]


def journal_of(step: RunStep) -> Journal:
    """What journal() has written of it."""
    # Without a journal nobody knows, which is not the same as nothing.
    known = step.operation is not None
    return Journal(
        key=(step.app_label, step.name),
        backwards=step.backwards,
        operation=step.operation or 0,
        statements=step.statements if known else 1,
        finished=step.state in DONE_STEP_STATES,
    )


def failure_values(failure: Failure | None) -> dict[str, str]:
    if failure is None:
        return {}
    return {
        "error_code": failure.code,
        "error_class": failure.error_class[:200],
        "sqlstate": failure.sqlstate,
        "failed_step": failure.step,
        "message": failure.message[:1000],
    }


def _target(plan: Plan) -> str:
    name = plan.target.migration_name or ""
    if name not in {"", "zero"}:
        name = plan.nodes[0][1] or ""
    return describe_target(plan.target.app_label or "", name, plan.app_labels)


def _row(run: MigrationRun, step: Step, position: int) -> RunStep:
    return RunStep(
        run=run,
        position=position,
        app_label=step.app_label,
        name=step.name,
        backwards=step.backwards,
        atomic=step.atomic,
    )
