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
    def held(self) -> frozenset[int]:
        return frozenset()

    def submit(self, run_id: int) -> None:
        if self._terms.looks_ahead and self._terms.should_stop():
            return
        self._terms.work(run_id, emit=self._terms.emit, should_stop=self._terms.should_stop)
        self._pace.ended()

    def wait(self, timeout: float) -> None:
        """Nothing is ever in flight between two calls."""

    def close(self) -> None:
        """No workers."""
