"""Runs in worker processes of their own, what can befall them, and whether what is said of them afterwards is true."""

import functools
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any, Final

import psycopg2
from django.conf import settings as configured
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models.signals import post_migrate
from psycopg2 import sql

from examples.shop.orders.models import Order
from migrations_api.dispatch.base import Emit
from migrations_api.events import Event, RunStarted
from migrations_api.executor.diagnosis import Diagnosis
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.driver import expire
from migrations_api.orchestrator.repairs import diagnosis_of, request_repair
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.verbs import retry_run
from migrations_api.orchestrator.work import work
from migrations_api.states import RunState
from tenants.models import Tenant
from tests import catalog, fleets, oracle, roles, stock
from tests.broken.happenings import HAPPENINGS, Happening
from tests.processes import GIVE_UP, wait_until
from tests.proxy import Link, Moment, Proxy, Trap

PACKAGES: Final = {"orders": "orders_faults"}
RECORD: Final = "INSERT INTO .*django_migrations.*'{}'"
PARCEL, TORN, INDEX, UNIQUE = "0003_parcel", "0004_torn", "0005_status_index", "0006_unique_reference"
_context = get_context("fork")


def nothing() -> None: ...


def ignore(event: Event) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Lie:
    """What a run said of its tenant that was not so."""

    run_id: int
    state: str
    text: str
    # Of a run that has ended: it succeeded and had not, or it did not and had.
    false_success: bool = False
    false_failure: bool = False


@dataclass(kw_only=True)
class Case:
    """One tenant, its runs, and the proxies through which their workers reach the tenant and the control plane.

    `lies` are what oracle and runs disagreed in, each time that a run ended or was left to the next worker.
    """

    tenant: Tenant
    proxy: Proxy
    plane: Proxy
    random: random.Random
    boundaries: oracle.Boundaries
    run: MigrationRun = field(init=False)
    worker: BaseProcess | None = None
    injected: bool = True
    judged: int = 0
    lies: list[Lie] = field(default_factory=list)
    blockers: "list[Blocker]" = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # A trap that the last case has not sprung would be a second fault in this one, which nobody heals.
        self.proxy.set()
        self.plane.set()
        self.run = request_run(self.tenant, Request(via="api"))

    @property
    def pid(self) -> int:
        assert self.worker is not None
        assert self.worker.pid is not None
        return self.worker.pid

    def start(
        self,
        *,
        server: Mapping[str, Any] | None = None,
        plane: Proxy | None = None,
        prepare: Callable[[], None] = nothing,
        emit: Emit = ignore,
        happenings: Mapping[str, Happening] = {},
    ) -> None:
        """Have a new process carry out the run, with the tenant's server as given; else by way of the proxy."""

        def child() -> None:
            databases = {**configured.TENANT_DATABASES, "shop": dict(server or self.proxy.settings)}
            configured.TENANT_DATABASES = databases
            if plane:
                connections.settings[DEFAULT_DB_ALIAS].update(plane.settings)
            HAPPENINGS.update(happenings)
            prepare()
            work(self.run.pk, emit=emit, should_stop=lambda: False)
            connections.close_all()

        self.worker = fork(child)

    def wait(self) -> None:
        """Until the worker has ended, by itself or by a signal."""
        assert self.worker is not None
        self.worker.join(GIVE_UP)
        assert self.worker.exitcode is not None, "the worker has not come to an end"
        self.run.refresh_from_db()

    def end(self) -> None:
        """Nothing of it is left, whatever has become of it."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.join()
        for each in self.blockers:
            each.let_go()

    def settle(self) -> None:
        """What a coordinator does about a worker that is gone or late; returns once it could."""
        self.run.refresh_from_db()
        if self.run.is_active and self.run.state != RunState.PENDING:
            expire(self.run.pk, emit=ignore)
            wait_until(self._is_settled)

    def _is_settled(self) -> bool:
        settle_abandoned([self.tenant.tenant_id])
        self.run.refresh_from_db()
        return self.run.state not in {RunState.RUNNING, RunState.WAITING}

    def judge(self) -> None:
        """Compare what the run says now, at its end or between two workers, with the truth."""
        run = MigrationRun.objects.select_related("applied_after").get(pk=self.run.pk)
        found = oracle.truth(self.tenant)
        arrived = oracle.is_clean(found, self.boundaries) and found.applied == max(self.boundaries, key=len)
        self.judged += 1
        self.states.append(run.state)
        told = oracle.lies(run, found, self.boundaries)
        if run.state == RunState.PENDING:
            # The next worker goes on with it: it has not ended, and says nothing yet but what its steps are.
            told = [text for text in told if not text.endswith(": it has ended")]
        for text in told:
            ended_badly = run.state in {RunState.FAILED, RunState.PARTIAL}
            self.lies.append(
                Lie(
                    run_id=run.pk,
                    state=run.state,
                    text=f"{text}; {run.error_code} in {run.failed_step}: {run.message}",
                    false_success=run.state == RunState.SUCCEEDED,
                    false_failure=ended_badly and (arrived or run.state == RunState.PARTIAL),
                )
            )
        if found.ledger > 1 or len(found.rows) != len(found.applied):
            self.lies.append(Lie(run_id=run.pk, state=run.state, text=f"done twice: {found.rows}, {found.ledger}"))

    def carry_on(self, heal: Callable[[], None] = nothing) -> None:
        """Settle what there is, heal the cause, and go on until the tenant is where it was to be brought."""
        self.settle()
        self.judge()
        heal()
        for _ in range(8):
            if self.run.state == RunState.PENDING:
                self._work()
            elif self.run.state == RunState.PARTIAL:
                self._repair()
            elif self.run.state == RunState.SUCCEEDED and self.run.repair_of_id is None:
                break
            else:
                self.run = self._next()
        assert self.run.state == RunState.SUCCEEDED, f"{self.run.state}: {self.run.message}"
        assert oracle.truth(self.tenant).ledger == 1

    def _next(self) -> MigrationRun:
        if self.run.state == RunState.SUCCEEDED:
            return request_run(self.tenant, Request(via="api"))
        return retry_run(self.run, by="")

    def _work(self) -> None:
        work(self.run.pk, emit=ignore, should_stop=lambda: False)
        self.settle()
        self.judge()

    def _repair(self) -> None:
        diagnosis = diagnosis_of(self.run)
        possible = [way.name for way in diagnosis.ways if way.possible]
        way = self.random.choice([each for each in possible if each != "mark"] or ["mark"])
        if way == "mark":
            self._mend(diagnosis)
        self.run = request_repair(self.run, way, reason="by hand", by="", via="api")
        self._work()

    def _mend(self, diagnosis: Diagnosis) -> None:
        """What somebody does who has looked, where the journal does not know: bring it back to the step's beginning."""
        assert diagnosis.step == f"orders.{TORN}", diagnosis
        ask(
            self.tenant, "DROP TABLE IF EXISTS orders_archive; ALTER TABLE orders_order DROP COLUMN IF EXISTS reference"
        )


def begun(tenant: Tenant) -> None:
    """Bring it to where the steps begin that faults are about: by a copy of one that was migrated once."""
    with catalog.cursor(catalog.tenant_dsn(tenant)) as cursor:
        cursor.execute(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(tenant.schema_name)))
        cursor.execute(_begun().replace('"public_begun"', f'"{tenant.schema_name}"'))


@functools.cache
def _begun() -> str:
    with fleets.fleet(["begun"]) as [original]:
        for app_label, name in (("orders", "0002"), ("users", "0005")):
            fleets.bring(original, app_label, name)
        dumped = fleets._dump(catalog.tenant_dsn(original), original.schema_name)
        MigrationRun.objects.filter(tenant=original).delete()
        original.delete()
    return dumped


def fork(work: Callable[[], None]) -> BaseProcess:
    """A process of its own that has what this one has, but for connections."""
    connections.close_all()
    process = _context.Process(target=work, daemon=True)
    with warnings.catch_warnings():
        # Of threads that the child does not have: those of a proxy, which hold no lock that it would need.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def ask(tenant: Tenant, statement: str) -> list[tuple[Any, ...]]:
    """The tenant's own answer, in its schema."""
    path = sql.SQL("SET search_path TO {};").format(sql.Identifier(tenant.schema_name))
    return catalog.query(catalog.tenant_dsn(tenant), path + sql.SQL(statement))


def terminate(link: Link) -> None:
    shop = catalog.dsn(configured.TENANT_DATABASES["shop"])
    catalog.query(shop, "SELECT pg_terminate_backend(%s)", [link.backend_pid])


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# A fault is injected into a case, which is left for carry_on(): its worker has ended, or is late.
Fault = Callable[[Case], None]


def trapped(case: Case, trap: Trap, **options: Any) -> None:
    case.proxy.set(trap)
    case.start(**options)
    case.wait()
    case.injected = case.proxy.is_sprung
    case.carry_on()


def killed(
    pattern: str,
    moment: Moment,
    *,
    since: str = "",
    nth: int = 1,
    happenings: Mapping[str, Happening] = {},
) -> Fault:
    """The worker is killed by the kernel, at a statement of its session with the tenant."""

    def inject(case: Case) -> None:
        def kill(link: Link) -> None:
            send(signal.SIGKILL, case.pid)
            if moment == Moment.BEFORE:
                link.cut()

        trap = Trap(pattern=pattern, moment=moment, since=since, nth=nth, act=kill)
        trapped(case, trap, happenings=happenings)

    return inject


def killed_after_claim(case: Case) -> None:
    case.start(emit=lambda event: die() if isinstance(event, RunStarted) else None)
    case.wait()
    case.carry_on()


def killed_in_post_migrate(case: Case) -> None:
    case.start(prepare=lambda: post_migrate.connect(die, weak=False))
    case.wait()
    case.carry_on()


def cut(pattern: str, moment: Moment, *, since: str = "", nth: int = 1) -> Fault:
    return lambda case: trapped(
        case, Trap(pattern=pattern, moment=moment, since=since, nth=nth, act=lambda link: link.cut())
    )


def ended_by_server(pattern: str, moment: Moment, *, nth: int = 1) -> Fault:
    return lambda case: trapped(case, Trap(pattern=pattern, moment=moment, nth=nth, act=terminate))


def send(number: signal.Signals, pid: int) -> None:
    # What the worker has sent may be seen only after its end.
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def paused(pattern: str, moment: Moment, *, nth: int = 1, since: str = "") -> Fault:
    """The worker stands still until its lease is over and another has done its work; then it wakes up."""

    def inject(case: Case) -> None:
        stop = Trap(
            pattern=pattern, moment=moment, nth=nth, since=since, act=lambda link: send(signal.SIGSTOP, case.pid)
        )
        case.proxy.set(stop)
        case.start()
        worker = case.worker
        assert worker is not None
        wait_until(lambda: case.proxy.is_sprung or not worker.is_alive())
        case.injected = case.proxy.is_sprung
        try:
            case.carry_on()
            before = oracle.truth(case.tenant)
        finally:
            with suppress(ProcessLookupError):
                send(signal.SIGCONT, case.pid)
        case.wait()
        case.judge()
        assert oracle.truth(case.tenant) == before

    return inject


def black_hole(pattern: str, moment: Moment, *, nth: int = 1) -> Fault:
    """Nothing arrives any more; the kernel gives the connection up, which is waited for in a real network."""

    def inject(case: Case) -> None:
        links: list[Link] = []

        def go_dark(link: Link) -> None:
            link.black_hole()
            links.append(link)

        case.proxy.set(Trap(pattern=pattern, moment=moment, nth=nth, act=go_dark))
        case.start()
        worker = case.worker
        assert worker is not None
        wait_until(lambda: links or not worker.is_alive())
        case.injected = bool(links)
        for link in links:
            link.cut()
        case.wait()
        case.carry_on()

    return inject


def unreachable(mode: str) -> Fault:
    def inject(case: Case) -> None:
        if mode == "refused":
            case.proxy.refuse()
            case.start()
        elif mode == "unknown host":
            case.start(server={**case.proxy.settings, "HOST": "tenants.invalid"})
        else:
            case.proxy.mode = mode
            case.start()
        try:
            case.wait()
        finally:
            case.proxy.mode = "relay"
            if mode == "refused":
                case.proxy.listen()
        assert (case.run.state, case.run.error_code) == ("failed", "unreachable")
        case.carry_on()

    return inject


class Outage(StrEnum):
    """What has become of the control plane: only its sessions are lost, or nobody listens, or nobody answers."""

    CUT = "cut"
    AWAY = "away"
    SILENT = "silent"


def plane_gone(pattern: str, moment: Moment, *, outage: Outage = Outage.CUT, nth: int = 1) -> Fault:
    """The session with the control plane is lost; unless it was cut, none can be had until the worker has ended."""

    def inject(case: Case) -> None:
        begin = {Outage.CUT: case.plane.cut, Outage.AWAY: case.plane.refuse, Outage.SILENT: case.plane.hush}[outage]
        case.plane.set(Trap(pattern=pattern, nth=nth, moment=moment, act=lambda link: begin()))
        case.start(plane=case.plane)
        try:
            case.wait()
        finally:
            case.injected = case.plane.is_sprung
            case.plane.mode = "relay"
            if outage == Outage.AWAY and case.plane.is_sprung:
                case.plane.listen()
        case.carry_on()

    return inject


def happening(place: str, act: Happening, *, times: int = 1, heal: Callable[[Case], None] = lambda case: None) -> Fault:
    """Something that a migration does, so many times in the worker's life."""

    def inject(case: Case) -> None:
        left = [None] * times

        def happen(*arguments: Any) -> None:
            if left:
                left.pop()
                act(*arguments)

        case.start(happenings={place: happen})
        case.wait()
        case.carry_on(lambda: heal(case))

    return inject


def executing(statement: str) -> Happening:
    def act(apps: Any, schema_editor: Any) -> None:
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(statement)

    return act


def raising(apps: Any, schema_editor: Any) -> None:
    raise ValueError("an order cannot be archived")


def refusing(state: str) -> Happening:
    """The server ends the statement with that SQLSTATE."""
    return executing(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$")


def closing_connection(apps: Any, schema_editor: Any) -> None:
    schema_editor.connection.close()


def forgetting_using(apps: Any, schema_editor: Any) -> None:
    apps.get_model("products", "Category").objects.create(name="by the historical model")
    assert Order.objects.count() == 0


def deadlocking(apps: Any, schema_editor: Any) -> None:
    """Two sessions that wait for each other; the server ends this one's statement."""
    shop = catalog.dsn(configured.TENANT_DATABASES["shop"])
    with schema_editor.connection.cursor() as cursor, closing(psycopg2.connect(**shop)) as other:
        cursor.execute("SET LOCAL deadlock_timeout = '50ms'; LOCK TABLE users_address; SELECT current_schema()")
        [schema] = cursor.fetchone()
        its = other.cursor()
        its.execute(f'SET deadlock_timeout = 60000; SET search_path TO "{schema}"; LOCK TABLE products_category')
        thread = threading.Thread(target=_execute, args=(its, "LOCK TABLE users_address"), daemon=True)
        thread.start()
        pid = other.info.backend_pid
        wait_until(lambda: catalog.query(shop, "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", [pid]))
        try:
            cursor.execute("LOCK TABLE products_category")
        finally:
            catalog.query(shop, "SELECT pg_terminate_backend(%s)", [pid])
            thread.join()


def _execute(cursor: Any, statement: str) -> None:
    with suppress(psycopg2.Error):
        cursor.execute(statement)


class Blocker:
    """A session of somebody else, in a transaction that holds a lock on the tenant's orders."""

    def __init__(self, tenant: Tenant, statement: str) -> None:
        self._session = psycopg2.connect(**catalog.tenant_dsn(tenant))
        self._session.cursor().execute(f'SET search_path TO "{tenant.schema_name}"; {statement}')

    def let_go(self) -> None:
        self._session.close()


READ = "SELECT count(*) FROM orders_order"
WRITE = "UPDATE orders_order SET status = 'open'; LOCK TABLE orders_order IN ROW EXCLUSIVE MODE"


def blocked(at: str, statement: str, *, then: Callable[[Case], None] | None = None) -> Fault:
    """Somebody else's transaction is in the way from that statement on, until the worker has given up or waits.

    `then` happens instead of waiting for that, once the worker's statement waits.
    """

    def inject(case: Case) -> None:
        def block(link: Link) -> None:
            case.blockers.append(Blocker(case.tenant, statement))

        case.proxy.set(Trap(pattern=at, act=block))
        case.start()
        worker = case.worker
        assert worker is not None
        try:
            if then is not None:
                wait_until(lambda: waits_for_lock(case.tenant) or not worker.is_alive())
                then(case)
            wait_until(lambda: not worker.is_alive() or _state(case.run) == RunState.WAITING)
        finally:
            case.injected = case.proxy.is_sprung
            for each in case.blockers:
                each.let_go()
        case.wait()
        case.carry_on()

    return inject


def _state(run: MigrationRun) -> str:
    run.refresh_from_db()
    return run.state


def waits_for_lock(tenant: Tenant) -> bool:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE %s AND wait_event_type = 'Lock'"
    return bool(catalog.query(catalog.tenant_dsn(tenant), waiting, [f"%tenant={tenant.tenant_id}"]))


def kill_worker(case: Case) -> None:
    with suppress(ProcessLookupError):
        send(signal.SIGKILL, case.pid)


DUPLICATES = """
INSERT INTO users_user (email, full_name, created_at) VALUES ('ada@example.org', '', now());
INSERT INTO orders_order (status, placed_at, user_id) SELECT 'open', now(), id FROM users_user, (VALUES (1), (2)) two
"""


def without_duplicates(case: Case) -> None:
    ask(case.tenant, "DELETE FROM orders_order")


def as_user(attributes: str, code: str, *, password: str = roles.PASSWORD, more: str = "") -> Fault:
    """The worker connects as a user whom the server does not let do it."""

    def inject(case: Case) -> None:
        with roles.role(attributes) as server:
            schema, user = case.tenant.schema_name, server["USER"]
            rights = f'GRANT ALL ON SCHEMA "{schema}" TO {user}; GRANT ALL ON ALL TABLES IN SCHEMA "{schema}" TO {user}'
            catalog.query(catalog.dsn(configured.TENANT_DATABASES["shop"]), rights)
            if more:
                catalog.query(catalog.dsn(configured.TENANT_DATABASES["shop"]), f"ALTER ROLE {user} {more}")
            case.start(server={**server, "PASSWORD": password})
            case.wait()
        assert (case.run.state, case.run.error_code) == ("failed", code), case.run.message
        case.carry_on()

    return inject


def missing(away: str, back: str, code: str) -> Fault:
    """Something of the tenant is not there while the worker works."""

    def inject(case: Case) -> None:
        shop, name = catalog.tenant_dsn(case.tenant), case.tenant.schema_name
        catalog.query(shop, away.format(name))
        try:
            case.start()
            case.wait()
        finally:
            catalog.query(shop, back.format(name))
        assert (case.run.state, case.run.error_code) == ("failed", code), case.run.message
        case.carry_on()

    return inject


def beside_stock(case: Case) -> None:
    """Somebody types `migrate` in the middle of a step."""
    shop = configured.TENANT_DATABASES["shop"]
    database = {**shop, "OPTIONS": {**shop.get("OPTIONS", {}), "application_name": "stock"}}
    is_there = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'stock'"
    modules = {"orders": "tests.broken.orders_faults"}
    arguments = (database, case.tenant.schema_name, oracle.SHOP, "migrate")

    def meet(*_: object) -> None:
        threading.Thread(target=stock.manage, args=arguments, kwargs={"modules": modules}, daemon=True).start()
        wait_until(lambda: catalog.query(catalog.dsn(shop), f"{is_there} AND wait_event_type = 'Lock'"))

    case.start(happenings={"atomic": meet})
    case.wait()
    wait_until(lambda: not catalog.query(catalog.dsn(shop), is_there))
    case.carry_on()


def end_sessions(tenant: Tenant) -> None:
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s"
    catalog.query(catalog.tenant_dsn(tenant), end, [f"%tenant={tenant.tenant_id}"])


ADD_COLUMN, CREATE_INDEX = 'ADD COLUMN "reference"', "CREATE INDEX CONCURRENTLY"
CREATE_UNIQUE = "CREATE UNIQUE INDEX CONCURRENTLY"
RECORDED = RECORD.format(PARCEL)
CRASH_POINTS: Final[dict[str, Fault]] = {
    "after the claim": killed_after_claim,
    "before the lock": killed("pg_try_advisory_lock", Moment.BEFORE),
    "under the lock": killed("pg_try_advisory_lock", Moment.AFTER),
    "in DDL": killed('CREATE TABLE "orders_parcel"', Moment.WHILE),
    "after DDL, before deferred SQL": killed('CREATE INDEX "orders_order_parcel', Moment.BEFORE),
    "after DDL, before the record": killed(RECORDED, Moment.BEFORE),
    "after the record, before COMMIT": killed("^COMMIT", Moment.BEFORE, since=RECORDED),
    "in COMMIT": killed("^COMMIT", Moment.WHILE, since=RECORDED),
    "after COMMIT, before the state": killed("^COMMIT", Moment.AFTER, since=RECORDED),
    "in post_migrate": killed_in_post_migrate,
    **{f"{moment} an operation of its own": killed(ADD_COLUMN, moment) for moment in Moment},
    **{f"{moment} CONCURRENTLY": killed(CREATE_INDEX, moment) for moment in Moment},
    **{f"{moment} the record of CONCURRENTLY": killed(RECORD.format(INDEX), moment) for moment in Moment},
    "in CONCURRENTLY that waits": blocked(CREATE_INDEX, WRITE, then=kill_worker),
    "in a statement that takes a minute": killed(
        "pg_sleep", Moment.WHILE, happenings={"atomic": executing("SELECT pg_sleep(60)")}
    ),
}
CONNECTIONS: Final[dict[str, Fault]] = {
    "cut in COMMIT": cut("^COMMIT", Moment.WHILE, since=RECORDED),
    "cut after COMMIT": cut("^COMMIT", Moment.AFTER, since=RECORDED),
    "cut before COMMIT": cut("^COMMIT", Moment.BEFORE, since=RECORDED),
    **{f"cut {moment} an operation of its own": cut(ADD_COLUMN, moment) for moment in Moment},
    **{f"cut {moment} CONCURRENTLY": cut(CREATE_INDEX, moment) for moment in Moment},
    "ended by the server": ended_by_server('CREATE TABLE "orders_parcel"', Moment.WHILE),
    "ended by the server in CONCURRENTLY": blocked(CREATE_INDEX, WRITE, then=lambda case: end_sessions(case.tenant)),
    "black hole": black_hole('CREATE TABLE "orders_parcel"', Moment.BEFORE),
    "black hole in COMMIT": black_hole("^COMMIT", Moment.AFTER, nth=3),
    "refused": unreachable("refused"),
    "never answers": unreachable("silent"),
    "cut while connecting": unreachable("cut"),
    "unknown host": unreachable("unknown host"),
}
PAUSES: Final[dict[str, Fault]] = {
    "in the first statement of a non-atomic step": paused('CREATE TABLE "orders_archive"', Moment.WHILE),
    "before the lock": paused("pg_try_advisory_lock", Moment.BEFORE),
    "in DDL": paused('CREATE TABLE "orders_parcel"', Moment.BEFORE),
    "before COMMIT": paused("^COMMIT", Moment.BEFORE, since=RECORDED),
    "after COMMIT": paused("^COMMIT", Moment.AFTER, since=RECORDED),
    "in an operation of its own": paused(ADD_COLUMN, Moment.AFTER),
    "in CONCURRENTLY": paused(CREATE_INDEX, Moment.WHILE),
}
SERVERS: Final[dict[str, Fault]] = {
    "disk full": happening("atomic", executing("COPY (SELECT repeat('x', 100000)) TO '/dev/full'")),
    "disk full, without a transaction": happening("torn 2", refusing("53100")),
    "no memory": happening("atomic", refusing("53200")),
    "serialization failure": happening("atomic", refusing("40001")),
    "deadlock": happening("atomic", deadlocking),
    "deadlock, without a transaction": happening("torn 1", refusing("40P01")),
    "too many connections": as_user("LOGIN CONNECTION LIMIT 0", "unreachable"),
    "wrong password": as_user("LOGIN", "authentication_failed", password="wrong"),
    "read-only": as_user("LOGIN", "server_error", more="SET default_transaction_read_only = on"),
    "schema is missing": missing(
        'ALTER SCHEMA "{}" RENAME TO elsewhere', 'ALTER SCHEMA elsewhere RENAME TO "{}"', "unprovisioned"
    ),
    "record is missing": missing(
        'ALTER TABLE "{}".django_migrations RENAME TO elsewhere',
        'ALTER TABLE "{}".elsewhere RENAME TO django_migrations',
        "missing_record",
    ),
    "bare migrate beside ours": beside_stock,
    "reader of a hot table": blocked('ADD COLUMN "parcel_id"', READ),
    "reader of a hot table, without a transaction": blocked(ADD_COLUMN, READ),
    "CONCURRENTLY and lock_timeout": blocked(CREATE_INDEX, WRITE),
    "CONCURRENTLY and duplicates": happening("atomic", executing(DUPLICATES), heal=without_duplicates),
}
MIGRATIONS: Final[dict[str, Fault]] = {
    **{f"fails at {place}": happening(f"torn {place}", raising) for place in range(4)},
    "fails in a transaction": happening("atomic", raising),
    "forgets using": happening("atomic", forgetting_using),
    "closes the connection": happening("atomic", closing_connection),
    "closes the connection, without a transaction": happening("torn 1", closing_connection),
    "sets search_path": happening("atomic", executing("SET search_path TO public")),
    "sets search_path, without a transaction": happening("torn 0", executing("SET search_path TO public")),
    "writes another schema": happening("atomic", executing("INSERT INTO bystander.customers VALUES ('mallory')")),
    "drops from another schema": happening("atomic", executing("DROP TABLE bystander.customers")),
}
# Settings of the service with which a fault is soon over.
IMPATIENT: Final = {
    "lock_wait": 5,
    "lock_timeout": 0.3,
    "backoff": 0.05,
    "max_backoff": 0.2,
    "attempts": 3,
    "connect_timeout": 2,
    "heartbeat": 0.5,
    "lease": 60,
}
CLAIM: Final = "^EXECUTE claim_run"
PROGRESS: Final = "^EXECUTE progress_run"
JOURNAL: Final = "^EXECUTE journal_run"
THE_END: Final = "^EXECUTE end_run"
PLANE: Final[dict[str, Fault]] = {
    "cut at the claim": plane_gone(CLAIM, Moment.AFTER),
    "cut between two steps": plane_gone(PROGRESS, Moment.BEFORE, nth=3),
    "away between two steps": plane_gone(PROGRESS, Moment.BEFORE, outage=Outage.AWAY, nth=3),
    "cut at a step's first journal": plane_gone(JOURNAL, Moment.BEFORE),
    "cut after a step's first journal": plane_gone(JOURNAL, Moment.AFTER),
    "cut after the journal of a statement": plane_gone(JOURNAL, Moment.AFTER, nth=3),
    "away at the end": plane_gone(THE_END, Moment.AFTER, outage=Outage.AWAY),
    "silent between two steps": plane_gone(PROGRESS, Moment.BEFORE, outage=Outage.SILENT, nth=3),
    "silent after a step's first journal": plane_gone(JOURNAL, Moment.AFTER, outage=Outage.SILENT),
    "silent at the end": plane_gone(THE_END, Moment.BEFORE, outage=Outage.SILENT),
}


# Of a run from where begun() leaves it, on its sessions with the tenant's server and on those with the control plane; a
# slow run tells the control plane more often.
STATEMENTS: Final = (98, 45)
COMMITS: Final = 7


def drawn(chance: random.Random) -> tuple[str, Fault]:
    """A fault by chance, most of them at a statement by chance, and what it is called."""
    moment, (ours, planes) = chance.choice(list(Moment)), STATEMENTS
    nth, plane_nth, commit = chance.randint(1, ours), chance.randint(1, planes), chance.randint(1, COMMITS)
    anywhere: dict[str, Fault] = {
        "killed": killed("", moment, nth=nth),
        "cut": cut("", moment, nth=nth),
        "ended by the server": ended_by_server("", moment, nth=nth),
        "paused": paused("", moment, nth=nth),
        "black hole": black_hole("", moment, nth=nth),
        "cut COMMIT": cut("^COMMIT", moment, nth=commit),
        "control plane cut": plane_gone("", moment, nth=plane_nth),
        "control plane away": plane_gone("", moment, outage=Outage.AWAY, nth=plane_nth),
        "control plane silent": plane_gone("", moment, outage=Outage.SILENT, nth=plane_nth),
    }
    groups = {
        "": anywhere,
        "crash point": CRASH_POINTS,
        "connection": CONNECTIONS,
        "paused": PAUSES,
        "server": SERVERS,
        "migration": MIGRATIONS,
    }
    [group] = chance.choices(list(groups), weights=[60, 10, 8, 4, 10, 8])
    name = chance.choice(list(groups[group]))
    number = plane_nth if "plane" in name else commit if "COMMIT" in name else nth
    where = "" if group else f", {moment} the {number}. of its statements"
    return f"{group} {name}{where}".strip(), groups[group][name]
