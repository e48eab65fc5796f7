import time
from typing import Final

from migrations_api.dispatch.base import Terms

# In seconds: how long what is submitted at a time may take, going by what runs have taken lately. The shorter they are,
# the more: reading the rows for each anew would cost more than carrying it out.
AHEAD: Final = 0.25
MOST: Final = 64


class SequentialDispatcher:
    """One tenant after the other, in this process."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._seconds = AHEAD

    @property
    def free(self) -> int:
        if not self._terms.looks_ahead:
            return 1
        return 1 + max(1, int(AHEAD / max(self._seconds, AHEAD / MOST)))

    @property
    def held(self) -> frozenset[int]:
        return frozenset()

    def submit(self, run_id: int) -> None:
        if self._terms.looks_ahead and self._terms.should_stop():
            return
        began = time.monotonic()
        self._terms.work(run_id, emit=self._terms.emit, should_stop=self._terms.should_stop)
        self._seconds = (self._seconds + time.monotonic() - began) / 2

    def wait(self, timeout: float) -> None:
        """Nothing is ever in flight between two calls."""

    def close(self) -> None:
        """No workers."""
