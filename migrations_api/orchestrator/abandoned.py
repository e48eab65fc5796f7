"""Settle runs whose worker is gone, by reading the tenant and never by guessing."""

import logging
from collections.abc import Collection
from typing import Final

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from migrations_api.exceptions import TenantLocked
from migrations_api.executor import Failure
from migrations_api.executor.applied import TenantRecorder
from migrations_api.executor.lock import tenant_lock
from migrations_api.models import AppliedSet, MigrationRun, RequestedVia, Rollout, RunStep
from migrations_api.models.runs import MigrationRunQuerySet
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.endings import finish_if_done
from migrations_api.orchestrator.recorder import failure_values
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Applied, MigrationSource, is_recorded
from migrations_api.states import ACTIVE_ROLLOUT_STATES, RunState, StepState
from tenants.conf import load_conf
from tenants.driver_errors import translated
from tenants.exceptions import NotProvisioned, ServiceError
from tenants.models import Tenant
from tenants.sessions import tenant_session

logger = logging.getLogger(__name__)

COORDINATED: Final = Q(rollout=None, requested_via=RequestedVia.API) | Q(rollout__foreground=False)
# Somebody is there to do it: the coordinator, or the command that drives the rollout and lives.
CARRIED_ON: Final = COORDINATED | Q(rollout__foreground=True, rollout__lease_expires_at__gte=Now())


def settle_abandoned(tenant_ids: Collection[str] | None = None) -> None:
    """Settle every run whose lease has run out, and cancel what a command that is gone had not started.

    A run whose worker is gone, and whose tenant stands on a boundary, is carried on with by the coordinator or by the
    command that drives its rollout; where there is neither, it has failed.
    """
    runs = MigrationRun.objects.active()
    if tenant_ids is not None:
        runs = runs.filter(tenant_id__in=tenant_ids)
    for run in runs.filter(state=RunState.RUNNING, lease_expires_at__lt=Now()).select_related("tenant", "rollout"):
        _settle(run)
    overdue = Q(lease_expires_at__lt=Now())
    stays = Q(cancel_requested=False, tenant__held_at=None)
    waiting = runs.filter(overdue, CARRIED_ON, stays, state=RunState.WAITING)
    _each(runs, waiting).transition("requeue", lease_expires_at=None, waiting_cause="")
    late = overdue & Q(state__in=[RunState.PENDING, RunState.WAITING])
    orphaned = Q(state=RunState.PENDING, rollout__lease_expires_at__lt=Now())
    _each(runs, runs.filter((late | orphaned) & (~CARRIED_ON | ~stays))).transition(
        "cancel",
        finished_at=Now(),
        lease_expires_at=None,
        error_code="abandoned",
        message="Whoever was to carry it out ended before it did.",
    )
    for rollout in Rollout.objects.filter(state__in=ACTIVE_ROLLOUT_STATES, lease_expires_at__lt=Now()):
        finish_if_done(rollout)


def _each(runs: MigrationRunQuerySet, chosen: MigrationRunQuerySet) -> MigrationRunQuerySet:
    """Those rows without the joins that chose them, which an UPDATE cannot have."""
    return runs.filter(pk__in=chosen.values("pk"))


def _is_carried_on(run: MigrationRun) -> bool:
    if run.cancel_requested or run.attempt >= load_conf().attempts or run.tenant.held_at is not None:
        return False
    return MigrationRun.objects.filter(CARRIED_ON, pk=run.pk).exists()


def _settle(run: MigrationRun) -> None:
    try:
        source = source_for(run.tenant.isolation)
        applied = _read_under_lock(run.tenant)
    except NotProvisioned:
        applied = frozenset()
    except TenantLocked as error:
        # The session that holds the lock is the worker's own: it is late, not gone.
        logger.warning("run %s of tenant %s is overdue: %s", run.pk, run.tenant_id, error.message)
        return
    except ServiceError as error:
        logger.warning("run %s of tenant %s cannot be settled yet: %s", run.pk, run.tenant_id, error.message)
        MigrationRun.objects.held_by(run.pk, run.attempt).active().update(waiting_cause=error.message[:500])
        return
    step = run.steps.filter(state=StepState.RUNNING).first()
    partial = _settle_step(step, applied, source) if step else False
    if not partial and _is_carried_on(run):
        _requeue(run, applied)
        return
    failure = Failure(
        code="worker_lost",
        error_class="",
        step=str(step) if step and step.state != StepState.DONE else "",
        message="The worker ended in the middle of the run. "
        + (
            f"{step} is not atomic and may have stopped half-way."
            if partial
            else "The tenant stands between two steps."
        ),
    )
    with transaction.atomic():
        settled = MigrationRun.objects.held_by(run.pk, run.attempt).transition(
            "leave_partial" if partial else "cancel" if run.cancel_requested else "fail",
            attempt=run.attempt + 1,
            finished_at=Now(),
            lease_expires_at=None,
            applied_after_id=AppliedSet.store(applied),
            **failure_values(failure),
        )
        if settled:
            observations.after_run(run.tenant_id, applied, partial=partial)
    if settled:
        logger.warning("run %s of tenant %s lost its worker and was settled", run.pk, run.tenant_id)


def _requeue(run: MigrationRun, applied: Applied) -> None:
    with transaction.atomic():
        mine = MigrationRun.objects.held_by(run.pk, run.attempt).filter(cancel_requested=False)
        if mine.transition("requeue", lease_expires_at=None, waiting_cause=""):
            observations.after_run(run.tenant_id, applied, partial=False)
            logger.warning("run %s of tenant %s lost its worker and is carried on with", run.pk, run.tenant_id)


def _read_under_lock(tenant: Tenant) -> Applied:
    with tenant_session(tenant, application_name="tenant-migrations settle", writable=False) as connection:
        database = connection.settings_dict["NAME"]
        with tenant_lock(connection, database=database, schema=tenant.schema_name, wait=0), translated():
            return TenantRecorder(connection, tenant.schema_name).applied_keys()


def _settle_step(step: RunStep, applied: Applied, source: MigrationSource) -> bool:
    """Record what became of the step that was in flight; True if the tenant may stand in the middle of it."""
    done = is_recorded((step.app_label, step.name), applied, source) != step.backwards
    step.state = StepState.DONE if done else StepState.FAILED
    RunStep.objects.filter(pk=step.pk, state=StepState.RUNNING).update(state=step.state)
    return not done and not step.atomic
