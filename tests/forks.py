"""Workers as processes of their own, forked from the test, which may stop and kill them like any other's."""

import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

from django.db import connections
from django.db.backends.utils import CursorWrapper
from django.db.models.functions import Now

from migrations_api.models import MigrationRun
from migrations_api.orchestrator import share
from migrations_api.orchestrator.work import work
from tests.processes import GIVE_UP

_context = get_context("fork")


def fork(do: Callable[..., None], *arguments: Any) -> BaseProcess:
    # A forked connection would be one session with two owners.
    connections.close_all()
    process: BaseProcess = _context.Process(target=_alone, args=(do, arguments), daemon=True)
    process.start()
    return process


def _alone(do: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    try:
        do(*arguments)
    finally:
        connections.close_all()


def join(*processes: BaseProcess, within: float = GIVE_UP) -> list[int | None]:
    """Their exit codes; what does not end is killed."""
    for process in processes:
        process.join(within)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def worker(run_id: int) -> BaseProcess:
    """A coordinator's worker, which has that run."""
    return fork(work_on, run_id)


def work_on(run_id: int) -> None:
    work(run_id, emit=lambda event: None, should_stop=lambda: False, requeues=True)


def dying_worker(
    runs: int | Sequence[int], *, statement: int | str, after: bool, how: signal.Signals = signal.SIGKILL
) -> BaseProcess:
    """A worker that is killed, or paused, just before or after a statement: the one of that number, over all of its
    connections, or the first that contains that text. It has that run, or is given those at once.
    """
    return fork(_die_at, runs, statement, after, how)


def _die_at(runs: int | Sequence[int], statement: int | str, after: bool, how: signal.Signals) -> None:
    execute = CursorWrapper._execute_with_wrappers
    executed = 0

    def watched(self: CursorWrapper, sql: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal executed
        executed += 1
        is_last = executed == statement if isinstance(statement, int) else statement in str(sql)
        if is_last and not after:
            os.kill(os.getpid(), how)
        found = execute(self, sql, *arguments, **options)
        if is_last:
            os.kill(os.getpid(), how)
        return found

    CursorWrapper._execute_with_wrappers = watched  # type: ignore[method-assign]
    if isinstance(runs, int):
        work_on(runs)
    else:
        share.work_on(runs, emit=lambda event: None, should_stop=lambda: False, leave=lambda run_ids: None)


def expire(run: MigrationRun) -> None:
    """Have its lease run out now instead of in half a minute."""
    MigrationRun.objects.filter(pk=run.pk).in_flight().update(lease_expires_at=Now())


def one_by_one(carry_out: Callable[..., None]) -> Callable[..., None]:
    """What a dispatcher's workers do, where runs that are given at once are carried out like any others."""

    def work(run_ids: Sequence[int], *, leave: Any, **options: Any) -> None:
        for run_id in run_ids:
            carry_out(run_id, **options)

    return work
