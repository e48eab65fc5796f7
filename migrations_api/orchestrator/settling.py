"""Settle runs whose lease has run out, each by reading its tenant."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from django.db import connections, transaction
from django.db.models.functions import Now

from migrations_api.exceptions import TenantLocked
from migrations_api.executor import Failure
from migrations_api.executor.applied import TenantRecorder
from migrations_api.executor.diagnosis import has_left_nothing
from migrations_api.executor.lock import end_holder, tenant_lock
from migrations_api.executor.verification import faults
from migrations_api.models import AppliedSet, MigrationRun, RunStep
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.abandoned import CARRIED_ON, NEVER_BEGUN
from migrations_api.orchestrator.recorder import failure_values, journal_of, session_name
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Applied, MigrationSource, is_recorded
from migrations_api.states import StepState
from tenants.conf import load_conf
from tenants.driver_errors import translated
from tenants.exceptions import NotProvisioned, ServiceError
from tenants.sessions import tenant_session
from tenants.watch import OwnSession

logger = logging.getLogger(__name__)

# How long a session that was ended may take to let go of what it has, in seconds.
LET_GO_WITHIN: Final = 5.0


def settle_all(runs: Sequence[MigrationRun]) -> None:
    """Several at a time: a server that does not answer must not hold up those that do."""
    if len(runs) <= 1:
        for run in runs:
            _settle(run)
        return
    with ThreadPoolExecutor(max_workers=load_conf().read_concurrency) as pool:
        list(pool.map(_settle_in_thread, runs))


def _settle_in_thread(run: MigrationRun) -> None:
    try:
        _settle(run)
    finally:
        connections.close_all()


def _is_carried_on(run: MigrationRun) -> bool:
    if run.cancel_requested or run.attempt >= load_conf().attempts or run.tenant.held_at is not None:
        return False
    return MigrationRun.objects.filter(CARRIED_ON, pk=run.pk).exists()


def _settle(run: MigrationRun) -> None:
    try:
        source = source_for(run.tenant.isolation)
        applied, invalid, is_untouched = _read_under_lock(run, source)
    except NotProvisioned:
        applied, invalid, is_untouched = frozenset(), frozenset(), True
    except TenantLocked as error:
        # Somebody else has it, whom this run's lease says nothing about.
        logger.warning("run %s of tenant %s is overdue: %s", run.pk, run.tenant_id, error.message)
        return
    except ServiceError as error:
        logger.warning("run %s of tenant %s cannot be settled yet: %s", run.pk, run.tenant_id, error.message)
        MigrationRun.objects.held_by(run.pk, run.attempt).active().update(waiting_cause=error.message[:500])
        return
    with transaction.atomic():
        # Another may have settled it meanwhile, and a worker carry on with it: then the steps are that worker's.
        mine = MigrationRun.objects.held_by(run.pk, run.attempt).in_flight().select_for_update(no_key=True)
        if mine.values_list("pk").first() is None:
            return
        if run.repair_of_id is not None:
            _settle_repair(run, applied, source, invalid)
        else:
            _settle_migration(run, applied, source, invalid, is_untouched=is_untouched)


def _settle_migration(
    run: MigrationRun, applied: Applied, source: MigrationSource, invalid: frozenset[str], *, is_untouched: bool
) -> None:
    step = _step_in_flight(run)
    _settle_steps(run, applied, source)
    is_over = step is None or _is_done(step, applied, source)
    partial = not (is_over or is_untouched)
    # One that is not atomic is never begun again by itself.
    if (is_over or (step is not None and step.atomic)) and _is_carried_on(run):
        _requeue(run, applied)
        return
    if run.rollout_id is not None and not run.plan_digest:
        # Claimed with others, and not its turn yet.
        never_begun = Failure(code=NEVER_BEGUN["error_code"], error_class="", message=NEVER_BEGUN["message"])
        _end(run, "cancel", never_begun, applied)
        return
    failure = Failure(
        code="worker_lost",
        error_class="",
        step="" if is_over else str(step),
        message="The worker ended in the middle of the run. "
        + (
            f"{step} is not atomic and may have stopped half-way.{_named(invalid)}"
            if partial
            else "The tenant stands between two steps."
        ),
    )
    _end(run, "leave_partial" if partial else "cancel" if run.cancel_requested else "fail", failure, applied)


def _end(run: MigrationRun, action: str, failure: Failure | None, applied: Applied | None) -> None:
    """`applied` is None for a run that has changed nothing: what the one before it left is what there is."""
    values = {} if applied is None else {"applied_after_id": AppliedSet.store(applied)}
    with transaction.atomic():
        settled = MigrationRun.objects.held_by(run.pk, run.attempt).transition(
            action,
            attempt=run.attempt + 1,
            finished_at=Now(),
            lease_expires_at=None,
            waiting_cause="",
            **values,
            **failure_values(failure),
        )
        if settled and applied is not None:
            observations.after_run(run.tenant_id, applied, partial=action == "leave_partial")
    if settled:
        logger.warning("run %s of tenant %s lost its worker and was settled", run.pk, run.tenant_id)


def _named(invalid: frozenset[str]) -> str:
    return f" Invalid indexes: {', '.join(sorted(invalid))}." if invalid else ""


def _settle_repair(run: MigrationRun, applied: Applied, source: MigrationSource, invalid: frozenset[str]) -> None:
    """It is never carried on with once it has begun: its own journal says from where the next repair goes on."""
    step = run.steps.first()
    lost = "The worker ended in the middle of the repair."
    if step is None:
        if _is_carried_on(run):
            mine = MigrationRun.objects.held_by(run.pk, run.attempt).filter(cancel_requested=False)
            mine.transition("requeue", lease_expires_at=None, waiting_cause="")
            return
        message = f"{lost} Nothing was changed: the tenant stands as run {run.repair_of_id} left it."
        failure = Failure(code="worker_lost", error_class="", message=message)
        _end(run, "cancel" if run.cancel_requested else "fail", failure, None)
    elif _is_at_end(step, applied, source) and not invalid:
        RunStep.objects.filter(pk=step.pk).update(state=StepState.DONE)
        _end(run, "succeed", None, applied)
    else:
        message = f"{lost} {step} may have stopped half-way.{_named(invalid)}"
        failure = Failure(code="worker_lost", error_class="", step=str(step), message=message)
        _end(run, "leave_partial", failure, applied)


def _is_at_end(step: RunStep, applied: Applied, source: MigrationSource) -> bool:
    """The record alone does not say so: undoing a step that was not recorded does not change it."""
    key = (step.app_label, step.name)
    migration = source.migrations.get(key)
    is_whole = migration is not None and step.operation == len(migration.operations)
    return is_whole and is_recorded(key, applied, source) != step.backwards


def _requeue(run: MigrationRun, applied: Applied) -> None:
    with transaction.atomic():
        mine = MigrationRun.objects.held_by(run.pk, run.attempt).filter(cancel_requested=False)
        left = AppliedSet.store(applied)
        if mine.transition("requeue", lease_expires_at=None, waiting_cause="", applied_after_id=left):
            observations.after_run(run.tenant_id, applied, partial=False)
            logger.warning("run %s of tenant %s lost its worker and is carried on with", run.pk, run.tenant_id)


def _step_in_flight(run: MigrationRun) -> RunStep | None:
    return run.steps.filter(state=StepState.RUNNING).first()


def _read_under_lock(run: MigrationRun, source: MigrationSource) -> tuple[Applied, frozenset[str], bool]:
    """What the tenant has applied, its invalid indexes, and whether the step in flight has left nothing of itself.

    When nobody works on it any more: the session of a worker that is late is ended.
    """
    tenant, step = run.tenant, _step_in_flight(run)
    with tenant_session(tenant, application_name="tenant-migrations settle", writable=False) as connection:
        place = {"database": connection.settings_dict["NAME"], "schema": tenant.schema_name}
        ended = end_holder(connection, **place, application_name=session_name(run))
        wait = LET_GO_WITHIN if ended else 0
        with tenant_lock(connection, **place, wait=wait), translated():
            applied = TenantRecorder(connection, tenant.schema_name).applied_keys()
            invalid = faults(OwnSession(connection), tenant.schema_name).invalid_indexes
            untouched = step is None or step.atomic or has_left_nothing(connection, tenant, source, journal_of(step))
            return applied, invalid, untouched


def _settle_steps(run: MigrationRun, applied: Applied, source: MigrationSource) -> None:
    """Record what became of the steps: of those that are atomic, the worker may have been ahead of its records.

    Not of a run that goes backwards and then forwards, whose steps are recorded one by one.
    """
    open_steps = run.steps.filter(state__in=[StepState.PENDING, StepState.RUNNING])
    directions = set(run.steps.values_list("backwards", flat=True))
    if len(directions) > 1:
        open_steps = open_steps.filter(state=StepState.RUNNING)
    done = [step.pk for step in open_steps if _is_done(step, applied, source)]
    open_steps.filter(pk__in=done).update(state=StepState.DONE)
    open_steps.filter(state=StepState.RUNNING).update(state=StepState.FAILED)


def _is_done(step: RunStep, applied: Applied, source: MigrationSource) -> bool:
    return is_recorded((step.app_label, step.name), applied, source) != step.backwards
