"""Ask once more for what a rollout has not done."""

from functools import partial

from migrations_api.exceptions import InvalidTransition
from migrations_api.models import Action, RequestedVia, Rollout
from migrations_api.orchestrator.batches import rests_of
from migrations_api.orchestrator.requests import request_rollout, same_again
from migrations_api.orchestrator.selection import Selector, select
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.states import ACTIVE_ROLLOUT_STATES


def retry_rollout(rollout: Rollout, *, by: str, via: str = RequestedVia.API, allow_backwards: bool = True) -> Rollout:
    """A new rollout over the tenants that this one has not migrated, with the same target, options and strategy.

    `allow_backwards` can only take a right away. Raises InvalidTransition while the rollout goes on or when it has
    left nobody behind, and what request_rollout() raises.
    """
    rollout.refresh_from_db()
    if rollout.state in ACTIVE_ROLLOUT_STATES:
        raise InvalidTransition(f"Rollout {rollout.pk} is {rollout.state}; one that goes on cannot be retried.")
    selector = Selector(unfinished_in=rollout.pk)
    tenants = select(selector)
    if not tenants:
        raise InvalidTransition(f"Rollout {rollout.pk} has left no tenant behind; there is nothing to retry.")
    request = same_again(rollout, by=by, via=via, allow_backwards=allow_backwards)
    strategy = Strategy.from_dict(rollout.strategy)
    undo = partial(rests_of, rollout) if rollout.action == Action.ROLLBACK else None
    return request_rollout(
        tenants, request, strategy=strategy, selector=selector, retry_of=rollout, undoes=rollout.undoes, undo=undo
    )
