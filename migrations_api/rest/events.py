"""Progress as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), read from the rows.

An event's id says what its reader knows by then, so a reader that comes back with it gets what is new and no more.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

from django.db import connection
from django.db.models import Count, Q
from rest_framework.renderers import JSONRenderer

from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.reports import reports
from migrations_api.serializers.rollouts import RolloutSerializer
from migrations_api.serializers.runs import MigrationRunSerializer, RunStepSerializer
from migrations_api.states import ACTIVE_ROLLOUT_STATES, StepState
from tenants.exceptions import ServiceError

POLL: Final = 0.5  # seconds
KEEP_ALIVE: Final = 15.0  # seconds; proxies end a connection that is silent for longer
LONGEST: Final = 600.0  # seconds, after which the reader comes back with the id of the last event
# A stream keeps a thread of the web server busy; half of the threads that `serve` starts are left to the rest.
MAX_STREAMS: Final = 4

_places = threading.BoundedSemaphore(MAX_STREAMS)


class TooManyStreams(ServiceError):
    """Too many event streams are open; poll instead, or try again later."""

    code = "too_many_streams"


@dataclass(frozen=True, kw_only=True)
class ServerEvent:
    kind: str
    id: str
    data: Any

    def encode(self) -> bytes:
        data = JSONRenderer().render(self.data)
        return b"id: %s\nevent: %s\ndata: %s\n\n" % (self.id.encode(), self.kind.encode(), data)


@dataclass(frozen=True, kw_only=True)
class News:
    """What is new since the last look; `over` when nothing will follow."""

    events: list[ServerEvent]
    over: bool


def run_events(run_id: int, *, last_event_id: str = "") -> Iterator[bytes]:
    """The events `run` and `step` of one run until it has ended; raises TooManyStreams."""
    return EventStream(RunWatcher(run_id, last_event_id).look)


def rollout_events(rollout_id: int, *, last_event_id: str = "") -> Iterator[bytes]:
    """An event `rollout`, with the counts of its runs, at each change until it has ended; raises TooManyStreams."""
    return EventStream(RolloutWatcher(rollout_id, last_event_id).look)


class EventStream:
    """One of at most MAX_STREAMS streams; gives its place back when it is closed, read to its end or not."""

    def __init__(self, look: Callable[[], News]) -> None:
        if not _places.acquire(blocking=False):
            raise TooManyStreams
        self._open = True
        self._body = _body(look)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._body)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._open:
            self._open = False
            self._body.close()
            _places.release()


def _body(look: Callable[[], News]) -> Generator[bytes, None, None]:
    began = spoke = time.monotonic()
    yield b"retry: 1000\n\n"
    while time.monotonic() - began < LONGEST:
        news = look()
        # Between two looks the stream needs no connection.
        if not connection.in_atomic_block:
            connection.close()
        for event in news.events:
            yield event.encode()
            spoke = time.monotonic()
        if news.over:
            return
        if time.monotonic() - spoke >= KEEP_ALIVE:
            yield b": keep-alive\n\n"
            spoke = time.monotonic()
        time.sleep(POLL)


class RunWatcher:
    """What a reader of one run's events knows: an attempt, how far its steps are, and a digest of the run itself.

    Steps come in order, so a position and whether that step has ended stand for all before it. The id is those four,
    separated by dots.
    """

    def __init__(self, run_id: int, last_event_id: str) -> None:
        self._rows = MigrationRun.objects.filter(pk=run_id)
        self._glance: object = None
        self._attempt, self._position, self._ended, self._digest = _parsed(last_event_id)

    def look(self) -> News:
        """One small query; two more when something has changed."""
        steps = Count("steps", filter=~Q(steps__state=StepState.PENDING))
        ended = Count("steps", filter=~Q(steps__state__in=[StepState.PENDING, StepState.RUNNING]))
        shown = ("state", "attempt", "cancel_requested", "interrupt_requested", "waiting_cause", "plan_digest")
        glance = self._rows.annotate(steps_begun=steps, steps_ended=ended).values_list(
            *shown, "steps_begun", "steps_ended"
        )
        seen = glance.first()
        if seen == self._glance and seen is not None:
            return News(events=[], over=False)
        self._glance = seen
        run = self._rows.prefetch_related("steps").first()
        if run is None:
            return News(events=[], over=True)
        return News(events=[*self._step_events(run), *self._run_events(run)], over=not run.is_active)

    def _step_events(self, run: MigrationRun) -> Iterator[ServerEvent]:
        if run.attempt != self._attempt:
            self._attempt, self._position, self._ended = run.attempt, 0, 0
        for step in run.steps.all():
            ended = int(step.state != StepState.RUNNING)
            if step.state == StepState.PENDING or (step.position, ended) <= (self._position, self._ended):
                continue
            self._position, self._ended = step.position, ended
            yield ServerEvent(kind="step", id=self._id(), data=RunStepSerializer(step).data)

    def _run_events(self, run: MigrationRun) -> Iterator[ServerEvent]:
        data = MigrationRunSerializer(run).data
        digest = _digest(data)
        if digest != self._digest:
            self._digest = digest
            yield ServerEvent(kind="run", id=self._id(), data=data)

    def _id(self) -> str:
        return f"{self._attempt}.{self._position}.{self._ended}.{self._digest}"


def _parsed(last_event_id: str) -> tuple[int, int, int, str]:
    """A reader with an id that is none of ours knows nothing."""
    numbers, _, digest = last_event_id[:100].rpartition(".")
    parts = numbers.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return -1, 0, 0, ""
    attempt, position, ended = map(int, parts)
    return attempt, position, ended, digest


class RolloutWatcher:
    """What a reader of a rollout's events knows is the digest of what it was last sent, which is the id."""

    def __init__(self, rollout_id: int, last_event_id: str) -> None:
        self._rollout_id = rollout_id
        self._digest = last_event_id

    def look(self) -> News:
        rollout = Rollout.objects.filter(pk=self._rollout_id).first()
        if rollout is None:
            return News(events=[], over=True)
        data = RolloutSerializer(rollout, context={"reports": reports([rollout])}).data
        # Its speed changes all the time; that alone is no news.
        known, self._digest = self._digest, _digest({**data, "progress": None})
        events = [] if known == self._digest else [ServerEvent(kind="rollout", id=self._digest, data=data)]
        return News(events=events, over=rollout.state not in ACTIVE_ROLLOUT_STATES)


def _digest(data: Any) -> str:
    return hashlib.sha256(JSONRenderer().render(data)).hexdigest()[:12]
