"""Celery's workers, on as many machines as one likes."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.models import BooleanField, ExpressionWrapper, Q
from django.db.models.functions import Now
from kombu.exceptions import OperationalError

from migrations_api.dispatch.base import Terms
from migrations_api.dispatch.history import events_of
from migrations_api.models import MigrationRun
from migrations_api.states import ACTIVE_RUN_STATES, IN_FLIGHT_RUN_STATES, RunState
from tenants.broker import current_app
from tenants.conf import load_conf

logger = logging.getLogger(__name__)

TASK: Final = "migrations_api.work_on_run"
# How long to wait, in seconds, before the rows are read again,
LOOK_EVERY: Final = 0.15
# and before a broker that could not be reached is asked again.
ASK_AGAIN: Final = 1.0
# A broker that does not answer must not hold up whoever sends.
ANSWER_WITHIN: Final = 2.0
# The patience with a message doubles each time, up to so much; what waits in a long queue is not sent for ever.
LONGEST: Final = 32

_OVERDUE: Final = ExpressionWrapper(
    Q(state__in=IN_FLIGHT_RUN_STATES, lease_expires_at__lt=Now()), output_field=BooleanField()
)


@dataclass
class _Sent:
    """A run for which a message was sent: `attempt` as first seen, and until when it is taken to be on its way."""

    until: float
    patience: float
    attempt: int | None = None
    is_claimed: bool = False

    @property
    def is_held(self) -> bool:
        return self.is_claimed or time.monotonic() < self.until

    def comes_back(self, state: str, attempt: int, *, is_overdue: bool) -> bool:
        """Whether the run, which stands like that now, is with no worker any more; not knowing is no."""
        if state == RunState.PENDING:
            self.attempt = attempt if self.attempt is None else self.attempt
            return self.is_claimed or attempt > self.attempt
        self.is_claimed = True
        return is_overdue or state not in ACTIVE_RUN_STATES


class CeleryDispatcher:
    """Sends a message for each run and reads in its row what became of it: messages are lost, delayed and repeated.

    A run is held until it has ended, is pending once more, or has a lease that ran out. While nobody has claimed it, it
    is held for `resubmit_after` seconds, then submitted and sent again; to claim it twice is impossible.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._patience = load_conf().resubmit_after
        self._sent: dict[int, _Sent] = {}
        self._broker = _Broker()
        self._told_to_stop = False

    @property
    def free(self) -> int:
        # A run whose message was taken to be lost may turn out to be claimed, beside the one that got its slot.
        return max(0, self._terms.max_concurrency - len(self.held))

    @property
    def room(self) -> int:
        return self.free

    @property
    def held(self) -> frozenset[int]:
        return frozenset(run_id for run_id, sent in self._sent.items() if sent.is_held)

    def submit(self, run_ids: Sequence[int]) -> None:
        for run_id in run_ids:
            self._submit(run_id)

    def _submit(self, run_id: int) -> None:
        before = self._sent.get(run_id)
        patience = min(before.patience * 2, self._patience * LONGEST) if before else self._patience
        if self._broker.send(run_id, expires=patience):
            self._sent[run_id] = _Sent(time.monotonic() + patience, patience)
        else:
            # Held for a moment all the same: a driver would choose it again at once, and again.
            self._sent[run_id] = _Sent(time.monotonic() + ASK_AGAIN, self._patience / 2)

    def wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        before = self.held
        while True:
            try:
                self._pass_stop_on()
                self._look()
            except DatabaseError:
                # Workers go on without it, and the driver asks for itself.
                logger.warning("the control plane failed; trying again", exc_info=True)
                connections[DEFAULT_DB_ALIAS].close()
            rest = deadline - time.monotonic()
            if before - self.held or rest <= 0:
                return
            time.sleep(min(rest, LOOK_EVERY))

    def close(self) -> None:
        try:
            while self.held and not self._terms.leaves_running:
                self._pass_stop_on()
                self._look()
                time.sleep(LOOK_EVERY)
        finally:
            self._broker.close()

    def _pass_stop_on(self) -> None:
        if self._told_to_stop or not self._terms.should_stop():
            return
        if self._terms.leaves_running:
            self._sent.clear()
        else:
            MigrationRun.objects.active().filter(pk__in=self._sent).update(cancel_requested=True)
        self._told_to_stop = True

    def _look(self) -> None:
        if not self._sent:
            return
        rows = MigrationRun.objects.filter(pk__in=self._sent).annotate(is_overdue=_OVERDUE)
        found = {row.pk: row for row in rows.values_list("pk", "state", "attempt", "is_overdue", named=True)}
        ended = [row.pk for row in found.values() if row.state not in ACTIVE_RUN_STATES]
        events = list(events_of(ended)) if ended else []
        for run_id, sent in list(self._sent.items()):
            row = found.get(run_id)
            if row is None or sent.comes_back(row.state, row.attempt, is_overdue=row.is_overdue):
                del self._sent[run_id]
        for event in events:
            self._terms.emit(event)


class _Broker:
    """A connection of its own, since the pool's would try again for as long as the broker is away."""

    def __init__(self) -> None:
        self._connection: Any = None
        self._failed_at: float | None = None

    def send(self, run_id: int, *, expires: float) -> bool:
        """Whether the message was sent; an outage is told of once."""
        if self._failed_at is not None and time.monotonic() - self._failed_at < ASK_AGAIN:
            return False
        try:
            self._send(run_id, expires)
        except (OperationalError, OSError) as error:
            if self._failed_at is None:
                logger.warning("the broker cannot be reached; trying again: %s", error)
            self._failed_at = time.monotonic()
            self.close()
            return False
        if self._failed_at is not None:
            logger.warning("the broker can be reached again")
        self._failed_at = None
        return True

    def _send(self, run_id: int, expires: float) -> None:
        if self._connection is None:
            timeouts = {"socket_connect_timeout": ANSWER_WITHIN, "socket_timeout": ANSWER_WITHIN}
            redis = current_app().connection_for_write().transport.driver_type == "redis"
            self._connection = current_app().connection_for_write(
                connect_timeout=ANSWER_WITHIN, transport_options={"max_retries": 0, **(timeouts if redis else {})}
            )
        current_app().send_task(
            TASK,
            args=[run_id],
            connection=self._connection,
            ignore_result=True,
            retry=False,
            expires=expires,
            confirm_timeout=ANSWER_WITHIN,
        )

    def close(self) -> None:
        if self._connection is not None:
            with suppress(OperationalError, OSError):
                self._connection.release()
            self._connection = None
