"""Worker processes of this machine."""

import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

from django.db import connections

from migrations_api.dispatch.base import Lore, Terms, Work
from migrations_api.dispatch.cap import Cap
from migrations_api.dispatch.pace import Pace
from migrations_api.events import Event, RunWaiting
from tenants.binding import cancel_statement
from tenants.conf import load_conf

# Workers share the parent's loaded apps and migrations; nothing else is carried over.
_context = get_context("fork")
_NAME: Final = "tenant-migrations worker"
# In seconds.
PATIENCE: Final = 0.5
_parent_ends: set[Connection] = set()


def _close_parent_ends() -> None:
    """While a copy of its pipe's other end is open in any child, a worker would not see that the parent is gone."""
    for connection in _parent_ends:
        connection.close()
    _parent_ends.clear()


os.register_at_fork(after_in_child=_close_parent_ends)


def cancel_workers() -> None:
    """Have every worker of this process cancel the statement that it is executing; callable from any thread."""
    for process in active_children():
        if process.name == _NAME and process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR1)


@dataclass(frozen=True)
class _Lessons:
    """What is said about `lore`, in both directions."""

    lessons: Sequence[Any]


@dataclass(frozen=True)
class _Share:
    """Runs that a worker is given at once."""

    run_ids: Sequence[int]


@dataclass(frozen=True)
class _Left:
    """Those of them that it has left to be carried out by themselves."""

    run_ids: Sequence[int]


@dataclass(frozen=True)
class _Done:
    """A worker is idle again."""


class _Worker:
    def __init__(self, work: Work, lore: Lore | None) -> None:
        # A forked connection would be one session with two owners.
        connections.close_all()
        self.pipe, child = _context.Pipe()
        _parent_ends.add(self.pipe)
        self.process: BaseProcess = _context.Process(target=_serve, args=(child, work, lore), name=_NAME, daemon=True)
        self.process.start()
        child.close()
        self.share: Sequence[int] = ()
        # One that has left all of its share is at work until it says so.
        self.is_idle = True
        self.done = 0

    def submit(self, run_ids: Sequence[int]) -> None:
        self.share, self.is_idle = run_ids, False
        self.tell(_Share(run_ids))

    def tell(self, message: "_Share | _Lessons | None") -> None:
        """Runs to be carried out, what others have learned, or None to stop."""
        with suppress(OSError):  # it has died just now, which the next wait() finds out
            self.pipe.send(message)


class _Inbox:
    """What the parent has said to a worker."""

    def __init__(self, pipe: Connection, lore: Lore | None) -> None:
        self.is_stopping = False
        self._pipe = pipe
        self._lore = lore
        # While one is worked on, there is no other.
        self._share: Sequence[int] | None = None

    def should_stop(self) -> bool:
        while not self.is_stopping and self._pipe.poll():
            self._take()
        return self.is_stopping

    def next_share(self) -> Sequence[int] | None:
        """None once there is to be no other."""
        self._share = None
        while not self.is_stopping and self._share is None:
            self._take()
        return None if self.is_stopping else self._share

    def _take(self) -> None:
        try:
            told: _Share | _Lessons | None = self._pipe.recv()
        except (EOFError, ConnectionResetError):  # the parent is gone, perhaps before it read what was sent to it
            told = None
        if told is None:
            self.is_stopping = True
        elif isinstance(told, _Share):
            self._share = told.run_ids
        elif self._lore is not None:
            self._lore.learn(told.lessons)


class _Outlet:
    """What a worker says to the parent, from any of its threads."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._speaking = threading.Lock()
        self._kept: list[Event] = []

    def tell(self, message: "Event | _Lessons | _Left | _Done") -> None:
        """With what was kept until now."""
        # Where nobody listens any more, the records do not depend on it.
        with self._speaking, suppress(OSError):
            self._pipe.send([*self._kept, message])
            self._kept.clear()

    def keep(self, event: Event) -> None:
        with self._speaking:
            self._kept.append(event)


def _serve(pipe: Connection, work: Work, lore: Lore | None) -> None:
    # The parent decides when to stop; a Ctrl-C in the terminal reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _cancel_on_signal()
    inbox = _Inbox(pipe, lore)

    outlet = _Outlet(pipe)
    while (share := inbox.next_share()) is not None:
        # Of many that are quick, all is told at once.
        emit = outlet.tell if len(share) == 1 else outlet.keep
        work(share, emit=emit, should_stop=inbox.should_stop, leave=lambda left: outlet.tell(_Left(left)))
        if inbox.is_stopping:
            break
        if lore is not None and (lessons := lore.learned()):
            outlet.tell(_Lessons(lessons))
        outlet.tell(_Done())
    connections.close_all()


def _cancel_on_signal() -> None:
    """A thread reads the wakeup pipe, since Python runs signal handlers only once the driver has returned."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while os.read(reader, 1)[0] == signal.SIGUSR1:
            cancel_statement()

    threading.Thread(target=watch, daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGUSR1, lambda *_: None)


class ParallelDispatcher:
    """A pool of processes, each replaced after `tenants_per_worker` tenants. One that dies takes only its run along."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._cap = Cap(min(terms.max_concurrency, load_conf().max_workers))
        # Whoever is idle first takes the next: behind one worker it could wait in vain while others are idle.
        self._queue: deque[int] = deque()
        # Those that have turned out to need a worker for themselves.
        self._alone: deque[int] = deque()
        self._pace = Pace()
        self._per_worker = load_conf().tenants_per_worker
        self._workers: list[_Worker] = []
        self._told_to_stop = False
        # Until the first worker has something to tell, for as long as `PATIENCE`, others would find out the same.
        self._alone_until: float | None = None if terms.lore is None else math.inf

    @property
    def free(self) -> int:
        # Many at a time, before the last of them is taken.
        if self._waiting > self._most * self._pace.share:
            return 0
        ahead = self._pace.ahead if self._terms.looks_ahead else 0
        return max(0, self._idle + ahead - self._waiting)

    @property
    def room(self) -> int:
        return max(0, self._idle - self._waiting)

    @property
    def _idle(self) -> int:
        """How many workers have nothing to do, those included that there are not yet."""
        return self._most - len(self._busy)

    @property
    def _waiting(self) -> int:
        return len(self._queue) + len(self._alone)

    @property
    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if not worker.is_idle]

    @property
    def _most(self) -> int:
        return self._cap.now if self._alone_until is None else 1

    @property
    def held(self) -> frozenset[int]:
        return frozenset(self._queue).union(self._alone, *(worker.share for worker in self._busy))

    def submit(self, run_ids: Sequence[int]) -> None:
        self._queue.extend(run_ids)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._idle > 0:
            worker = self._idle_worker()
            worker.submit(self._next_share(most=self._per_worker - worker.done))

    def _next_share(self, *, most: int) -> list[int]:
        if self._alone:
            return [self._alone.popleft()]
        size = 1
        if self._terms.looks_ahead:
            # None of those that are idle goes without.
            size = max(1, min(self._pace.share, math.ceil(len(self._queue) / self._idle), most))
        return [self._queue.popleft() for _ in range(size)]

    def _idle_worker(self) -> _Worker:
        for worker in [worker for worker in self._workers if worker.is_idle]:
            # An idle worker says nothing, and what it died of, memory perhaps, may be long ago.
            if worker.process.is_alive():
                return worker
            self._retire(worker)
        worker = _Worker(self._terms.work, self._terms.lore)
        self._workers.append(worker)
        if self._alone_until == math.inf:
            self._alone_until = time.monotonic() + PATIENCE
        return worker

    def wait(self, timeout: float) -> None:
        self._pass_stop_on()
        alone_for = math.inf if self._alone_until is None else max(0.0, self._alone_until - time.monotonic())
        ready = wait([worker.pipe for worker in self._busy], min(timeout, alone_for))
        for worker in [worker for worker in self._workers if worker.pipe in ready]:
            self._receive(worker)
        if self._alone_until is not None and time.monotonic() >= self._alone_until:
            self._alone_until = None
        self._hand_out()

    def close(self) -> None:
        self._queue.clear()
        self._alone.clear()
        while self.held:
            self.wait(1.0)
        for worker in list(self._workers):
            self._retire(worker)

    def _pass_stop_on(self) -> None:
        if self._told_to_stop or not self._terms.should_stop():
            return
        self._told_to_stop = True
        self._queue.clear()
        self._alone.clear()
        for worker in self._busy:
            worker.tell(None)

    def _receive(self, worker: _Worker) -> None:
        try:
            while worker.pipe.poll():
                for message in worker.pipe.recv():
                    self._take(message, worker)
        except (EOFError, ConnectionResetError):
            self._retire(worker)
            for run_id in worker.share:
                self._terms.on_lost(run_id)
            return
        if worker.is_idle and (worker.done >= self._per_worker or self._told_to_stop or self._are_too_many):
            self._retire(worker)

    def _take(self, message: "Event | _Lessons | _Left | _Done", worker: _Worker) -> None:
        if isinstance(message, Event):
            self._heed(message)
            self._terms.emit(message)
        elif isinstance(message, _Lessons):
            self._pass_on(message, worker)
        elif isinstance(message, _Left):
            self._take_back(worker, message.run_ids)
        else:
            self._count(worker)

    def _take_back(self, worker: _Worker, run_ids: Sequence[int]) -> None:
        worker.share = [run_id for run_id in worker.share if run_id not in run_ids]
        if not self._told_to_stop:
            self._alone.extend(run_ids)

    def _count(self, worker: _Worker) -> None:
        ended = len(worker.share)
        worker.share, worker.is_idle = (), True
        worker.done += ended
        self._pace.ended(ended)
        self._cap.ended(ended)

    def _heed(self, event: Event) -> None:
        if not (isinstance(event, RunWaiting) and event.is_shortage):
            return
        self._cap.shortage()
        # An idle one keeps its sessions.
        for worker in [worker for worker in self._workers if worker.is_idle]:
            self._retire(worker)

    @property
    def _are_too_many(self) -> bool:
        return len(self._workers) > self._cap.now

    def _pass_on(self, message: _Lessons, teacher: _Worker) -> None:
        self._alone_until = None
        if self._terms.lore is not None:
            # Those that are forked from now on know it as well.
            self._terms.lore.learn(message.lessons)
        for worker in self._workers:
            if worker is not teacher:
                worker.tell(message)

    def _retire(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        _parent_ends.discard(worker.pipe)
        worker.pipe.close()
        worker.process.join()
