import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count
from multiprocessing import Pipe, active_children
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.db.models.functions import Now
from psycopg2 import sql

from migrations_api import exceptions
from migrations_api.dispatch.base import Terms
from migrations_api.dispatch.parallel import ParallelDispatcher, _Inbox
from migrations_api.dispatch.sequential import SequentialDispatcher
from migrations_api.events import Event, RunEnded, RunStarted, StepStarted
from migrations_api.executor import Options
from migrations_api.models import MigrationRun, Rollout, records
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.advance import advance
from migrations_api.orchestrator.driver import drive
from migrations_api.orchestrator.endings import failure_groups, finish_if_done
from migrations_api.orchestrator.requests import Request, request_rollout, request_run
from migrations_api.orchestrator.rollout_verbs import cancel
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.forks import one_by_one
from tests.processes import wait_until

MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]
Emit = Callable[[Event], None]
EXECUTORS = ["sequential", "parallel"]


def ask(*target: str, strategy: Strategy | None = None, **options: bool) -> Rollout:
    app_label, name = [*target, None, None][:2]
    request = Request(target=Target(app_label=app_label, migration_name=name), options=Options(**options))
    return request_rollout(Tenant.objects.all(), request, strategy=strategy or Strategy())


def carry_out(
    rollout: Rollout,
    executor: str = "sequential",
    *,
    workers: int = 2,
    emit: Emit = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Rollout:
    return drive(rollout, executor=executor, max_concurrency=workers, emit=emit, should_stop=should_stop)


def states(rollout: Rollout) -> dict[str, str]:
    return dict(rollout.runs.order_by("tenant_id").values_list("tenant_id", "state"))


def applied(tenant: Tenant) -> int:
    return len(catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name))


def make_fleet(make_tenant: MakeTenant, *tenant_ids: str) -> list[Tenant]:
    return [make_tenant(tenant_id) for tenant_id in tenant_ids]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_drive__migrates_every_tenant(make_tenant: MakeTenant, executor: str) -> None:
    fleet = [make_tenant("acme"), make_tenant("globex", Isolation.DATABASE), make_tenant("shared", Isolation.SHARED)]
    rollout = carry_out(ask(), executor)
    assert (rollout.state, rollout.lease_expires_at) == ("succeeded", None)
    assert rollout.started_at is not None
    assert rollout.finished_at is not None
    assert states(rollout) == {"acme": "succeeded", "globex": "succeeded", "shared": "succeeded"}
    assert [applied(tenant) for tenant in fleet] == [15, 15, 2]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_drive__shared_tenants_are_done_before_any_other_starts(make_tenant: MakeTenant, executor: str) -> None:
    # By its id the shared tenant would be the last.
    make_fleet(make_tenant, "acme", "globex", "initech")
    make_tenant("zulu", Isolation.SHARED)
    told: list[Event] = []
    carry_out(ask(), executor, workers=4, emit=told.append)
    kinds = [(type(event), event.tenant_id) for event in told if isinstance(event, RunStarted | RunEnded)]
    assert kinds[:2] == [(RunStarted, "zulu"), (RunEnded, "zulu")]
    shared = MigrationRun.objects.get(tenant_id="zulu")
    assert all(run.started_at >= shared.finished_at for run in MigrationRun.objects.exclude(pk=shared.pk))


def test_drive__sequential_order_is_that_of_the_ids(make_tenant: MakeTenant) -> None:
    make_fleet(make_tenant, "initech", "acme", "globex")
    told: list[Event] = []
    carry_out(ask("users", "0001"), emit=told.append)
    assert [event.tenant_id for event in told if isinstance(event, RunStarted)] == ["acme", "globex", "initech"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_drive__a_failing_tenant_stops_no_other(broken: Choose, make_tenant: MakeTenant, executor: str) -> None:
    broken(orders="orders_failing_data")
    make_fleet(make_tenant, "acme", "globex", "globex-two", "initech")
    rollout = carry_out(ask(), executor)
    assert rollout.state == "failed"
    assert states(rollout) == {"acme": "succeeded", "globex": "failed", "globex-two": "failed", "initech": "succeeded"}
    # Each failure is there, not only the first.
    assert set(rollout.runs.filter(state="failed").values_list("failed_step", flat=True)) == {"orders.0003_channel"}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_drive__on_error_fail_cancels_what_was_not_started(
    broken: Choose, make_tenant: MakeTenant, executor: str
) -> None:
    broken(orders="orders_failing_data")
    make_fleet(make_tenant, "acme", "globex", "initech", "umbrella")
    rollout = carry_out(ask(strategy=Strategy(on_error="fail")), executor, workers=1)
    assert rollout.state == "failed"
    assert states(rollout) == {"acme": "succeeded", "globex": "failed", "initech": "canceled", "umbrella": "canceled"}
    assert applied(Tenant.objects.get(pk="acme")) == 14


@pytest.mark.parametrize("executor", EXECUTORS)
def test_drive__unprovisioned_tenants_are_skipped(make_tenant: MakeTenant, executor: str) -> None:
    make_tenant("acme")
    make_tenant("ghost", provision=False)
    make_tenant("phantom", Isolation.DATABASE, provision=False)
    rollout = carry_out(ask("users"), executor)
    assert rollout.state == "succeeded"
    assert states(rollout) == {"acme": "succeeded", "ghost": "skipped", "phantom": "skipped"}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_drive__of_no_tenants(plane: None, executor: str) -> None:
    assert carry_out(ask(), executor).state == "succeeded"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_drive__unloadable_migrations_fail_each_run(broken: Choose, make_tenant: MakeTenant, executor: str) -> None:
    broken(orders="orders_missing_dependency")
    make_fleet(make_tenant, "acme", "globex")
    rollout = carry_out(ask(), executor)
    assert rollout.state == "failed"
    assert set(rollout.runs.values_list("error_code", flat=True)) == {exceptions.UnloadableMigrations.code}


def test_drive__parallel_leaves_the_same_records_as_sequential(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_failing_data")
    make_fleet(make_tenant, "acme", "globex", "initech")
    fields = ["tenant_id", "state", "attempt", "plan_digest", "applied_before", "applied_after", "error_code"]
    fields += ["error_class", "sqlstate", "failed_step", "message", "wave", "steps__name", "steps__state"]
    records = []
    for executor in EXECUTORS:
        rollout = carry_out(ask(), executor)
        records.append(list(rollout.runs.order_by("tenant_id", "steps__position").values(*fields)))
        for app_label in ("orders", "products", "users"):
            carry_out(ask(app_label, "zero"), executor)
    assert records[0] == records[1]
    assert len(records[0]) > 40


def test_drive__stops_when_asked(make_tenant: MakeTenant) -> None:
    make_fleet(make_tenant, "acme", "globex")
    told: list[Event] = []
    rollout = carry_out(
        ask("users"), emit=told.append, should_stop=lambda: any(isinstance(event, StepStarted) for event in told)
    )
    assert rollout.state == "canceled"
    assert states(rollout) == {"acme": "canceled", "globex": "canceled"}
    assert (applied(Tenant.objects.get(pk="acme")), told[-1].tenant_id) == (1, "acme")


def test_parallel__workers_are_replaced_after_their_share_of_tenants(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"tenants_per_worker": 2}
    make_fleet(make_tenant, "acme", "globex", "initech", "umbrella", "wayne")
    workers: dict[str, int] = {}

    def emit(event: Event) -> None:
        if isinstance(event, RunStarted):
            (worker,) = active_children()
            workers[event.tenant_id] = worker.pid or 0

    carry_out(ask("users", "0001"), "parallel", workers=1, emit=emit)
    pids = list(workers.values())
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    assert active_children() == []


@pytest.mark.parametrize("shared", [False, True], ids=["tenant", "shared"])
def test_parallel__a_killed_worker_takes_only_its_own_tenant_along(
    make_tenant: MakeTenant, settings: Any, shared: bool
) -> None:
    settings.TENANT_MIGRATIONS = {"lock_timeout": 20, "lease": 1, "heartbeat": 0.2, "attempts": 1}
    make_fleet(make_tenant, "acme", "globex", "initech")
    victim = make_tenant("zulu", Isolation.SHARED) if shared else Tenant.objects.get(pk="globex")
    target = ("plans", "0001", "plans_plan") if shared else ("users", "0001", "users_user")
    request = Request(target=Target(app_label=target[0], migration_name=target[1]))
    work(request_run(victim, request).pk, emit=lambda event: None, should_stop=lambda: False)
    other = psycopg2.connect(**catalog.tenant_dsn(victim))
    table = sql.Identifier(victim.schema_name, target[2])
    other.cursor().execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))

    def emit(event: Event) -> None:
        if isinstance(event, StepStarted) and event.tenant_id == victim.tenant_id:
            (worker,) = active_children()
            os.kill(worker.pid or 0, signal.SIGKILL)
            # What the dead worker's session waits for is free again, and the session sees that its client is gone.
            other.close()

    rollout = carry_out(ask(), "parallel", workers=1, emit=emit)
    assert rollout.state == "failed"
    assert states(rollout) == {
        **dict.fromkeys(["acme", "globex", "initech"], "succeeded"),
        victim.tenant_id: "failed",
    }
    assert rollout.runs.get(tenant=victim).error_code == "worker_lost"


def test_request__tenants_with_an_unfinished_run_are_skipped_and_say_so(make_tenant: MakeTenant) -> None:
    busy, _ = make_fleet(make_tenant, "acme", "globex")
    run = request_run(busy, Request())
    rollout = carry_out(request_rollout(Tenant.objects.all(), Request()))
    assert states(rollout) == {"acme": "skipped", "globex": "succeeded"}
    skipped = rollout.runs.get(tenant=busy)
    assert (skipped.error_code, skipped.message) == ("run_active", f"Tenant 'acme' has an unfinished run: {run.pk}.")
    # One of its tenants is not where it was to be brought.
    assert rollout.state == "failed"
    assert [group["error_code"] for group in failure_groups(rollout)] == ["run_active"]


def test_request__that_finds_every_tenant_busy_is_refused_by_a_run(make_tenant: MakeTenant) -> None:
    make_fleet(make_tenant, "acme", "globex")
    first = request_rollout(Tenant.objects.all(), Request())
    with pytest.raises(exceptions.RunActive) as caught:
        request_rollout(Tenant.objects.all(), Request())
    assert caught.value.run_id == first.runs.get(tenant="acme").pk
    assert list(Rollout.objects.all()) == [first]


def test_request__target_reaches_only_the_kinds_that_have_it(make_tenant: MakeTenant) -> None:
    make_tenant("acme")
    make_tenant("shared", Isolation.SHARED)
    assert set(states(ask("plans"))) == {"shared"}
    assert set(states(ask("users"))) == {"acme"}


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (("nowhere",), exceptions.UnknownApp),
        (("users", "0099"), exceptions.UnknownMigration),
        (("users", "000"), exceptions.AmbiguousMigration),
    ],
)
def test_request__impossible_target_leaves_no_rollout(
    make_tenant: MakeTenant, target: tuple[str, ...], error: type[Exception]
) -> None:
    make_tenant("acme")
    with pytest.raises(error):
        ask(*target)
    assert not Rollout.objects.exists()


def test_advance__opens_a_wave_only_when_the_one_before_has_ended(make_tenant: MakeTenant) -> None:
    make_tenant("acme")
    make_tenant("shared", Isolation.SHARED)
    rollout = ask()
    first, second = rollout.runs.order_by("wave")
    assert advance(rollout, limit=9, lease=30) == [first.pk]
    assert advance(rollout, limit=9, lease=30, held=frozenset({first.pk})) == []
    records.claim(first.pk, lease=30)
    assert advance(rollout, limit=9, lease=30) == []
    MigrationRun.objects.filter(pk=first.pk).transition("fail")
    assert advance(rollout, limit=9, lease=30) == [second.pk]


def test_advance__respects_its_limit_and_is_idempotent(make_tenant: MakeTenant) -> None:
    make_fleet(make_tenant, "acme", "globex", "initech")
    rollout = ask()
    expected = list(rollout.runs.order_by("tenant_id").values_list("pk", flat=True)[:2])
    assert [advance(rollout, limit=2, lease=30) for _ in range(3)] == [expected] * 3
    assert advance(rollout, limit=0, lease=30) == []
    rollout.refresh_from_db()
    assert (rollout.state, rollout.lease_expires_at is not None) == ("running", True)


@pytest.mark.parametrize("state", ["succeeded", "failed", "canceled"])
def test_advance__of_a_rollout_that_has_ended_does_nothing(make_tenant: MakeTenant, state: str) -> None:
    make_tenant("acme")
    rollout = ask()
    Rollout.objects.filter(pk=rollout.pk).update(state=state, lease_expires_at=None)
    assert advance(rollout, limit=9, lease=30) == []
    rollout.refresh_from_db()
    assert (rollout.state, rollout.lease_expires_at) == (state, None)


def test_cancel__leaves_what_runs_to_its_worker(make_tenant: MakeTenant) -> None:
    make_fleet(make_tenant, "acme", "globex")
    rollout = ask()
    running = rollout.runs.get(tenant_id="acme")
    records.claim(running.pk, lease=30)
    cancel(rollout, "Stopped.")
    assert states(rollout) == {"acme": "running", "globex": "canceled"}
    finish_if_done(rollout)
    rollout.refresh_from_db()
    assert rollout.state == "canceling"
    MigrationRun.objects.filter(pk=running.pk).transition("succeed")
    finish_if_done(rollout)
    rollout.refresh_from_db()
    assert rollout.state == "canceled"


def test_settle__leaves_a_rollout_alone_that_is_being_driven(make_tenant: MakeTenant) -> None:
    make_tenant("acme")
    rollout = ask()
    advance(rollout, limit=1, lease=30)
    settle_abandoned()
    rollout.refresh_from_db()
    assert (rollout.state, states(rollout)) == ("running", {"acme": "pending"})


def test_request__whose_command_dies_at_once_blocks_no_tenant(make_tenant: MakeTenant) -> None:
    tenant = make_tenant("acme")
    rollout = ask()
    Rollout.objects.filter(lease_expires_at__isnull=False).update(lease_expires_at=Now() - timedelta(seconds=1))
    request_run(tenant, Request())
    rollout.refresh_from_db()
    assert (rollout.state, states(rollout)) == ("failed", {"acme": "canceled"})


def test_parallel__a_worker_that_died_while_idle_is_replaced(plane: None) -> None:
    done: list[Event] = []

    def report(run_id: int, *, emit: Emit, should_stop: Callable[[], bool]) -> None:
        emit(RunStarted(run_id=run_id, tenant_id="acme", tenant_name="ACME"))

    dispatcher = ParallelDispatcher(
        Terms(
            work=one_by_one(report),
            max_concurrency=1,
            emit=done.append,
            should_stop=lambda: False,
            on_lost=lambda run_id: None,
        )
    )
    for run_id in (1, 2):
        dispatcher.submit([run_id])
        while dispatcher.held:
            dispatcher.wait(1)
        (worker,) = active_children()
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
    dispatcher.close()
    assert [event.run_id for event in done] == [1, 2]


def test_parallel__a_worker_is_told_to_stop_by_the_end_of_its_parent_whatever_that_left_unread() -> None:
    parent, child = Pipe()
    child.send("an event")
    parent.close()
    assert child.poll()
    assert _Inbox(child, None).next_share() is None


def ahead(
    work: Any,
    *,
    lost: list[int],
    should_stop: Callable[[], bool] = lambda: False,
    workers: int = 1,
    lore: Any = None,
    looks_ahead: bool = True,
    shares: bool = False,
) -> ParallelDispatcher:
    return ParallelDispatcher(
        Terms(
            work=work if shares else one_by_one(work),
            max_concurrency=workers,
            lore=lore,
            emit=lambda event: None,
            should_stop=should_stop,
            on_lost=lost.append,
            looks_ahead=looks_ahead,
        )
    )


def note(path: Path, run_id: int) -> None:
    with path.open("a") as file:
        file.write(f"{run_id} ")


def test_parallel__a_worker_takes_one_after_the_other(tmp_path: Path, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"tenants_per_worker": 3}
    begun = tmp_path / "begun"
    dispatcher = ahead(lambda run_id, **options: note(begun, run_id), lost=[])
    rest = deque(range(1, 8))
    while rest or dispatcher.held:
        while dispatcher.free and rest:
            dispatcher.submit([rest.popleft()])
            assert len(active_children()) == 1
        dispatcher.wait(1)
    dispatcher.close()
    assert begun.read_text() == "1 2 3 4 5 6 7 "


def test_parallel__what_waits_for_all_workers_is_not_kept_by_one_that_is_busy(tmp_path: Path) -> None:
    begun, end = tmp_path / "begun", tmp_path / "end"

    def work(run_id: int, **options: Any) -> None:
        note(begun, run_id)
        while run_id == 1 and not end.exists():
            time.sleep(0.01)

    dispatcher = ahead(work, lost=[], workers=2)
    rest = deque(range(1, 40))
    while rest or len(dispatcher.held) > 1:
        while dispatcher.free and rest:
            dispatcher.submit([rest.popleft()])
        dispatcher.wait(1)
    assert dispatcher.held == {1}
    end.touch()
    dispatcher.close()
    assert sorted(map(int, begun.read_text().split())) == list(range(1, 40))


class Learning:
    """Lore of one lesson, which is a process id."""

    def __init__(self) -> None:
        self.known: list[int] = []
        self.told = False

    def learned(self) -> list[int]:
        lessons = [] if self.known or self.told else [os.getpid()]
        self.told = True
        return lessons

    def learn(self, lessons: list[int]) -> None:
        self.known += lessons


@pytest.mark.parametrize("looks_ahead", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 1.2])
def test_parallel__others_are_forked_once_the_first_worker_has_learned_or_takes_long(
    tmp_path: Path, seconds: float, looks_ahead: bool
) -> None:
    begun, lore = tmp_path / "begun", Learning()

    def work(run_id: int, **options: Any) -> None:
        note(begun, run_id)
        time.sleep(seconds or 0.02)

    dispatcher = ahead(work, lost=[], workers=2, lore=lore, looks_ahead=looks_ahead)
    dispatcher.submit([1])
    first, run_ids = active_children(), count(2)
    assert len(first) == 1
    while len(active_children()) < 2:
        dispatcher.wait(10)
        while dispatcher.free:
            dispatcher.submit([next(run_ids)])
    # Either it has told, or nobody waited for it.
    assert lore.known == ([first[0].pid] if seconds == 0 else [])
    dispatcher.close()
    assert first[0].pid in lore.known


def carry_out_all(dispatcher: ParallelDispatcher, run_ids: Iterable[int]) -> None:
    rest = deque(run_ids)
    while rest or dispatcher.held:
        dispatcher.submit([rest.popleft() for _ in range(min(len(rest), dispatcher.free))])
        dispatcher.wait(1)


@pytest.mark.parametrize("stops", [False, True])
def test_sequential__what_is_left_of_a_share_comes_next_unless_it_is_to_stop(stops: bool) -> None:
    calls: list[list[int]] = []
    told_to_stop: list[bool] = []

    def work(run_ids: Sequence[int], *, leave: Callable[[list[int]], None], **options: Any) -> None:
        calls.append([*run_ids])
        if len(run_ids) > 1:
            leave([*run_ids[1:]])
            told_to_stop.append(stops)

    dispatcher = SequentialDispatcher(
        Terms(
            work=work,
            max_concurrency=1,
            emit=lambda event: None,
            should_stop=lambda: any(told_to_stop),
            on_lost=lambda run_id: None,
            looks_ahead=True,
        )
    )
    # Until it is known how quick they are, each by itself.
    dispatcher.submit(range(1, 20))
    share = next(call for call in calls if len(call) > 1)
    behind = calls[calls.index(share) + 1 :]
    assert behind[: len(share) - 1] == ([] if stops else [[run_id] for run_id in share[1:]])


def test_parallel__a_lost_worker_takes_all_of_its_share_along(tmp_path: Path) -> None:
    begun, lost = tmp_path / "begun", list[int]()

    def work(run_ids: Sequence[int], **options: Any) -> None:
        if 90 in run_ids:
            (tmp_path / "last").write_text(" ".join(map(str, run_ids)))
            os.kill(os.getpid(), signal.SIGKILL)
        for run_id in run_ids:
            note(begun, run_id)

    dispatcher = ahead(work, lost=lost, workers=2, shares=True)
    carry_out_all(dispatcher, range(1, 101))
    dispatcher.close()
    last = [*map(int, (tmp_path / "last").read_text().split())]
    assert len(last) > 1
    assert lost == last
    assert sorted([*map(int, begun.read_text().split()), *lost]) == list(range(1, 101))


def test_parallel__what_is_left_of_a_share_goes_to_others_while_its_worker_is_busy(tmp_path: Path) -> None:
    begun, busy = tmp_path / "begun", tmp_path / "busy"

    def work(run_ids: Sequence[int], *, leave: Callable[[list[int]], None], **options: Any) -> None:
        if len(run_ids) > 1:
            # Of two, one is the first.
            with suppress(FileExistsError), busy.open("x") as file:
                file.write(" ".join(map(str, run_ids)))
                leave([*run_ids[1:]])
                run_ids = run_ids[:1]
                wait_until(lambda: len(begun.read_text().split()) == 99)
        for run_id in run_ids:
            note(begun, run_id)

    dispatcher = ahead(work, lost=[], workers=2, shares=True)
    carry_out_all(dispatcher, range(1, 101))
    dispatcher.close()
    first, *left = busy.read_text().split()
    done = begun.read_text().split()
    assert (len(done), done[-1]) == (100, first)
    assert set(left) < set(done)


def test_parallel__what_waits_outlives_a_lost_worker(tmp_path: Path) -> None:
    begun, lost = tmp_path / "begun", list[int]()

    def die(run_id: int, **options: Any) -> None:
        note(begun, run_id)
        os.kill(os.getpid(), signal.SIGKILL)

    dispatcher = ahead(die, lost=lost)
    dispatcher.submit([1])
    dispatcher.submit([2])
    while dispatcher.held:
        dispatcher.wait(1)
    dispatcher.close()
    assert (begun.read_text(), lost, dispatcher.held) == ("1 2 ", [1, 2], set())


def test_parallel__what_is_waiting_is_not_begun_after_a_stop(tmp_path: Path) -> None:
    begun, stopping = tmp_path / "begun", list[bool]()

    def wait_for_the_end(run_id: int, *, should_stop: Callable[[], bool], **options: Any) -> None:
        note(begun, run_id)
        while not should_stop():
            time.sleep(0.01)

    dispatcher = ahead(wait_for_the_end, lost=[], should_stop=lambda: bool(stopping))
    dispatcher.submit([1])
    dispatcher.submit([2])
    while not begun.exists():
        time.sleep(0.01)
    stopping.append(True)
    dispatcher.close()
    assert begun.read_text() == "1 "
