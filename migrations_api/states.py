"""The states of runs and rollouts and the one table of what leads from which to which."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from django.db.models import TextChoices


class RunState(TextChoices):
    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    PARTIAL = "partial"
    CANCELED = "canceled"
    SKIPPED = "skipped"


class RolloutState(TextChoices):
    PENDING = "pending"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


class StepState(TextChoices):
    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAKED = "faked"
    FAILED = "failed"


class Transition(NamedTuple):
    sources: frozenset[str]
    to: str


def _table(rows: Mapping[str, tuple[set[str], str]]) -> dict[str, Transition]:
    return {action: Transition(frozenset(sources), to) for action, (sources, to) in rows.items()}


_R = RunState
RUN_TRANSITIONS: Final = _table(
    {
        "claim": ({_R.PENDING, _R.WAITING}, _R.RUNNING),
        "wait": ({_R.RUNNING}, _R.WAITING),
        # Its worker is going down, has claimed more than it can begin now, or is gone and left the tenant on a
        # boundary; the next one carries on with it.
        "requeue": ({_R.RUNNING, _R.WAITING}, _R.PENDING),
        "succeed": ({_R.RUNNING}, _R.SUCCEEDED),
        # There is nothing to do, which was read without a worker.
        "confirm": ({_R.PENDING}, _R.SUCCEEDED),
        "fail": ({_R.RUNNING}, _R.FAILED),
        "leave_partial": ({_R.RUNNING}, _R.PARTIAL),
        "cancel": ({_R.PENDING, _R.WAITING, _R.RUNNING}, _R.CANCELED),
        "skip": ({_R.PENDING, _R.RUNNING}, _R.SKIPPED),
    }
)
DONE_STEP_STATES: Final = frozenset({StepState.DONE, StepState.FAKED})
ACTIVE_RUN_STATES: Final = frozenset({_R.PENDING, _R.RUNNING, _R.WAITING})
IN_FLIGHT_RUN_STATES: Final = frozenset({_R.RUNNING, _R.WAITING})
# What counts against `max_failures`.
FAILED_RUN_STATES: Final = frozenset({_R.FAILED, _R.PARTIAL})

_O = RolloutState
ROLLOUT_TRANSITIONS: Final = _table(
    {
        "start": ({_O.PENDING}, _O.RUNNING),
        "pause": ({_O.PENDING, _O.RUNNING}, _O.PAUSING),
        "finish_pausing": ({_O.PAUSING}, _O.PAUSED),
        "resume": ({_O.PAUSING, _O.PAUSED}, _O.RUNNING),
        "promote": ({_O.RUNNING}, _O.RUNNING),
        # Once more, to have what is still running interrupted.
        "cancel": ({_O.PENDING, _O.RUNNING, _O.PAUSING, _O.PAUSED, _O.CANCELING}, _O.CANCELING),
        "finish_succeeded": ({_O.PENDING, _O.RUNNING, _O.PAUSING, _O.PAUSED}, _O.SUCCEEDED),
        "finish_failed": ({_O.PENDING, _O.RUNNING, _O.PAUSING, _O.PAUSED}, _O.FAILED),
        "finish_canceled": ({_O.CANCELING}, _O.CANCELED),
    }
)
# A rollout in another one starts no tenant.
STARTING_ROLLOUT_STATES: Final = frozenset({_O.PENDING, _O.RUNNING})
ACTIVE_ROLLOUT_STATES: Final = frozenset({_O.PENDING, _O.RUNNING, _O.PAUSING, _O.PAUSED, _O.CANCELING})
