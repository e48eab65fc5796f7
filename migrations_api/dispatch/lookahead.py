from typing import Final

# In seconds: how long what a worker has waiting may keep it busy, going by what its runs have taken lately.
AHEAD: Final = 0.25
MOST: Final = 16


class Lookahead:
    """How many runs the only worker may have waiting beside the one that it works on.

    The shorter they are, the more: reading the rows for each anew would cost more than carrying it out.
    """

    def __init__(self, *, is_allowed: bool) -> None:
        self._is_allowed = is_allowed
        self._seconds = AHEAD

    def took(self, seconds: float) -> None:
        self._seconds = (self._seconds + seconds) / 2

    @property
    def waiting(self) -> int:
        if not self._is_allowed:
            return 0
        return max(1, min(MOST, int(AHEAD / max(self._seconds, AHEAD / MOST))))
