from migrations_api.dispatch.base import Emit, OnLost, ShouldStop, Work


class SequentialDispatcher:
    """One tenant after the other, in this process."""

    def __init__(
        self,
        work: Work,
        *,
        max_concurrency: int,
        emit: Emit,
        should_stop: ShouldStop,
        on_lost: OnLost,
        looks_ahead: bool = False,
        leaves_running: bool = False,
    ) -> None:
        self._work = work
        self._emit = emit
        self._should_stop = should_stop

    @property
    def free(self) -> int:
        return 1

    @property
    def held(self) -> frozenset[int]:
        return frozenset()

    def submit(self, run_id: int) -> None:
        self._work(run_id, emit=self._emit, should_stop=self._should_stop)

    def wait(self, timeout: float) -> None:
        """Nothing is ever in flight between two calls."""

    def close(self) -> None:
        """No workers."""
