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
OVERDUE: Final = Q(lease_expires_at__lt=Now())
ORPHANED: Final = Q(state=RunState.PENDING, rollout__lease_expires_at__lt=Now())
# What is said of a run that a command which is gone had not begun.
NEVER_BEGUN: Final = {"error_code": "abandoned", "message": "Whoever was to carry it out ended before it did."}
_SETTLE_ALL: Final = "migrations_api.orchestrator.settling.settle_all"


def settle_abandoned(tenant_ids: Collection[str] | None = None) -> None:
    """Settle every run whose lease has run out, and cancel what a command that is gone had not started.

    A run whose worker is gone, and whose tenant stands on a boundary, is carried on with by the coordinator or by the
    command that drives its rollout; where there is neither, it has failed.
    """
    runs = MigrationRun.objects.active()
    if tenant_ids is not None:
        runs = runs.filter(tenant_id__in=tenant_ids)
    if runs.filter(OVERDUE | ORPHANED).exists():
        _settle(runs)
    for rollout in Rollout.objects.filter(state__in=ACTIVE_ROLLOUT_STATES, lease_expires_at__lt=Now()):
        finish_if_done(rollout)


def _settle(runs: MigrationRunQuerySet) -> None:
    lost = list(runs.filter(OVERDUE, state=RunState.RUNNING).select_related("tenant"))
    if lost:
        # Loaded where there is one: what reads a tenant takes longer to load than all of this takes without it.
        import_string(_SETTLE_ALL)(lost)
    stays = Q(cancel_requested=False, tenant__held_at=None)
    waiting = runs.filter(OVERDUE, CARRIED_ON, stays, state=RunState.WAITING)
    _each(runs, waiting).transition("requeue", lease_expires_at=None, waiting_cause="")
    late = OVERDUE & Q(state__in=[RunState.PENDING, RunState.WAITING])
    _each(runs, runs.filter((late | ORPHANED) & (~CARRIED_ON | ~stays))).transition(
        "cancel",
        finished_at=Now(),
        lease_expires_at=None,
        **NEVER_BEGUN,
    )


def _each(runs: MigrationRunQuerySet, chosen: MigrationRunQuerySet) -> MigrationRunQuerySet:
    """Those rows without the joins that chose them, which an UPDATE cannot have."""
    return runs.filter(pk__in=chosen.values("pk"))
