"""What can be done with a rollout that exists. Each verb holds its row, so that of two that race one comes second."""

from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Coalesce, Now

from migrations_api.exceptions import InvalidTransition
from migrations_api.models import Coordinator, Rollout
from migrations_api.orchestrator.advance import (
    TOO_MANY_FAILURES,
    WAVE_FAILED,
    cancel_pending,
    following_wave,
    open_wave,
)
from migrations_api.orchestrator.endings import finish_if_done, give_up_unreadable
from migrations_api.states import (
    ACTIVE_ROLLOUT_STATES,
    FAILED_RUN_STATES,
    ROLLOUT_TRANSITIONS,
    RolloutState,
)
from tenants.conf import load_conf


def pause(rollout: Rollout, *, reason: str) -> None:
    """Start nothing more; what is in flight goes on to its end, and then the rollout is `paused`.

    Raises InvalidTransition unless it is pending or running.
    """
    with transaction.atomic():
        _do("pause", _locked(rollout), stop_code=RolloutState.PAUSED, stop_reason=reason)
        finish_if_done(rollout)


def resume(rollout: Rollout) -> None:
    """Go on; failures that it was paused for no longer count. Raises InvalidTransition unless it is paused."""
    with transaction.atomic():
        locked = _locked(rollout)
        pardoned = locked.pardoned
        if locked.stop_code in {TOO_MANY_FAILURES, WAVE_FAILED}:
            pardoned = locked.runs.filter(state__in=FAILED_RUN_STATES).count()
        _do(
            "resume",
            locked,
            pardoned=pardoned,
            stop_code="",
            stop_reason="",
            progress_at=Now(),
            started_at=Coalesce("started_at", Now()),
        )
        if locked.stop_code == WAVE_FAILED and (following := following_wave(locked)) is not None:
            # It was paused before this one, and somebody has looked.
            open_wave(locked, following)


def take_over(rollout: Rollout) -> bool:
    """Make the caller the one that carries the rollout out, unless somebody does; returns whether it is."""
    if Coordinator.is_seen():
        return False
    lease = Now() + timedelta(seconds=load_conf().lease)
    free = Q(lease_expires_at=None) | Q(lease_expires_at__lt=Now())
    mine = Rollout.objects.filter(free, pk=rollout.pk, state__in=ACTIVE_ROLLOUT_STATES)
    return mine.update(foreground=True, lease_expires_at=lease) == 1


def is_abandoned(rollout: Rollout) -> bool:
    """Whether the command that was to carry it out is gone before its end, and so is whoever had a run of it."""
    left = Rollout.objects.filter(foreground=True, state__in=ACTIVE_ROLLOUT_STATES, lease_expires_at__lt=Now())
    # A worker renews the lease of its run after that of the rollout, and ends a little later.
    held = rollout.runs.in_flight().filter(lease_expires_at__gte=Now())
    return left.filter(pk=rollout.pk).exists() and not held.exists()


def promote(rollout: Rollout, *, full: bool = False) -> None:
    """Open the next wave now; with `full`, all that follow as soon as the one before has ended.

    Raises InvalidTransition unless the rollout is running and, without `full`, the open wave has ended.
    """
    with transaction.atomic():
        locked = _locked(rollout)
        following = following_wave(locked)
        _do("promote", locked, **({"promoted_fully": True} if full else {}))
        if following is not None and following > locked.open_wave:
            open_wave(locked, following)
        elif not full:
            raise InvalidTransition(
                f"Wave {locked.open_wave} of rollout {locked.pk} has not ended; nothing to promote."
            )


def cancel_rollout(rollout: Rollout, *, interrupt: bool = False) -> None:
    """Start nothing more and ask what runs to stop between two steps, or with `interrupt` in the middle of one.

    Raises InvalidTransition once it has ended.
    """
    with transaction.atomic():
        locked = _locked(rollout)
        _do("cancel", locked)
        # Before the pending ones: a run that becomes pending again in between is then canceled with them.
        asked = {"cancel_requested": True, **({"interrupt_requested": True} if interrupt else {})}
        locked.runs.in_flight().update(**asked)
        if interrupt:
            give_up_unreadable(locked.runs.all())
        cancel_pending(locked, "Not started: the rollout was canceled.")
        finish_if_done(locked)


def cancel(rollout: Rollout, why: str) -> None:
    """Start nothing more; what runs is left to its worker."""
    Rollout.objects.filter(pk=rollout.pk).transition("cancel")
    cancel_pending(rollout, why)


def _locked(rollout: Rollout) -> Rollout:
    return Rollout.objects.select_for_update(no_key=True).get(pk=rollout.pk)


def _do(action: str, locked: Rollout, **values: Any) -> None:
    if not Rollout.objects.filter(pk=locked.pk).transition(action, **values):
        fitting = " or ".join(sorted(ROLLOUT_TRANSITIONS[action].sources))
        raise InvalidTransition(f"Rollout {locked.pk} is {locked.state}; to {action} it, it has to be {fitting}.")
