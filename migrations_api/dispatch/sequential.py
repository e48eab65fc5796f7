from migrations_api.dispatch.base import Terms


class SequentialDispatcher:
    """One tenant after the other, in this process."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    @property
    def free(self) -> int:
        return 1

    @property
    def held(self) -> frozenset[int]:
        return frozenset()

    def submit(self, run_id: int) -> None:
        self._terms.work(run_id, emit=self._terms.emit, should_stop=self._terms.should_stop)

    def wait(self, timeout: float) -> None:
        """Nothing is ever in flight between two calls."""

    def close(self) -> None:
        """No workers."""
