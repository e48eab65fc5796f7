"""How many runs may be in flight, where servers have fewer connections to spare than workers would take."""

import time
from typing import Final

# In seconds: what is refused within it was begun together, and counts once.
TOGETHER: Final = 1.0


class Cap:
    """Half as many after a shortage, one more after as many as there may be have ended without another."""

    def __init__(self, most: int) -> None:
        self.now = most
        self._most = most
        self._ended = 0
        self._lowered_at = -TOGETHER

    def shortage(self) -> None:
        self._ended = 0
        instant = time.monotonic()
        if instant - self._lowered_at >= TOGETHER:
            self.now = max(1, self.now // 2)
            self._lowered_at = instant

    def ended(self, runs: int = 1) -> None:
        self._ended += runs
        if self._ended >= self.now:
            self._ended = 0
            self.now = min(self._most, self.now + 1)
