"""How far the steps of a run have come: kept here, and written now and then."""

import threading
import time
from typing import Final

from migrations_api.exceptions import InvalidTransition
from migrations_api.models import MigrationRun, records
from migrations_api.models.records import StepProgress
from migrations_api.states import StepState

# In seconds. Within it, neither is a step's progress written nor is it asked whether the run was canceled.
PACE: Final = 0.2


class AttemptLost(InvalidTransition):
    """Another worker has taken the run over."""

    code = "attempt_lost"


class Progress:
    """What is known of the steps and not yet written, by position; two threads write it."""

    def __init__(self, run: MigrationRun) -> None:
        self.is_canceled = False
        self._run = run
        self._lock = threading.RLock()
        self._begun: dict[int, float] = {}
        self._over: set[int] = set()
        self._news: dict[int, tuple[str, float | None]] = {}
        self._journaled: int | None = None
        self._wrote_at = -PACE

    def started(self, position: int, *, has_journal: bool = False) -> None:
        """Of a step that runs and should have a journal, without one nobody would know that nothing was sent."""
        with self._lock:
            self._begun[position] = time.monotonic()
            self._news[position] = (StepState.RUNNING, None)
            if has_journal:
                self._journaled = position

    def ended(self, position: int, state: str, *, seconds: float | None) -> None:
        """Of one that has been told to have ended, nothing is news."""
        with self._lock:
            if position in self._begun and position not in self._over:
                self._over.add(position)
                self._news[position] = (state, seconds)

    def stopped(self) -> None:
        """The one that was begun and has not ended is where the run failed."""
        with self._lock:
            for position in self._begun.keys() - self._over:
                self._news[position] = (StepState.FAILED, None)

    def is_due(self) -> bool:
        return time.monotonic() - self._wrote_at >= PACE

    def wrote(self) -> None:
        self._wrote_at = time.monotonic()

    def told(self) -> list[StepProgress]:
        instant = time.monotonic()
        with self._lock:
            return [
                StepProgress(position=position, state=state, seconds=seconds, ago=instant - self._begun[position])
                for position, (state, seconds) in self._news.items()
            ]

    def write(self, *, is_between_steps: bool = True) -> None:
        """Learn on the way whether the run is to be canceled; raises AttemptLost.

        What is learned in the middle of a step may be old by its end, and does not put off the next look.
        """
        with self._lock:
            found = records.progress(self._run, self.told(), journaled=self._journaled)
            if found is None:
                raise AttemptLost
            self.is_canceled = found
            self._news.clear()
            self._journaled = None
            if is_between_steps:
                self.wrote()
