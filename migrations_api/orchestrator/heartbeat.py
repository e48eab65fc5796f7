"""Beside a run whose statements may take hours: keep its lease, and cancel the statement when that is asked for."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, NamedTuple

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.models.functions import Now

from migrations_api.models import MigrationRun, Rollout
from tenants.binding import cancel_statement
from tenants.conf import Conf

WATCH: Final = 1.0  # seconds
logger = logging.getLogger(__name__)


@contextmanager
def heartbeat(run_id: int, attempt: int, conf: Conf, *, beat: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Renew the lease every `conf.heartbeat` seconds, from a thread with a control-plane connection of its own.

    When the run is to be interrupted, the same thread has the server cancel what the tenant's session is executing.
    `beat` is called by it about once a second.
    """
    phases = _Phases(threading.Event(), threading.Event())
    thread = threading.Thread(target=_beat, args=(run_id, attempt, conf, beat, phases), daemon=True)
    thread.start()
    # The thread has to take hold of `default` before that becomes the tenant.
    phases.connected.wait()
    try:
        yield
    finally:
        phases.done.set()
        thread.join()


class _Phases(NamedTuple):
    connected: threading.Event
    done: threading.Event


def _beat(run_id: int, attempt: int, conf: Conf, beat: Callable[[], None], phases: _Phases) -> None:
    connection = connections[DEFAULT_DB_ALIAS]
    phases.connected.set()
    renewed_at = time.monotonic()
    try:
        while not phases.done.wait(min(WATCH, conf.heartbeat)):
            try:
                beat()
                mine = MigrationRun.objects.held_by(run_id, attempt).in_flight()
                if mine.filter(interrupt_requested=True).exists():
                    cancel_statement()
                if time.monotonic() - renewed_at < conf.heartbeat:
                    continue
                lease = Now() + timedelta(seconds=conf.lease)
                if mine.update(lease_expires_at=lease):
                    # A driver that does the work itself cannot renew its own lease meanwhile.
                    Rollout.objects.filter(runs=run_id, lease_expires_at__isnull=False).update(lease_expires_at=lease)
                renewed_at = time.monotonic()
            except DatabaseError:
                # The lease outlasts a short outage; a long one ends it, and the tenant is read to see what came of it.
                logger.warning("the lease of run %s could not be renewed", run_id)
                connection.close()
    finally:
        connection.close()
