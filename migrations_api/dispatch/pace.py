import time
from typing import Final

# In seconds: how long what is chosen at a time may take. The shorter runs are, the more of them: reading the rows for
# each anew would cost more than carrying it out.
AHEAD: Final = 0.5
MOST: Final = 64
# How many a worker is given at once, at the most, and in how many portions what is chosen at a time.
SHARE: Final = 16
PORTIONS: Final = 2


class Pace:
    """How fast runs have come to their ends lately."""

    def __init__(self) -> None:
        self._seconds = AHEAD
        self._since = time.monotonic()

    def ended(self, runs: int = 1) -> None:
        instant = time.monotonic()
        self._seconds = (self._seconds + (instant - self._since) / max(runs, 1)) / 2
        self._since = instant

    @property
    def ahead(self) -> int:
        """How many more may wait, beside those that are worked on."""
        return int(AHEAD / max(self._seconds, AHEAD / MOST))

    @property
    def share(self) -> int:
        """How many a worker may be given at once."""
        return max(1, min(SHARE, self.ahead // PORTIONS))
