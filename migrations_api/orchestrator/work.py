"""Carry out one run: claim it, execute its plan, try again what is transient, record how it ended."""

import logging
import random
import time
from datetime import timedelta
from typing import Any
from weakref import WeakSet

from django.db import connection
from django.db.models.functions import Now

from migrations_api.dispatch.base import Emit, ShouldStop
from migrations_api.events import RunStarted, RunWaiting
from migrations_api.exceptions import OutcomeUnknown, TenantLocked
from migrations_api.executor import End, Failure, Options, Outcome, execute, failure_of
from migrations_api.log_context import about_run
from migrations_api.models import MigrationRun, records
from migrations_api.models.prepared import mend
from migrations_api.orchestrator import repairs, templates
from migrations_api.orchestrator.batches import goal_of
from migrations_api.orchestrator.heartbeat import heartbeat
from migrations_api.orchestrator.progress import AttemptLost
from migrations_api.orchestrator.recorder import Recorder, session_name
from migrations_api.orchestrator.sources import source_for
from tenants.conf import Conf, load_conf
from tenants.exceptions import AuthenticationFailed, NotProvisioned, ServerUnreachable, ServiceError
from tenants.preflight import HomeFacts

logger = logging.getLogger(__name__)


def work(run_id: int, *, emit: Emit, should_stop: ShouldStop, requeues: bool = False) -> None:
    """Bring a pending run to its end. Nothing happens when it is somebody else's or has ended.

    When `should_stop` says so, the step in flight is finished, and the run is canceled; with `requeues` it becomes
    pending again.
    """
    conf = load_conf()
    bound_transactions(conf.lease)
    run = records.claim(run_id, lease=conf.lease)
    if run is None:
        return
    with about_run(run.pk, run.tenant_id):
        emit(RunStarted(run_id=run.pk, tenant_id=run.tenant_id, tenant_name=run.tenant.name))
        while run is not None:
            recorder = Recorder(run, emit=emit, should_stop=should_stop, requeues=requeues)
            # Waiting included: a long backoff must outlast neither the run's lease nor its driver's.
            with heartbeat({run.pk: run.attempt}, conf, beat=recorder.beat) as pulse, pulse.working_on(run.pk):
                failure = attempt(run, recorder)
                run = _wait(run, recorder, failure, conf) if failure else None


_bounded: WeakSet[Any] = WeakSet()


def bound_transactions(seconds: float) -> None:
    """A worker that is paused in the middle of writing a record keeps rows locked, which the coordinator waits for."""
    mend()
    connection.ensure_connection()
    if connection.connection in _bounded:
        return
    _bounded.add(connection.connection)
    with connection.cursor() as cursor:
        milliseconds = f"{round(seconds * 1000)}"
        cursor.execute("SELECT set_config('idle_in_transaction_session_timeout', %s, false)", [milliseconds])


def attempt(
    run: MigrationRun, recorder: Recorder, *, home: HomeFacts | None = None, waits: bool = True
) -> Failure | None:
    """One attempt; a Failure is returned when another attempt may succeed, otherwise the run has its end.

    `home` is what the catalog has said of the tenant just now. Without `waits`, whoever has its lock is not waited for.
    """
    last = run.attempt >= load_conf().attempts
    try:
        outcome = _execute(run, recorder, home=home, waits=waits)
    except AttemptLost:
        logger.warning("run %s of tenant %s was taken over", run.pk, run.tenant_id)
        return None
    except OutcomeUnknown as error:
        recorder.lose(error.message)
        return None
    except ServiceError as error:
        failure = failure_of(error)
        # What is not waited for here is left to an attempt that does.
        if _passes(error, failure) and not (last and waits):
            return failure
        recorder.finish(_end_of(error, run), failure)
        return None
    if outcome.failure is not None and outcome.failure.transient and outcome.end is End.FAILED and not last:
        recorder.pause(outcome)
        return outcome.failure
    recorder.ended(outcome)
    return None


def _passes(error: ServiceError, failure: Failure) -> bool:
    """Whether what kept the run from starting may be gone by the next attempt."""
    # A refused password stays refused, and a server may lock the user out after a few.
    if isinstance(error, AuthenticationFailed):
        return False
    return isinstance(error, TenantLocked | ServerUnreachable) or (failure.transient and failure.sqlstate != "")


def _end_of(error: ServiceError, run: MigrationRun) -> str:
    if isinstance(error, TenantLocked):
        return "cancel"
    if isinstance(error, NotProvisioned) and run.rollout_id is not None:
        return "skip"
    return "fail"


def _execute(run: MigrationRun, recorder: Recorder, *, home: HomeFacts | None, waits: bool) -> Outcome:
    if run.repair_of_id is not None:
        return repairs.carry_out(run, recorder)
    if run.options.get("template"):
        return templates.carry_out(run, recorder)
    return execute(
        run.tenant,
        source_for(run.tenant.isolation),
        goal_of(run),
        Options(**run.options),
        observer=recorder,
        application_name=session_name(run),
        # Once it was agreed to, the plan of a later attempt is what is left of it.
        plan_digest="" if run.applied_before_id else run.expected_digest,
        left_before=run.left_before,
        home=home,
        waits=waits,
    )


def _wait(run: MigrationRun, recorder: Recorder, failure: Failure, conf: Conf) -> MigrationRun | None:
    """Back off, then claim the run once more; None when it was canceled or taken over meanwhile."""
    seconds = min(conf.max_backoff, conf.backoff * 2 ** (run.attempt - 1)) * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
    held = MigrationRun.objects.held_by(run.pk, run.attempt)
    lease = Now() + timedelta(seconds=seconds + conf.lease)
    if not held.transition("wait", waiting_cause=failure.message[:500], lease_expires_at=lease):
        return None
    recorder.tell(RunWaiting, cause=failure.message, seconds=seconds, is_shortage=failure.is_shortage)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if recorder.should_stop():
                if not recorder.requeue():
                    recorder.finish("cancel", failure)
                return None
            time.sleep(min(0.2, seconds))
    except AttemptLost:
        return None
    return records.claim(run.pk, lease=conf.lease)
