from collections import deque
from collections.abc import Sequence

from migrations_api.dispatch.base import Terms
from migrations_api.dispatch.pace import Pace


class SequentialDispatcher:
    """One tenant after the other, in this process."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._pace = Pace()

    @property
    def free(self) -> int:
        return 1 + max(1, self._pace.ahead) if self._terms.looks_ahead else 1

    @property
    def room(self) -> int:
        return 1

    @property
    def held(self) -> frozenset[int]:
        return frozenset()

    def submit(self, run_ids: Sequence[int]) -> None:
        rest, alone = deque(run_ids), deque[int]()
        while (alone or rest) and not (self._terms.looks_ahead and self._terms.should_stop()):
            if alone:
                self._work([alone.popleft()])
            else:
                share = [rest.popleft() for _ in range(min(self._pace.share, len(rest)))]
                alone.extend(self._work(share))

    def _work(self, run_ids: Sequence[int]) -> list[int]:
        """Returns those that are left to be carried out by themselves."""
        left: list[int] = []
        self._terms.work(run_ids, emit=self._terms.emit, should_stop=self._terms.should_stop, leave=left.extend)
        self._pace.ended(len(run_ids) - len(left))
        return left

    def wait(self, timeout: float) -> None:
        """Nothing is ever in flight between two calls."""

    def close(self) -> None:
        """No workers."""
