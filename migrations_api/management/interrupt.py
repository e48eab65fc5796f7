"""Ctrl-C and SIGTERM end a run between two steps; a second one cancels the statement that is running."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from django.utils.module_loading import import_string

from tenants.binding import cancel_statement

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Loaded with the first worker; most often there is none.
_CANCEL_WORKERS: Final = "migrations_api.dispatch.parallel.cancel_workers"


@contextmanager
def graceful_stop(tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether to stop.

    Python runs signal handlers only between bytecodes, and a migration spends its time inside the driver; so a thread
    reads the wakeup pipe, which is written at once.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reader, stop, tell), daemon=True)
    thread.start()
    try:
        yield stop.is_set
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(writer)
        thread.join()
        os.close(reader)


def _watch(reader: int, stop: threading.Event, tell: Callable[[str], None]) -> None:
    while received := os.read(reader, 1):
        if received[0] not in _SIGNALS:
            continue
        if stop.is_set():
            tell("Canceling the statement that is running.")
            cancel_statement()
            import_string(_CANCEL_WORKERS)()
        else:
            stop.set()
            tell("Stopping: the step in flight is finished, nothing new is started. Once more cancels it.")
