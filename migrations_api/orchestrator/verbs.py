"""What can be done with a run that exists."""

from functools import partial

from django.db import transaction
from django.db.models.functions import Now

from migrations_api.exceptions import InvalidTransition
from migrations_api.models import Action, MigrationRun, RequestedVia
from migrations_api.orchestrator.batches import rest_of
from migrations_api.orchestrator.endings import finish_if_done, give_up_unreadable, lock_rollout
from migrations_api.orchestrator.fleet import how_to_repair
from migrations_api.orchestrator.requests import get_tenant, request_run, same_again
from migrations_api.orchestrator.rollbacks import choose_for
from migrations_api.states import RunState

SKIPPED = "skipped"
RETRIABLE = frozenset({RunState.FAILED, RunState.CANCELED, RunState.SKIPPED})


def cancel_run(run: MigrationRun, *, interrupt: bool = False) -> None:
    """Cancel a run that is not being worked on; ask one that is to stop between two steps.

    With `interrupt`, the statement that it is executing is canceled as well. Raises InvalidTransition for a run that
    has ended.
    """
    with transaction.atomic():
        rollout = lock_rollout(run)
        locked = MigrationRun.objects.select_for_update().get(pk=run.pk)
        mine = MigrationRun.objects.filter(pk=run.pk)
        if locked.state == RunState.RUNNING:
            mine.update(cancel_requested=True, **({"interrupt_requested": True} if interrupt else {}))
            if interrupt:
                give_up_unreadable(mine)
        elif not mine.transition(
            "cancel",
            cancel_requested=True,
            finished_at=Now(),
            lease_expires_at=None,
            waiting_cause="",
            error_code="canceled",
            message=f"Canceled before it was carried {'on with' if locked.attempt else 'out'}.",
        ):
            raise InvalidTransition(f"Run {run.pk} is {locked.state} and can no longer be canceled.")
        if rollout is not None:
            finish_if_done(rollout)


def skip_run(run: MigrationRun, *, by: str, reason: str) -> None:
    """Leave the run's tenant out of its rollout; raises InvalidTransition unless the run is pending."""
    with transaction.atomic():
        rollout = lock_rollout(run)
        locked = MigrationRun.objects.select_for_update().get(pk=run.pk)
        pending = MigrationRun.objects.filter(pk=run.pk, state=RunState.PENDING, attempt=0)
        message = f"Skipped by {by or 'somebody'}: {reason}"
        if not pending.transition("skip", finished_at=Now(), error_code=SKIPPED, message=message[:1000]):
            if locked.state == RunState.PENDING:
                raise InvalidTransition(f"Run {run.pk} has begun and waits to be carried on with; cancel it instead.")
            raise InvalidTransition(f"Run {run.pk} is {locked.state}; only a pending one can be skipped.")
        if rollout is not None:
            finish_if_done(rollout)


def retry_run(run: MigrationRun, *, by: str, via: str = RequestedVia.API, allow_backwards: bool = True) -> MigrationRun:
    """A new pending run with the same action, target and options; `allow_backwards` can only take a right away.

    Raises InvalidTransition unless the run failed, was canceled or was skipped, and what request_run() raises.
    """
    if run.state == RunState.PARTIAL:
        raise InvalidTransition(
            f"Run {run.pk} left its tenant between two migrations; that needs a repair first: {how_to_repair(run.pk)}."
        )
    if run.state not in RETRIABLE:
        raise InvalidTransition(f"Run {run.pk} is {run.state}; only a run that did not succeed can be retried.")
    request = same_again(run, by=by, via=via, allow_backwards=allow_backwards)
    tenant = get_tenant(run.tenant_id)
    undo = partial(choose_for, tenant, rest_of(run)) if run.action == Action.ROLLBACK else None
    return request_run(tenant, request, retry_of=run, undo=undo)
