"""Carry out several runs that one worker was given at once: claimed by one statement, and ended by one."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from migrations_api.dispatch.base import Emit, Leave, ShouldStop
from migrations_api.events import RunStarted, RunWaiting
from migrations_api.log_context import about_run
from migrations_api.models import records
from migrations_api.orchestrator.heartbeat import heartbeat
from migrations_api.orchestrator.outbox import Outbox
from migrations_api.orchestrator.recorder import Recorder
from migrations_api.orchestrator.work import attempt, bound_transactions, work
from tenants.conf import load_conf
from tenants.exceptions import ServiceError
from tenants.models import Tenant
from tenants.preflight import HomeFacts, home_facts
from tenants.watch import Watch, watch_of

# In seconds: for how long a worker begins further runs of those that it has claimed at once, and for how long the rest
# waits behind one of them.
TOGETHER: Final = 0.5


def work_on(
    run_ids: Sequence[int], *, emit: Emit, should_stop: ShouldStop, leave: Leave, requeues: bool = False
) -> None:
    """Bring pending runs to their ends, one after the other.

    A single one is carried out as work() does. Several are for tenants that take a moment: one that has to wait, and
    whatever has not begun within `TOGETHER`, is pending again and left to be carried out by itself.
    """
    if len(run_ids) == 1:
        work(run_ids[0], emit=emit, should_stop=should_stop, requeues=requeues)
        return
    conf = load_conf()
    bound_transactions(conf.lease)
    outbox = Outbox(emit)
    recorders = [
        Recorder(run, emit=emit, should_stop=should_stop, requeues=requeues, outbox=outbox)
        for run in records.claim_all(run_ids, lease=conf.lease)
    ]
    share, homes = _Share(recorders, outbox, leave), _homes([each.run.tenant for each in recorders])
    with heartbeat({each.run.pk: each.run.attempt for each in recorders}, conf, beat=share.beat) as pulse:
        while (recorder := share.next()) is not None:
            run = recorder.run
            with about_run(run.pk, run.tenant_id), pulse.working_on(run.pk):
                emit(RunStarted(run_id=run.pk, tenant_id=run.tenant_id, tenant_name=run.tenant.name))
                failure = attempt(run, recorder, home=homes.get(run.tenant_id), waits=False)
            if failure is not None:
                recorder.tell(RunWaiting, cause=failure.message, seconds=0.0, is_shortage=failure.is_shortage)
                share.give_back([recorder])
            if share.is_over or should_stop():
                share.give_up()
            if outbox.is_due:
                outbox.flush()
    outbox.flush()


def _homes(tenants: Sequence[Tenant]) -> dict[str, HomeFacts]:
    """What the catalogs say of their homes, by tenant; of those that are not here, each run asks for itself."""
    by_watch: defaultdict[Watch, list[Tenant]] = defaultdict(list)
    for tenant in tenants:
        if (watch := watch_of(tenant)) is not None:
            by_watch[watch].append(tenant)
    found = {}
    for watch, there in by_watch.items():
        # What is wrong with a server, each run is told by itself.
        with suppress(ServiceError):
            facts = home_facts(watch, [tenant.schema_name for tenant in there])
            found.update({tenant.pk: facts[tenant.schema_name] for tenant in there})
    return found


class _Share:
    """Those of the runs that have not begun, which the thread beside the worker gives back when one takes long."""

    def __init__(self, recorders: Sequence[Recorder], outbox: Outbox, leave: Leave) -> None:
        self._rest = deque(recorders)
        self._taking = threading.Lock()
        self._current: Recorder | None = None
        self._deadline = time.monotonic() + TOGETHER
        self._outbox = outbox
        self._leave = leave

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._deadline

    def next(self) -> Recorder | None:
        with self._taking:
            self._current = self._rest.popleft() if self._rest else None
        return self._current

    def beat(self) -> None:
        self._outbox.write()
        if (current := self._current) is not None:
            current.beat()
        if self.is_over:
            self.give_up()

    def give_up(self) -> None:
        with self._taking:
            rest = list(self._rest)
            self._rest.clear()
        self.give_back(rest)

    def give_back(self, recorders: Sequence[Recorder]) -> None:
        given = [recorder.run.pk for recorder in recorders if recorder.give_back()]
        if given:
            self._leave(given)
