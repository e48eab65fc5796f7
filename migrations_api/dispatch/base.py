from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from migrations_api.events import Event

Emit = Callable[[Event], None]
ShouldStop = Callable[[], bool]
OnLost = Callable[[int], None]
Leave = Callable[[list[int]], None]


class Work(Protocol):
    """Carry out runs to their ends. Never raises for what a run does; what it raises is a defect.

    A single one is carried out in any case. Of several, it may `leave` some, from any thread: they are to be carried
    out by themselves, since others would have to wait behind them, or they behind another.
    """

    def __call__(self, run_ids: Sequence[int], *, emit: Emit, should_stop: ShouldStop, leave: Leave) -> None: ...


class Lore(Protocol):
    """What a worker process has found out and others can use, as plain data: none has to find it out anew."""

    def learned(self) -> Sequence[Any]:
        """What is new since this process was last asked."""

    def learn(self, lessons: Sequence[Any]) -> None:
        """Take over what another process has learned."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On which runs are dispatched. `max_concurrency` limits those in flight, whatever is submitted.

    With `looks_ahead` nothing depends on how a run ends before the next one begins: more may wait than are begun, and a
    worker may be given several at once.

    With `leaves_running` another driver carries on where this one ends: once `should_stop` says so, what is not done by
    processes of this machine is neither stopped nor waited for.

    With `lore`, worker processes tell each other of it.
    """

    work: Work
    max_concurrency: int
    emit: Emit
    should_stop: ShouldStop
    on_lost: OnLost
    looks_ahead: bool = False
    leaves_running: bool = False
    lore: Lore | None = None


class Dispatcher(Protocol):
    """How "work on that run" reaches a worker; what the work is, it does not know.

    A driver `submit`s no more than are `free`, `wait`s for progress, and in the end calls `close`, once. What was
    submitted and not begun when `should_stop` says so is not begun. A run whose worker dies is no longer held: its
    lease ends, and the truth is read from the tenant. Where the dispatcher is certain that the worker is gone, it tells
    `on_lost`, which must not raise.
    """

    def __init__(self, terms: Terms) -> None: ...

    @property
    def free(self) -> int:
        """How many more runs can be submitted now."""

    @property
    def room(self) -> int:
        """How many of those would be begun at once; the rest waits for others to end."""

    @property
    def held(self) -> frozenset[int]:
        """The runs that were submitted and have not come back."""

    def submit(self, run_ids: Sequence[int]) -> None: ...

    def wait(self, timeout: float) -> None:
        """Deliver events for at most `timeout` seconds, returning as soon as a run has come back."""

    def close(self) -> None:
        """Wait for what was submitted, unless `leaves_running` says otherwise, and let the workers go."""
