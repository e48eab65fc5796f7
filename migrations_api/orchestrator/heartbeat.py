"""Beside runs whose statements may take hours: keep their leases, and cancel a statement when that is asked for."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.models.functions import Now

from migrations_api.models import MigrationRun, Rollout
from tenants.binding import cancel_statement
from tenants.conf import Conf

WATCH: Final = 1.0  # seconds
logger = logging.getLogger(__name__)


class Pulse:
    """What the thread beside a worker knows of it. `attempts` are those of the runs that the worker has claimed."""

    def __init__(self, attempts: Mapping[int, int], conf: Conf, beat: Callable[[], None]) -> None:
        self._attempts = attempts
        self._conf = conf
        self._beat = beat
        self._at_work: int | None = None
        # A statement is not canceled while the worker goes on to another run.
        self._turning = threading.Lock()
        self.connected = threading.Event()
        self.done = threading.Event()

    @contextmanager
    def working_on(self, run_id: int) -> Iterator[None]:
        self._turn_to(run_id)
        try:
            yield
        finally:
            self._turn_to(None)

    def _turn_to(self, run_id: int | None) -> None:
        with self._turning:
            self._at_work = run_id

    def keep(self) -> None:
        """What the thread does."""
        connection = connections[DEFAULT_DB_ALIAS]
        self.connected.set()
        renewed_at = time.monotonic()
        try:
            while not self.done.wait(min(WATCH, self._conf.heartbeat)):
                try:
                    self._beat()
                    self._interrupt()
                    if time.monotonic() - renewed_at >= self._conf.heartbeat:
                        self._renew()
                        renewed_at = time.monotonic()
                except DatabaseError:
                    # The lease outlasts a short outage; a long one ends it, and the tenant is read to see what came of
                    # it.
                    logger.warning("the leases of runs %s could not be renewed", sorted(self._attempts))
                    connection.close()
        finally:
            connection.close()

    def _interrupt(self) -> None:
        asked = MigrationRun.objects.held_as(self._attempts).in_flight().filter(interrupt_requested=True)
        run_ids = set(asked.values_list("pk", flat=True))
        if run_ids:
            with self._turning:
                if self._at_work in run_ids:
                    cancel_statement()

    def _renew(self) -> None:
        lease = Now() + timedelta(seconds=self._conf.lease)
        if MigrationRun.objects.held_as(self._attempts).in_flight().update(lease_expires_at=lease):
            # A driver that does the work itself cannot renew its own lease meanwhile.
            driven = Rollout.objects.filter(runs__in=list(self._attempts), lease_expires_at__isnull=False)
            driven.update(lease_expires_at=lease)


@contextmanager
def heartbeat(attempts: Mapping[int, int], conf: Conf, *, beat: Callable[[], None] = lambda: None) -> Iterator[Pulse]:
    """Renew the leases every `conf.heartbeat` seconds, from a thread with a control-plane connection of its own.

    When the run that is worked on is to be interrupted, the same thread has the server cancel what the tenant's session
    is executing. `beat` is called by it about once a second.
    """
    pulse = Pulse(attempts, conf, beat)
    thread = threading.Thread(target=pulse.keep, daemon=True)
    thread.start()
    # The thread has to take hold of `default` before that becomes the tenant.
    pulse.connected.wait()
    try:
        yield pulse
    finally:
        pulse.done.set()
        thread.join()
