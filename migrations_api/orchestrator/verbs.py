"""What can be done with a run or rollout that exists."""

from dataclasses import replace

from django.db import transaction
from django.db.models.functions import Now

from migrations_api.exceptions import InvalidTransition
from migrations_api.executor import Options
from migrations_api.models import MigrationRun, RequestedVia, Rollout
from migrations_api.orchestrator.endings import finish_if_done
from migrations_api.orchestrator.requests import Request, get_tenant, request_run
from migrations_api.orchestrator.rollouts import cancel
from migrations_api.plan import Target
from migrations_api.states import ACTIVE_ROLLOUT_STATES, RunState

RETRIABLE = frozenset({RunState.FAILED, RunState.CANCELED, RunState.SKIPPED})


def cancel_run(run: MigrationRun) -> None:
    """Cancel a run that is not being worked on; ask one that is to stop between two steps.

    Raises InvalidTransition for a run that has ended.
    """
    with transaction.atomic():
        locked = MigrationRun.objects.select_for_update(of=["self"]).get(pk=run.pk)
        mine = MigrationRun.objects.filter(pk=run.pk)
        if locked.state == RunState.RUNNING:
            mine.update(cancel_requested=True)
        elif not mine.transition(
            "cancel",
            cancel_requested=True,
            finished_at=Now(),
            lease_expires_at=None,
            waiting_cause="",
            error_code="canceled",
            message="Canceled before it was carried out.",
        ):
            raise InvalidTransition(f"Run {run.pk} is {locked.state} and can no longer be canceled.")
        if locked.rollout is not None:
            finish_if_done(locked.rollout)


def cancel_rollout(rollout: Rollout) -> None:
    """Start nothing more and ask what runs to stop between two steps; raises InvalidTransition once it has ended."""
    with transaction.atomic():
        locked = Rollout.objects.select_for_update().get(pk=rollout.pk)
        if locked.state not in ACTIVE_ROLLOUT_STATES:
            raise InvalidTransition(f"Rollout {rollout.pk} is {locked.state} and can no longer be canceled.")
        cancel(locked)
        locked.runs.filter(state__in=[RunState.RUNNING, RunState.WAITING]).update(cancel_requested=True)
        finish_if_done(locked)


def retry_run(run: MigrationRun, *, by: str, via: str = RequestedVia.API, allow_backwards: bool = True) -> MigrationRun:
    """A new pending run with the same target and options; `allow_backwards` can only take a right away.

    Raises InvalidTransition unless the run failed, was canceled or was skipped, and what request_run() raises.
    """
    if run.state == RunState.PARTIAL:
        raise InvalidTransition(f"Run {run.pk} left its tenant between two migrations; that needs a repair first.")
    if run.state not in RETRIABLE:
        raise InvalidTransition(f"Run {run.pk} is {run.state}; only a run that did not succeed can be retried.")
    target = Target(app_label=run.app_label or None, migration_name=run.migration_name or None)
    options = Options(**run.options)
    options = replace(options, allow_backwards=options.allow_backwards and allow_backwards)
    request = Request(target=target, options=options, by=by, via=via)
    return request_run(get_tenant(run.tenant_id), request, retry_of=run)
