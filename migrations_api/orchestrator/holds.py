"""Leave a tenant out until it is released."""

from django.db import transaction
from django.db.models.functions import Now

from migrations_api.exceptions import InvalidTransition, TenantHeld, held_by
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.endings import finish_if_done, lock_rollout
from migrations_api.states import RunState
from tenants.exceptions import TenantNotFound
from tenants.models import Tenant


def hold(tenant: Tenant, *, by: str, reason: str) -> None:
    """Nothing migrates the tenant until it is released; a run of it that is not started is skipped with the reason.

    A run that is in flight goes on. Held once more, the tenant has the new reason. Raises TenantNotFound.
    """
    with transaction.atomic():
        rows = Tenant.objects.filter(pk=tenant.pk)
        # Whoever asks for a run locks this row as well.
        if not rows.update(held_at=Now(), held_by=by, hold_reason=reason):
            raise TenantNotFound(tenant.tenant_id)
        message = f"The tenant is {held_by(by, reason)}."
        pending = MigrationRun.objects.filter(tenant=tenant, state=RunState.PENDING)
        for run in pending:
            rollout = lock_rollout(run)
            mine = MigrationRun.objects.filter(pk=run.pk, state=RunState.PENDING)
            # One that has begun, and waits to be carried on with, has not been left out: its tenant may be half-way.
            action = "cancel" if run.attempt else "skip"
            mine.filter(attempt=run.attempt).transition(
                action, finished_at=Now(), error_code=TenantHeld.code, message=message[:1000]
            )
            if rollout is not None:
                finish_if_done(rollout)


def release(tenant: Tenant) -> None:
    """Raises InvalidTransition for a tenant that is not held."""
    held = Tenant.objects.filter(pk=tenant.pk, held_at__isnull=False)
    if not held.update(held_at=None, held_by="", hold_reason=""):
        raise InvalidTransition(f"Tenant '{tenant.tenant_id}' is not held.")


def release_all(reason: str) -> int:
    """Release every tenant that is held for just that reason; returns how many. Raises InvalidTransition for none."""
    released = Tenant.objects.filter(held_at__isnull=False, hold_reason=reason).update(
        held_at=None, held_by="", hold_reason=""
    )
    if not released:
        raise InvalidTransition(f"No tenant is held with the reason '{reason}'.")
    return released


def suspend(tenant: Tenant, *, suspended: bool) -> None:
    """Rollouts that are asked for from now on leave a suspended tenant out. Raises TenantNotFound."""
    if not Tenant.objects.filter(pk=tenant.pk).update(suspended=suspended):
        raise TenantNotFound(tenant.tenant_id)
