"""Keeps child processes alive until a signal ends them all."""

import ctypes
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final

logger = logging.getLogger(__name__)

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
LONGEST_DELAY: Final = 30.0  # seconds
# A process that has lived for so many seconds has started well; its next end is not counted with those before.
SETTLED: Final = 30.0
TICK: Final = 0.1  # seconds
_PR_SET_PDEATHSIG: Final = 1

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def tell_what_happens() -> None:
    """A process that stays tells of its work; a command that somebody waits for shows it instead."""
    logging.getLogger("migrations_api").setLevel(logging.INFO)


def _die_with_parent() -> None:
    """On Linux, a supervisor that is killed leaves nobody behind on its port."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """A process that is started again when it ends, each time a little later."""

    def __init__(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._pass_fds = pass_fds
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._ends = 0

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tend(self) -> None:
        """Start it, or start it again once its delay is over."""
        if self._process is not None and self._process.poll() is not None:
            self._note_end(self._process.returncode)
        if self._process is None and time.monotonic() >= self._start_at:
            self._started_at = time.monotonic()
            self._process = subprocess.Popen(
                self._command,
                env=dict(self._environment),
                pass_fds=self._pass_fds,
                # A Ctrl-C reaches the whole process group; each signal is to arrive once.
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - the supervisor has one thread
            )
            logger.info("%s started as process %s", self.name, self._process.pid)

    def _note_end(self, returncode: int) -> None:
        if time.monotonic() - self._started_at >= SETTLED:
            self._ends = 0
        delay = min(LONGEST_DELAY, 0.5 * 2**self._ends)
        self._ends += 1
        self._process = None
        self._start_at = time.monotonic() + delay
        logger.error("%s ended with code %s; starting it again in %s s", self.name, returncode, delay)

    def send(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def supervise(children: Sequence[Child]) -> None:
    """Keep the children running until SIGTERM or SIGINT; pass on every such signal, and wait until all have ended."""
    with _caught() as caught:
        passed = 0
        while not passed or any(child.is_running for child in children):
            for number in caught[passed:]:
                logger.info("passing %s on and waiting", signal.Signals(number).name)
                for child in children:
                    child.send(number)
                passed += 1
            if not passed:
                for child in children:
                    child.tend()
            time.sleep(TICK)


@contextmanager
def _caught() -> Iterator[list[int]]:
    """The signals received so far, in order."""
    caught: list[int] = []
    previous = {number: signal.signal(number, lambda received, _: caught.append(received)) for number in SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
