"""How the runs of a worker have ended, written together where they are quick."""

import threading
import time
from typing import Final, NamedTuple

from django.db import OperationalError
from psycopg2 import errorcodes

from migrations_api.dispatch.base import Emit
from migrations_api.dispatch.history import run_ended
from migrations_api.models import records
from migrations_api.models.records import RunEnd
from migrations_api.states import RUN_TRANSITIONS
from tenants.driver_errors import sqlstate

# In seconds: how long the end of one run waits for those of others.
PATIENCE: Final = 0.25


class _Put(NamedTuple):
    end: RunEnd
    steps: int


class Outbox:
    """Two threads write it; only the worker's own tells of what was written."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._unwritten: list[_Put] = []
        self._untold: list[_Put] = []

    def put(self, end: RunEnd, *, steps: int) -> None:
        """`steps` is how many the run has carried out."""
        with self._lock:
            self._unwritten.append(_Put(end, steps))

    @property
    def is_due(self) -> bool:
        with self._lock:
            return bool(self._unwritten) and time.monotonic() - self._unwritten[0].end.at > PATIENCE

    def write(self) -> None:
        """What is no longer the attempt's to end is dropped."""
        with self._lock:
            if not self._unwritten:
                return
            ended = _end_all([put.end for put in self._unwritten])
            self._untold += [put for put in self._unwritten if put.end.run.pk in ended]
            self._unwritten.clear()

    def flush(self) -> None:
        self.write()
        with self._lock:
            told, self._untold = self._untold, []
        for put in told:
            run = put.end.run
            run.state = RUN_TRANSITIONS[put.end.action].to
            for name, value in put.end.values.items():
                setattr(run, name, value)
            self._emit(run_ended(run, steps=put.steps))


def _end_all(ends: list[RunEnd]) -> set[int]:
    if len(ends) > 1:
        try:
            return records.end_all(ends)
        except OperationalError as error:
            # Whoever cancels a whole rollout has rows of several of its runs as well, perhaps in another order.
            if sqlstate(error) != errorcodes.DEADLOCK_DETECTED:
                raise
    return {run_id for end in ends for run_id in records.end_all([end])}
