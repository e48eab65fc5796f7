"""Settle runs whose worker is gone, by reading the tenant and never by guessing."""

from collections.abc import Collection
from typing import Final

from django.db.models import Q
from django.db.models.functions import Now
from django.utils.module_loading import import_string

from migrations_api.models import MigrationRun, RequestedVia, Rollout
from migrations_api.models.runs import MigrationRunQuerySet
from migrations_api.orchestrator.endings import finish_if_done
from migrations_api.states import ACTIVE_ROLLOUT_STATES, RunState

COORDINATED: Final = Q(rollout=None, requested_via=RequestedVia.API) | Q(rollout__foreground=False)
# Somebody is there to do it: the coordinator, or the command that drives the rollout and lives.
CARRIED_ON: Final = COORDINATED | Q(rollout__foreground=True, rollout__lease_expires_at__gte=Now())
_SETTLE_ALL: Final = "migrations_api.orchestrator.settling.settle_all"


def settle_abandoned(tenant_ids: Collection[str] | None = None) -> None:
    """Settle every run whose lease has run out, and cancel what a command that is gone had not started.

    A run whose worker is gone, and whose tenant stands on a boundary, is carried on with by the coordinator or by the
    command that drives its rollout; where there is neither, it has failed.
    """
    runs = MigrationRun.objects.active()
    if tenant_ids is not None:
        runs = runs.filter(tenant_id__in=tenant_ids)
    lost = list(runs.filter(state=RunState.RUNNING, lease_expires_at__lt=Now()).select_related("tenant"))
    if lost:
        # Loaded where there is one: what reads a tenant takes longer to load than all of this takes without it.
        import_string(_SETTLE_ALL)(lost)
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
