import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from migrations_api.dispatch.base import Terms
from migrations_api.dispatch.remote import TASK, CeleryDispatcher
from migrations_api.events import Event, RunEnded, RunPlanned, RunStarted, StepFinished, StepStarted
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.progress import PACE
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target
from migrations_api.states import RunState
from tenants.broker import current_app
from tenants.driver_errors import redact
from tenants.models import Tenant
from tests import catalog
from tests.broken.orders_slow import GATE
from tests.processes import CONF, GIVE_UP, Process, output, processes, wait_until
from tests.redis_server import PASSWORD, RedisServer, redis_server
from tests.test_settings import manage, python, read

MakeTenant = Callable[..., Tenant]
Start = Callable[..., Process]
Dispatch = Callable[..., CeleryDispatcher]
QUEUE = "tenant-migrations"
# Redis's databases: of the worker that tests share, and of those that a test starts itself.
SHARED, OWN = 0, 1
NOBODY = "postgresql://me@127.0.0.1:9/plane"
CELERY = '{"executor": "celery"}'
APP = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "service.settings"
from celery import Celery, current_app
theirs = Celery("theirs")
import django; django.setup()
"""
# What a worker waits for at its start, for others that might be there, is left out.
WORKER = ["-A", "service", "worker", "--concurrency=2", "--without-mingle", "--without-gossip"]


@contextmanager
def workers(folder: Path, broker: str) -> Iterator[Start]:
    """A function that starts a worker; each one is ended with its pool, and no log has the broker's password."""
    started: list[Process] = []
    with processes(folder) as start:

        def worker(**options: Any) -> Process:
            environment = {"CELERY_BROKER_URL": broker}
            options = {"program": ["-m", "celery"], "environment": environment, "own_session": True, **options}
            started.append(start(*WORKER, "--loglevel=INFO", **options))
            return started[-1]

        try:
            yield worker
        finally:
            for process in started:
                kill(process)
            assert PASSWORD not in "".join(map(output, started))


def kill(worker: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait(GIVE_UP)


@pytest.fixture(scope="session")
def redis_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def worker_of_all(
    redis_of_all: RedisServer, tmp_path_factory: pytest.TempPathFactory, django_db_setup: None
) -> Iterator[Process]:
    with workers(tmp_path_factory.mktemp("worker"), redis_of_all.url(SHARED)) as start:
        yield start()


@pytest.fixture
def redis(redis_of_all: RedisServer, plane: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    settings.CELERY_BROKER_URL = redis_of_all.url(OWN)
    settings.TENANT_MIGRATIONS = CONF | {"resubmit_after": 0.5}
    # Celery reads it there first, and each time.
    monkeypatch.setenv("CELERY_BROKER_URL", redis_of_all.url(OWN))
    with redis_of_all.client() as client:
        client.flushall()
    return redis_of_all


@pytest.fixture
def worker(redis: RedisServer, worker_of_all: Process, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Process:
    """The worker that tests share which leave it alive."""
    settings.CELERY_BROKER_URL = redis.url(SHARED)
    monkeypatch.setenv("CELERY_BROKER_URL", redis.url(SHARED))
    return worker_of_all


@pytest.fixture
def start(redis: RedisServer, tmp_path: Path) -> Iterator[Start]:
    with workers(tmp_path, redis.url(OWN)) as start:
        yield lambda **options: start(broken={"orders": "orders_slow"}, **options)


@pytest.fixture
def dispatch(redis: RedisServer) -> Iterator[Dispatch]:
    made: list[CeleryDispatcher] = []

    def make(**values: Any) -> CeleryDispatcher:
        given = {"max_concurrency": 4, "emit": lambda event: None, "should_stop": lambda: False, **values}
        made.append(CeleryDispatcher(Terms(work=work, on_lost=lambda run_id: None, **given)))
        return made[-1]

    yield make
    for dispatcher in made:
        dispatcher._broker.close()


def ask(tenant: Tenant, app_label: str | None = None) -> MigrationRun:
    return request_run(tenant, Request(target=Target(app_label=app_label), via="api"))


def state(run: MigrationRun) -> str:
    run.refresh_from_db()
    return run.state


def folder_in(folder: Path) -> Path:
    made = folder / "commands"
    made.mkdir()
    return made


def finish(dispatcher: CeleryDispatcher, *runs: MigrationRun) -> None:
    """As a driver does: submit what is pending and not held, until all runs have ended."""
    pks = [run.pk for run in runs]

    def is_done() -> bool:
        pending = MigrationRun.objects.filter(pk__in=pks, state=RunState.PENDING).exclude(pk__in=dispatcher.held)
        for pk in pending.values_list("pk", flat=True)[: dispatcher.free]:
            dispatcher.submit([pk])
        dispatcher.wait(0.2)
        return not dispatcher.held and not MigrationRun.objects.active().filter(pk__in=pks).exists()

    wait_until(is_done)


def send(run: MigrationRun) -> None:
    # The connections of Celery's pool are to the broker of the first test.
    with current_app().connection_for_write() as broker:
        current_app().send_task(TASK, args=[run.pk], connection=broker)


def queued(redis: RedisServer) -> int:
    with redis.client(OWN) as client:
        return int(client.llen(QUEUE))


def ledger(run: MigrationRun) -> list[tuple[Any, ...]]:
    return catalog.query(catalog.tenant_dsn(run.tenant), f"SELECT count(*) FROM {run.tenant.schema_name}.ledger")


@contextmanager
def closed_gate() -> Iterator[None]:
    """While this lasts, orders.0003_gate of orders_slow does not come to its end in a schema tenant."""
    with catalog.cursor(catalog.dsn(configured.TENANT_DATABASES["shop"])) as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [GATE])
        yield


def is_at_gate(run: MigrationRun) -> bool:
    return run.steps.filter(name="0003_gate", state="running").exists()


def test_worker__carries_out_what_is_submitted(make_tenant: MakeTenant, worker: Process, dispatch: Dispatch) -> None:
    runs = [ask(make_tenant("acme")), ask(make_tenant("globex", "database")), ask(make_tenant("shop", "shared"))]
    finish(dispatch(max_concurrency=2), *runs)
    assert [state(run) for run in runs] == ["succeeded"] * 3
    assert [run.attempt for run in runs] == [1, 1, 1]


def test_events__are_those_that_a_worker_here_would_tell(
    make_tenant: MakeTenant, worker: Process, dispatch: Dispatch
) -> None:
    told: list[Event] = []
    here, there = ask(make_tenant("here")), ask(make_tenant("there"))
    work(here.pk, emit=told.append, should_stop=lambda: False)
    finish(dispatch(emit=told.append), there)
    mine = [comparable(event) for event in told if event.run_id == here.pk]
    assert [comparable(event) for event in told if event.run_id == there.pk] == mine
    kinds = [type(event) for event in mine]
    assert kinds[:2] == [RunStarted, RunPlanned]
    assert kinds[2:-1] == [StepStarted, StepFinished] * here.steps.count()
    assert kinds[-1] is RunEnded


def comparable(event: Event) -> Event:
    same = {"run_id": 0, "tenant_id": "", "tenant_name": "", "seconds": 0.0}
    return event._replace(**{name: same[name] for name in same if name in event._fields})


def test_events__of_a_run_that_nobody_began_are_none(make_tenant: MakeTenant, dispatch: Dispatch) -> None:
    told: list[Event] = []
    run = ask(make_tenant())
    dispatcher = dispatch(emit=told.append)
    dispatcher.submit([run.pk])
    assert dispatcher.held == {run.pk}
    MigrationRun.objects.filter(pk=run.pk).transition("cancel")
    dispatcher.wait(GIVE_UP)
    assert (dispatcher.held, told) == (frozenset(), [])


def test_message__that_comes_twice_does_nothing(make_tenant: MakeTenant, start: Start) -> None:
    run = ask(make_tenant(), "orders")
    for _ in range(3):
        send(run)
    process = start()
    wait_until(lambda: output(process).count("succeeded in") == 3)
    assert (state(run), run.attempt, ledger(run)) == ("succeeded", 1, [(1,)])


def test_message__that_is_lost_is_sent_again(
    make_tenant: MakeTenant, redis: RedisServer, worker: Process, dispatch: Dispatch
) -> None:
    run = ask(make_tenant())
    dispatcher = dispatch()
    dispatcher.submit([run.pk])
    with redis.client() as client:
        client.flushall()
    finish(dispatcher, run)
    assert (state(run), run.attempt) == ("succeeded", 1)


def test_message__waits_no_longer_than_the_run_is_held(
    make_tenant: MakeTenant, redis: RedisServer, dispatch: Dispatch, start: Start
) -> None:
    """What piled up while there was no worker is thrown away, not worked through."""
    run = ask(make_tenant(), "orders")
    dispatcher = dispatch()
    for _ in range(2):
        dispatcher.submit([run.pk])
        wait_until(lambda: not dispatcher.held)
    assert queued(redis) == 2
    process = start()
    wait_until(lambda: output(process).count("Discarding revoked task") == 2)
    assert state(run) == "pending"


def test_resubmission__is_twice_as_patient_each_time(make_tenant: MakeTenant, dispatch: Dispatch) -> None:
    run = ask(make_tenant())
    dispatcher = dispatch()
    patience = []
    for _ in range(9):
        dispatcher.submit([run.pk])
        patience.append(dispatcher._sent[run.pk].patience)
    assert patience == [0.5, 1, 2, 4, 8, 16, 16, 16, 16]


def test_worker__takes_no_more_than_it_has_processes_for(
    make_tenant: MakeTenant, redis: RedisServer, start: Start
) -> None:
    runs = [ask(make_tenant(name), "orders") for name in ("a", "b", "c")]
    process = start()
    with closed_gate():
        for run in runs:
            send(run)
        wait_until(lambda: sum(map(is_at_gate, runs)) == 2)
        assert queued(redis) == 1
    wait_until(lambda: output(process).count("succeeded in") == 3)
    assert [state(run) for run in runs] == ["succeeded"] * 3


def test_worker__with_threads_is_refused(make_tenant: MakeTenant) -> None:
    """The tenant would be `default` for whatever else its threads do."""
    from migrations_api.tasks import work_on_run

    run = ask(make_tenant())
    with ThreadPoolExecutor() as pool, pytest.raises(ImproperlyConfigured, match="--pool=prefork"):
        pool.submit(work_on_run, run.pk).result()
    assert state(run) == "pending"


def test_broker__that_is_away_is_told_of_once_and_waited_for(
    make_tenant: MakeTenant, redis: RedisServer, worker: Process, dispatch: Dispatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [ask(make_tenant("acme")), ask(make_tenant("globex"))]
    dispatcher = dispatch()
    redis.stop()
    for _ in range(2):
        for run in runs:
            dispatcher.submit([run.pk])
        wait_until(lambda: not dispatcher.held)
    redis.start()
    finish(dispatcher, *runs)
    assert [state(run) for run in runs] == ["succeeded"] * 2
    told = [record.getMessage() for record in caplog.records if "broker" in record.getMessage()]
    assert len(told) == 2
    assert told[0].startswith("the broker cannot be reached; trying again: ")
    assert told[1] == "the broker can be reached again"
    assert PASSWORD not in caplog.text


def test_broker__that_is_wiped_while_runs_are_worked_on(
    make_tenant: MakeTenant, redis: RedisServer, start: Start, dispatch: Dispatch
) -> None:
    first, second = ask(make_tenant("acme"), "orders"), ask(make_tenant("globex"), "orders")
    dispatcher = dispatch(max_concurrency=1)
    start()
    with closed_gate():
        wait_until(lambda: finish_one(dispatcher, first) or is_at_gate(first))
        redis.stop()
        redis.start()
    finish(dispatcher, first, second)
    assert [(state(run), run.attempt) for run in (first, second)] == [("succeeded", 1)] * 2


def finish_one(dispatcher: CeleryDispatcher, run: MigrationRun) -> None:
    if run.pk not in dispatcher.held and state(run) == "pending":
        dispatcher.submit([run.pk])
    dispatcher.wait(0.1)


def test_worker__that_is_told_to_end_stops_between_two_steps(
    make_tenant: MakeTenant, start: Start, dispatch: Dispatch
) -> None:
    run = ask(make_tenant(), "orders")
    dispatcher = dispatch()
    first = start()
    with closed_gate():
        wait_until(lambda: finish_one(dispatcher, run) or is_at_gate(run))
        first.send_signal(signal.SIGTERM)
        wait_until(lambda: "Warm shutdown" in output(first))
    assert first.wait(GIVE_UP) == 0
    assert (state(run), run.attempt, run.cancel_requested) == ("pending", 1, False)
    dispatcher.wait(GIVE_UP)
    assert dispatcher.held == frozenset()

    start()
    finish(dispatcher, run)
    assert (state(run), run.attempt, ledger(run)) == ("succeeded", 2, [(1,)])


def test_worker__that_is_killed_leaves_the_run_to_be_settled(
    make_tenant: MakeTenant, start: Start, dispatch: Dispatch
) -> None:
    run = ask(make_tenant(), "orders")
    dispatcher = dispatch()
    first = start()
    with closed_gate():
        wait_until(lambda: finish_one(dispatcher, run) or is_at_gate(run))
        kill(first)
        assert state(run) == "running"
        wait_until(lambda: dispatcher.wait(0.5) or not dispatcher.held)
    wait_until(lambda: settle_abandoned() or state(run) != "running")
    assert (state(run), ledger(run)) == ("pending", [(1,)])

    start()
    finish(dispatcher, run)
    assert (state(run), ledger(run)) == ("succeeded", [(1,)])


def test_worker__that_loses_the_control_plane_takes_the_next_run(
    make_tenant: MakeTenant, worker: Process, dispatch: Dispatch
) -> None:
    run, after = ask(make_tenant("acme")), ask(make_tenant("globex"))
    plane = catalog.dsn(configured.DATABASES["default"])
    refuse = f"ALTER DATABASE {connection.settings_dict['NAME']} ALLOW_CONNECTIONS "
    catalog.query({**plane, "dbname": "postgres"}, refuse + "false")
    try:
        send(run)
        wait_until(lambda: "the control plane failed while run" in output(worker))
    finally:
        catalog.query({**plane, "dbname": "postgres"}, refuse + "true")
    finish(dispatch(), run, after)
    assert [state(each) for each in (run, after)] == ["succeeded"] * 2


@pytest.mark.parametrize("leaves_running", [False, True])
def test_stop__reaches_what_is_held_unless_another_driver_carries_on(
    make_tenant: MakeTenant, start: Start, dispatch: Dispatch, leaves_running: bool
) -> None:
    stopping: list[bool] = []
    told: list[Event] = []
    run = ask(make_tenant(), "orders")
    dispatcher = dispatch(
        should_stop=lambda: bool(stopping), leaves_running=leaves_running, emit=told.append, max_concurrency=1
    )
    start()
    with closed_gate():
        wait_until(lambda: finish_one(dispatcher, run) or is_at_gate(run))
        stopping.append(True)
        dispatcher.wait(0.1)
        assert dispatcher.held == (frozenset() if leaves_running else {run.pk})
        assert (state(run), run.cancel_requested) == ("running", not leaves_running)
        time.sleep(PACE)
    dispatcher.close()
    if leaves_running:
        wait_until(lambda: state(run) != "running")
        assert (state(run), run.message) == ("succeeded", "")
        return
    assert (state(run), run.attempt) == ("canceled", 1)
    assert [event.state for event in told if isinstance(event, RunEnded)] == ["canceled"]


def test_coordinator__that_ends_leaves_runs_to_their_workers(
    make_tenant: MakeTenant, redis: RedisServer, start: Start, tmp_path: Path
) -> None:
    run = ask(make_tenant(), "orders")
    start()
    with processes(folder_in(tmp_path)) as manage_py:
        broker = {"CELERY_BROKER_URL": redis.url(OWN)}
        coordinator = manage_py("coordinate", environment=broker, executor="celery", resubmit_after=0.5)
        with closed_gate():
            wait_until(lambda: is_at_gate(run))
            coordinator.send_signal(signal.SIGTERM)
            assert coordinator.wait(GIVE_UP) == 0
            assert (state(run), run.cancel_requested) == ("running", False)
    wait_until(lambda: state(run) != "running")
    assert (state(run), run.message) == ("succeeded", "")
    assert PASSWORD not in output(coordinator)


def test_migratealltenants__tells_what_workers_elsewhere_did(
    make_tenant: MakeTenant, redis: RedisServer, worker: Process, tmp_path: Path
) -> None:
    for name, isolation in (("acme", "schema"), ("globex", "database"), ("shop", "shared")):
        make_tenant(name, isolation)
    with processes(folder_in(tmp_path)) as manage_py:
        broker = {"CELERY_BROKER_URL": redis.url(SHARED)}
        command = manage_py("migratealltenants", "--executor=celery", environment=broker, resubmit_after=0.5)
        assert command.wait(GIVE_UP) == 0, output(command)
    told = output(command)
    assert "Migrating tenant: acme\n  users/0001_initial.py ... OK\n" in told
    assert "Total: 3 tenants migrated, 0 unchanged, 0 failed, 0 skipped, 0 not started" in told


def test_look__is_one_query_for_all_that_is_held(
    make_tenant: MakeTenant, dispatch: Dispatch, django_assert_num_queries: Any
) -> None:
    dispatcher = dispatch(max_concurrency=3)
    for name in ("a", "b", "c"):
        dispatcher.submit([ask(make_tenant(name)).pk])
    assert dispatcher.free == 0
    with django_assert_num_queries(1):
        dispatcher.wait(0)


def test_wait__outlasts_an_outage_of_the_control_plane(
    make_tenant: MakeTenant, dispatch: Dispatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = ask(make_tenant())
    dispatcher = dispatch()
    dispatcher.submit([run.pk])
    backend = connection.connection.info.backend_pid
    catalog.query(catalog.dsn(configured.DATABASES["default"]), "SELECT pg_terminate_backend(%s)", [backend])
    dispatcher.wait(0)
    assert "the control plane failed" in caplog.text
    dispatcher.wait(0)
    assert state(run) == "pending"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1/0", ["classic", False, True, False]),
        ("rediss://:word@redis.example:6380/1", ["classic", False, True, False]),
        ("amqp://me:word@rabbit.example//", ["quorum", True, False, True]),
        ("amqps://me:word@rabbit.example//", ["quorum", True, False, True]),
    ],
)
def test_settings__are_those_of_the_broker(url: str, expected: list[object]) -> None:
    names = ["TASK_DEFAULT_QUEUE_TYPE", "TASK_ACKS_LATE", "WORKER_DISABLE_PREFETCH", "WORKER_DETECT_QUORUM_QUEUES"]
    expression = f"[getattr(s, f'CELERY_{{name}}') for name in {names}]"
    assert read(expression, DATABASE_URL="postgresql://db/plane", CELERY_BROKER_URL=url) == expected


def test_settings__a_process_is_recycled_as_one_of_the_coordinator_is() -> None:
    given = {"DATABASE_URL": NOBODY, "TENANT_MIGRATIONS": '{"tenants_per_worker": 7}'}
    assert read("s.CELERY_WORKER_MAX_TASKS_PER_CHILD", **given) == 7


@pytest.mark.parametrize(
    "url", ["redis://:pa%40ss-word@h/0", "amqp://me:pa%40ss-word@h//", "redis://h/0;redis://:pa%40ss-word@i/0"]
)
def test_redact__the_password_of_the_broker(settings: Any, url: str) -> None:
    settings.CELERY_BROKER_URL = url
    shown = redact(f"{url} and pa@ss-word, of which a part is ss-word")
    assert "***" in shown
    assert "word" not in shown


def test_settings__are_the_ones_that_celery_has() -> None:
    conf = current_app().conf
    assert conf.task_default_queue == QUEUE
    assert (conf.accept_content, conf.task_serializer, conf.task_ignore_result) == (["json"], "json", True)
    assert (conf.result_backend, conf.worker_hijack_root_logger) == (None, False)
    assert (conf.worker_prefetch_multiplier, conf.worker_disable_prefetch) == (1, True)
    assert conf.worker_max_tasks_per_child == 100
    assert conf.broker_connection_retry_on_startup is True


@pytest.mark.parametrize(("executor", "expected"), [("parallel", ""), ("celery", "tenants.E009")])
def test_check__executor_celery_without_a_broker(executor: str, expected: str) -> None:
    code = APP + "from django.core import checks; print(*[each.id for each in checks.run_checks(tags=['tenants'])])"
    done = python(code, DATABASE_URL=NOBODY, TENANT_MIGRATIONS=f'{{"executor": "{executor}"}}')
    assert (done.stdout.strip(), done.stderr) == (expected, "")


def test_check__executor_celery_is_content_with_the_service(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"executor": "celery"}
    assert checks.run_checks(tags=["tenants"]) == []


def test_check__executor_celery_without_celery() -> None:
    without = "import sys; sys.modules['celery'] = None;"
    assert manage(without, DATABASE_URL=NOBODY).returncode == 0
    done = manage(without, DATABASE_URL=NOBODY, TENANT_MIGRATIONS=CELERY)
    assert done.returncode == 1
    assert "(tenants.E009) TENANT_MIGRATIONS: 'executor' is 'celery', and Celery is not installed." in done.stderr


def test_app_of_another_project__stays_the_current_one_and_finds_the_task() -> None:
    code = "theirs.autodiscover_tasks(); theirs.loader.import_default_modules()"
    found = f"print(current_app.main, {TASK!r} in theirs.tasks)"
    done = python(f"{APP}{code}; {found}", DATABASE_URL=NOBODY)
    assert (done.stdout, done.stderr) == ("theirs True\n", "")
