"""Keep a run's lease while a statement may take hours."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.models.functions import Now

from migrations_api.models import MigrationRun, Rollout
from tenants.conf import Conf

logger = logging.getLogger(__name__)


@contextmanager
def heartbeat(run_id: int, attempt: int, conf: Conf) -> Iterator[None]:
    """Renew the lease every `conf.heartbeat` seconds, from a thread with a control-plane connection of its own."""
    done, connected = threading.Event(), threading.Event()
    thread = threading.Thread(target=_beat, args=(run_id, attempt, conf, connected, done), daemon=True)
    thread.start()
    # The thread has to take hold of `default` before that becomes the tenant.
    connected.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _beat(run_id: int, attempt: int, conf: Conf, connected: threading.Event, done: threading.Event) -> None:
    connection = connections[DEFAULT_DB_ALIAS]
    connected.set()
    try:
        while not done.wait(conf.heartbeat):
            try:
                lease = Now() + timedelta(seconds=conf.lease)
                if MigrationRun.objects.held_by(run_id, attempt).active().update(lease_expires_at=lease):
                    # A driver that does the work itself cannot renew its own lease meanwhile.
                    Rollout.objects.filter(runs=run_id, lease_expires_at__isnull=False).update(lease_expires_at=lease)
            except DatabaseError:
                # The lease outlasts a short outage; a long one ends it, and the tenant is read to see what came of it.
                logger.warning("the lease of run %s could not be renewed", run_id)
                connection.close()
    finally:
        connection.close()
