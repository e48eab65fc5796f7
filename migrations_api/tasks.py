"""What Celery's workers do; an app finds it by autodiscover_tasks(). Nothing else may import it: Celery is an extra."""

import logging
import mmap
import threading
from typing import Any

from celery import shared_task
from celery.signals import worker_shutting_down
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections

from migrations_api.dispatch.remote import TASK
from migrations_api.orchestrator.event_log import log_event
from migrations_api.orchestrator.work import work

logger = logging.getLogger(__name__)

# The worker's processes are forked later and share this byte. There is no lock to it, which a killed one could keep.
_stopping = mmap.mmap(-1, 1)


@worker_shutting_down.connect
def stop_between_steps(**kwargs: Any) -> None:
    """Celery waits for its tasks to end, and a run may take hours."""
    _stopping[0] = 1


def is_stopping() -> bool:
    return _stopping[0] != 0


@shared_task(name=TASK, ignore_result=True)
def work_on_run(run_id: int) -> None:
    """Carry out a run that nobody else has begun; what is left of it when the worker goes down is pending again."""
    if threading.current_thread() is not threading.main_thread():
        # While a migration runs, the process's `default` is the tenant, for whatever else runs in it too.
        raise ImproperlyConfigured("Migrations need a process each: start the worker with --pool=prefork.")
    try:
        work(run_id, emit=log_event, should_stop=is_stopping, requeues=True)
    except DatabaseError:
        # A run that is pending is sent again; one that was begun is settled when its lease is over.
        logger.warning("the control plane failed while run %s was worked on", run_id, exc_info=True)
    finally:
        # A session that broke is not to be the next run's, nor to be kept while there is none.
        connections.close_all()
