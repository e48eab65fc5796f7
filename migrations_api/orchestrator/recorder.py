"""Writes what happens to a run, each time as a conditional UPDATE that only the newest attempt can make."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from django.db import transaction
from django.db.models import Max, QuerySet
from django.db.models.functions import Now
from django.utils.timezone import now

from migrations_api.dispatch.base import Emit, ShouldStop
from migrations_api.dispatch.history import describe_action, describe_target
from migrations_api.events import Event, RunPlanned, RunPruned, StepFinished, StepStarted
from migrations_api.exceptions import PlanChanged
from migrations_api.executor import End, Failure, Outcome, StepResult
from migrations_api.executor.diagnosis import Journal
from migrations_api.models import AppliedSet, MigrationRun, RunStep, records
from migrations_api.models.records import RunEnd
from migrations_api.models.runs import MigrationRunQuerySet
from migrations_api.orchestrator.outbox import Outbox
from migrations_api.orchestrator.progress import AttemptLost, Progress
from migrations_api.plan import Applied, Plan, Step
from migrations_api.states import DONE_STEP_STATES, IN_FLIGHT_RUN_STATES, StepState
from tenants.binding import control_plane
from tenants.models import Tenant

logger = logging.getLogger(__name__)

_ENDS = {End.SUCCEEDED: "succeed", End.FAILED: "fail", End.PARTIAL: "leave_partial", End.CANCELED: "cancel"}


class Recorder:
    """The executor's observer for one attempt of one run.

    A run that is stopped because `should_stop` says so is canceled, or becomes pending again with `requeues`; one that
    a user cancels is canceled.

    What becomes of a step, its tenant tells, unless it is not atomic; so that is written every `PACE` seconds and at
    the end. Of one that is not, each statement's record is written before the statement is sent.
    """

    def __init__(
        self,
        run: MigrationRun,
        *,
        emit: Emit,
        should_stop: ShouldStop,
        requeues: bool = False,
        outbox: Outbox | None = None,
    ) -> None:
        self.run = run
        # Without one, an end is written at once.
        self._outbox = outbox
        self._told_to_stop = should_stop
        self._requeues = requeues
        self._emit = emit
        self._positions: dict[Step, int] = {}
        self._progress = Progress(run)
        self._done_before = 0
        self._goes_both_ways = False

    @cached_property
    def _mine(self) -> MigrationRunQuerySet:
        return MigrationRun.objects.held_by(self.run.pk, self.run.attempt)

    @cached_property
    def _steps(self) -> QuerySet[RunStep]:
        return RunStep.objects.filter(run=self.run.pk, run__attempt=self.run.attempt)

    def tell(self, kind: Callable[..., Event], **values: Any) -> None:
        self._emit(kind(run_id=self.run.pk, tenant_id=self.run.tenant_id, **values))

    def should_stop(self) -> bool:
        if self._told_to_stop():
            return True
        if self._progress.is_due():
            with control_plane():
                self._progress.write()
        return self._progress.is_canceled

    def planned(self, plan: Plan) -> None:
        pruning = bool(self.run.options.get("prune"))
        # Of a later attempt in one transaction: whoever takes the run over finds all of its steps, or none.
        with control_plane(), transaction.atomic() if self.run.attempt > 1 else nullcontext():
            self._begin(plan, pruning=pruning)
        # Just now this attempt was the newest.
        self._progress.wrote()
        if pruning:
            return
        target = describe_action(self.run) or _target(plan)
        self.tell(RunPlanned, target=target, steps=len(plan.steps), unknown=plan.unknown)

    def _begin(self, plan: Plan, *, pruning: bool) -> None:
        last = 0
        if self.run.attempt > 1 or self.run.applied_before_id is not None:
            self._update()
        if self.run.applied_before_id is not None:
            self._require_rest(plan)
        if self.run.attempt > 1 and not pruning:
            last = self._drop_undone()
        positions = {} if pruning else {step: place for place, step in enumerate(plan.steps, last + 1)}
        if self.run.applied_before_id is not None:
            RunStep.objects.bulk_create(_row(self.run, step, place) for step, place in positions.items())
        elif not records.begin(self.run, plan, positions=positions):
            raise AttemptLost
        self._positions = positions
        # Then what is applied does not tell how far the run has come.
        self._goes_both_ways = len({(step.app_label, step.name) for step in positions}) < len(positions)

    def _drop_undone(self) -> int:
        """What an earlier attempt of the run has done stays done; returns the position of the last such step."""
        self._steps.exclude(state__in=DONE_STEP_STATES).delete()
        self._done_before = self._steps.count()
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
            if not self._steps.filter(run__state__in=IN_FLIGHT_RUN_STATES).update(state=StepState.DONE):
                raise AttemptLost
        self._done_before = 1
        self.tell(StepFinished, file=step.file, backwards=step.backwards, faked=False, seconds=0.0)

    def step_started(self, step: Step) -> None:
        position = self._positions[step]
        self._progress.started(position, has_journal=not step.atomic)
        if not step.atomic or self._goes_both_ways or self._progress.is_due():
            with control_plane():
                self._progress.write()
        self.tell(StepStarted, file=step.file, backwards=step.backwards)

    def step_finished(self, result: StepResult) -> None:
        self._progress.ended(self._positions[result.step], _state_of(result), seconds=result.seconds)
        if self._goes_both_ways or self._progress.is_due():
            with control_plane():
                self._progress.write()
        self.tell(
            StepFinished,
            file=result.step.file,
            backwards=result.step.backwards,
            faked=result.faked,
            seconds=result.seconds,
        )

    def beat(self) -> None:
        """Called now and then by another thread, for which `default` is the control plane at all times."""
        with suppress(AttemptLost):  # which the next step finds out
            self._progress.write(is_between_steps=False)

    def copied(self) -> None:
        """All steps of the plan at once, by a transaction that has been committed."""
        for position in self._positions.values():
            self._progress.started(position)

    def journal(self, step: Step, *, operation: int, statements: int) -> None:
        with control_plane():
            mine = records.journal(self.run, self._positions[step], operation=operation, statements=statements)
        if not mine:
            raise AttemptLost

    def ended(self, outcome: Outcome) -> None:
        self.keep(outcome.results)
        if outcome.end is End.CANCELED:
            with suppress(AttemptLost):  # then there is nothing to requeue or to end either
                self._progress.write()
            if self.requeue(applied_after_id=AppliedSet.store(outcome.after)):
                return
        if outcome.end is End.FAILED and outcome.failure and outcome.failure.step:
            self._progress.stopped()
        if self.run.options.get("prune"):
            self.tell(RunPruned, migrations=outcome.pruned)
        action, failure = self._as_asked(outcome)
        self.finish(
            action,
            failure,
            applied_after=outcome.after,
            findings=_findings(outcome),
            steps=self._done_before + len(outcome.results) + len(outcome.pruned) + len(outcome.synced),
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
        for result in results:
            self._progress.ended(self._positions[result.step], _state_of(result), seconds=None)

    def pause(self, outcome: Outcome) -> None:
        """Between two attempts: should there be no other, this is what the run has left."""
        self.keep(outcome.results)
        with suppress(AttemptLost):  # which the next attempt's claim finds out
            self._progress.write()
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
        end = RunEnd(
            run=self.run,
            action=action,
            told=self._progress.told(),
            after=applied_after,
            findings=findings,
            values=failure_values(failure),
            at=time.monotonic(),
        )
        outbox = self._outbox or Outbox(self._emit)
        outbox.put(end, steps=steps)
        if self._outbox is None:
            outbox.flush()

    def give_back(self) -> bool:
        """Leave the run, of which nothing is in flight, to be carried out by itself; False if it was to be canceled."""
        mine = self._mine.filter(cancel_requested=False)
        if mine.transition("requeue", lease_expires_at=None, waiting_cause=""):
            return True
        self.finish("cancel", Failure(code="canceled", error_class="", message="Stopped before it began, as asked."))
        return False

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


def _state_of(result: StepResult) -> str:
    return StepState.FAKED if result.faked else StepState.DONE


def _findings(outcome: Outcome) -> list[dict[str, str]]:
    found = [{"code": "unvalidated_constraint", "detail": name} for name in outcome.unvalidated]
    if outcome.not_copied:
        found.append({"code": "not_copied", "detail": outcome.not_copied[:500]})
    return found


def session_name(run: MigrationRun) -> str:
    """What the server calls the session of the run's worker, cut at what PostgreSQL keeps of it.

    With the attempt: whoever settles one must not end the session of the next.
    """
    return f"tenant-migrations run={run.pk} attempt={run.attempt} tenant={run.tenant_id}"[:63]


def journal_of(step: RunStep) -> Journal:
    """What journal() has written of it."""
    # Without a journal nobody knows, which is not the same as nothing.
    known = step.operation is not None
    first = step.operation if step.first_operation is None and not step.statements else step.first_operation
    return Journal(
        key=(step.app_label, step.name),
        backwards=step.backwards,
        operation=step.operation or 0,
        statements=step.statements if known else 1,
        first=first or 0,
        finished=step.state in DONE_STEP_STATES,
    )


def failure_values(failure: Failure | None) -> dict[str, str]:
    if failure is None:
        return dict.fromkeys(("error_code", "error_class", "sqlstate", "failed_step", "message"), "")
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
