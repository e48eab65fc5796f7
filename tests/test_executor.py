import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from django.db import OperationalError
from psycopg2 import errorcodes, sql

from migrations_api import exceptions
from migrations_api.executor import Outcome, StepResult, execute, failure_of
from migrations_api.executor.lock import lock_key, tenant_lock
from migrations_api.executor.outcome import Options
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Plan, Step, Target
from tenants.exceptions import PermissionDenied, ServerUnreachable
from tenants.models import Isolation, Tenant
from tenants.sessions import tenant_session
from tests import catalog

MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]


class Seen:
    """Collects what the executor tells, and calls `on_start` with each step."""

    def __init__(self, *, stop_after: int = -1, on_start: Callable[[Step], None] = lambda step: None) -> None:
        self.plan: Plan | None = None
        self.events: list[tuple[str, str]] = []
        self.results: list[StepResult] = []
        self.journaled: list[tuple[int, int]] = []
        self._stop_after = stop_after
        self._on_start = on_start

    def planned(self, plan: Plan) -> None:
        self.plan = plan

    def step_started(self, step: Step) -> None:
        self.events.append(("started", str(step)))
        self._on_start(step)

    def step_finished(self, result: StepResult) -> None:
        self.events.append(("finished", str(result.step)))
        self.results.append(result)

    def should_stop(self) -> bool:
        return len(self.results) == self._stop_after

    def journal(self, step: Step, *, operation: int, statements: int) -> None:
        self.journaled.append((operation, statements))


def migrate(
    tenant: Tenant,
    app_label: str | None = None,
    name: str | None = None,
    *,
    observer: Seen | None = None,
    digest: str = "",
    **options: bool,
) -> Outcome:
    return execute(
        tenant,
        source_for(tenant.isolation),
        Target(app_label=app_label, migration_name=name),
        Options(**options),
        observer=observer or Seen(),
        application_name="test of the executor",
        plan_digest=digest,
    )


def applied(tenant: Tenant) -> list[tuple[str, str]]:
    return catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)


def tables(tenant: Tenant) -> set[str]:
    return catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name)


def run_sql(tenant: Tenant, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Run a statement in which {} is the tenant's schema."""
    composed = sql.SQL(statement).format(*[sql.Identifier(tenant.schema_name)] * statement.count("{}"))
    return catalog.query(catalog.tenant_dsn(tenant), composed, parameters)


@contextmanager
def open_transaction(tenant: Tenant, statement: str) -> Iterator[None]:
    """Another session that has run `statement` and does not commit."""
    connection = psycopg2.connect(**catalog.tenant_dsn(tenant))
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(sql.Identifier(tenant.schema_name)))
        yield
    finally:
        connection.close()


def when_recorded(tenant: Tenant, app_label: str, name: str, then: str) -> None:
    """Have the server do `then` as soon as that migration's row is inserted."""
    run_sql(
        tenant,
        "CREATE FUNCTION {}.on_record() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF NEW.app = '{app_label}' AND NEW.name = '{name}' THEN {then}; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER on_record BEFORE INSERT ON {}.django_migrations"
        " FOR EACH ROW EXECUTE FUNCTION {}.on_record()",
    )


def nothing_when_recorded(tenant: Tenant) -> None:
    run_sql(tenant, "DROP FUNCTION {}.on_record() CASCADE")


def advisory_locks(tenant: Tenant) -> int:
    statement = (
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE l.locktype = 'advisory' AND d.datname = current_database()"
    )
    return int(catalog.query(catalog.tenant_dsn(tenant), statement)[0][0])


def test_execute__tells_each_step_in_the_order_of_the_plan(tenant: Tenant) -> None:
    seen = Seen()
    outcome = migrate(tenant, observer=seen)
    assert seen.plan is not None
    names = [str(step) for step in seen.plan.steps]
    assert seen.events == [(kind, name) for name in names for kind in ("started", "finished")]
    assert (outcome.end, outcome.failure, outcome.before) == ("succeeded", None, frozenset())
    assert [f"{app}.{name}" for app, name in applied(tenant)] == names
    assert outcome.after == frozenset(applied(tenant))
    assert all(result.seconds > 0 and not result.faked for result in outcome.results)


def test_execute__a_second_time_does_nothing(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant)
    before = catalog.fingerprint(catalog.tenant_dsn(tenant))
    outcome = migrate(tenant)
    assert (outcome.end, outcome.results) == ("succeeded", ())
    assert catalog.fingerprint(catalog.tenant_dsn(tenant)) == before


def test_execute__nothing_to_do_creates_nothing(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    assert migrate(tenant, "users", "zero").end == "succeeded"
    assert tables(tenant) == set()


def test_execute__backwards(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant)
    outcome = migrate(tenant, "orders", "zero")
    assert outcome.end == "succeeded"
    assert [result.step.name[:4] for result in outcome.results] == ["0005", "0004", "0003", "0002", "0001"]
    assert not {app for app, _ in applied(tenant)} & {"orders"}
    assert not {name for name in tables(tenant) if name.startswith("orders_")}


def test_execute__fake_records_and_does_nothing_else(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    outcome = migrate(tenant, fake=True)
    assert all(result.faked for result in outcome.results)
    assert len(applied(tenant)) == len(outcome.results) == 15
    assert not {name for name in tables(tenant) if name.startswith(("users_", "orders_"))}


def test_squashed__is_recorded_with_what_it_replaces(make_tenant: MakeTenant, broken: Choose) -> None:
    broken(products="products_squashed")
    tenant = make_tenant()
    assert migrate(tenant, "products").end == "succeeded"
    assert len(applied(tenant)) == 6
    assert migrate(tenant, "products").results == ()
    assert migrate(tenant, "products", "zero").end == "succeeded"
    assert applied(tenant) == []


def test_squashed__is_recorded_once_all_that_it_replaces_is_applied(make_tenant: MakeTenant, broken: Choose) -> None:
    tenant = make_tenant()
    migrate(tenant, "products")
    broken(products="products_squashed")
    outcome = migrate(tenant, "products")
    assert (outcome.end, outcome.results) == ("succeeded", ())
    assert ("products", "0001_squashed_0005_label_to_tag") in outcome.after


def test_failure__in_the_middle_rolls_the_atomic_step_back(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_failing_data")
    tenant = make_tenant("globex")
    outcome = migrate(tenant, "orders")
    assert outcome.end == "failed"
    assert outcome.failure is not None
    assert (outcome.failure.step, outcome.failure.error_class) == ("orders.0003_channel", "ValueError")
    assert (outcome.failure.message, outcome.failure.transient) == ("ValueError: an order has no channel", False)
    assert applied(tenant)[-1] == ("orders", "0002_ledger_entry")
    columns = run_sql(tenant, "SELECT * FROM information_schema.columns WHERE column_name = 'channel'")
    assert columns == []
    assert outcome.after == frozenset(applied(tenant))
    assert advisory_locks(tenant) == 0


def test_failure__message_never_shows_a_row(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_unique_violation")
    outcome = migrate(make_tenant("globex"))
    assert outcome.failure is not None
    assert (outcome.failure.sqlstate, outcome.failure.error_class) == ("23505", "UniqueViolation")
    assert "users_user_email_unique" in outcome.failure.message
    assert "a@b.c" not in outcome.failure.message


def test_failure__of_a_non_atomic_step_half_way_is_partial(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_failing_nonatomic")
    tenant = make_tenant("globex")
    outcome = migrate(tenant, "orders")
    assert outcome.end == "partial"
    assert outcome.failure is not None
    assert (outcome.failure.step, outcome.failure.transient) == ("orders.0003_archive", False)
    assert "orders_archive" in tables(tenant)
    assert ("orders", "0003_archive") not in applied(tenant)


def test_failure__of_a_non_atomic_step_before_it_did_anything_is_failed(
    broken: Choose, make_tenant: MakeTenant
) -> None:
    broken(orders="orders_failing_nonatomic")
    tenant = make_tenant("globex")
    migrate(tenant, "orders", "0002")
    run_sql(tenant, "CREATE TABLE {}.orders_archive ()")
    outcome = migrate(tenant, "orders")
    assert outcome.failure is not None
    assert (outcome.end, outcome.failure.sqlstate) == ("failed", errorcodes.DUPLICATE_TABLE)


def test_failure__of_a_concurrent_index_is_partial_and_names_it(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lock_timeout": 0.1}
    tenant = make_tenant()
    migrate(tenant, "orders", "0003")
    with open_transaction(tenant, "LOCK TABLE {}.orders_order IN ROW EXCLUSIVE MODE"):
        outcome = migrate(tenant, "orders", "0004")
    assert outcome.end == "partial"
    assert outcome.failure is not None
    assert outcome.failure.step == "orders.0004_status_index"
    assert "orders_status_placed_idx" in outcome.failure.message
    assert not outcome.failure.transient
    assert ("orders", "0004_status_index") not in outcome.after


def test_atomic__deferred_sql_and_record_go_with_the_transaction(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users")
    migrate(tenant, "products")
    when_recorded(tenant, "orders", "0001_initial", "PERFORM pg_terminate_backend(pg_backend_pid())")
    outcome = migrate(tenant)
    assert outcome.end == "failed"
    assert outcome.failure is not None
    assert (outcome.failure.step, outcome.failure.transient) == ("orders.0001_initial", True)
    assert not {name for name in tables(tenant) if name.startswith("orders_")}
    assert outcome.after == frozenset(applied(tenant))
    nothing_when_recorded(tenant)
    assert migrate(tenant).end == "succeeded"


def test_non_atomic__killed_before_its_record_is_partial(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "orders", "0003")
    when_recorded(tenant, "orders", "0004_status_index", "PERFORM pg_terminate_backend(pg_backend_pid())")
    outcome = migrate(tenant)
    assert outcome.failure is not None
    assert (outcome.end, outcome.failure.step) == ("partial", "orders.0004_status_index")
    assert not outcome.failure.transient


class Proxy:
    """Passes bytes between a client and the server; once armed, it lets a COMMIT through and then hangs up."""

    def __init__(self, server: dict[str, Any]) -> None:
        with catalog.cursor(server) as cursor:
            parameters = cursor.connection.get_dsn_parameters()
        self._host, self._port = parameters["host"], int(parameters["port"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.armed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = self._connect()
            for source, sink, cuts in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(source, sink), kwargs={"cuts": cuts}, daemon=True).start()

    def _connect(self) -> socket.socket:
        if not self._host.startswith("/"):
            return socket.create_connection((self._host, self._port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{self._host}/.s.PGSQL.{self._port}")
        return server

    def _pass(self, source: socket.socket, sink: socket.socket, *, cuts: bool) -> None:
        with source, sink:
            try:
                while data := source.recv(65536):
                    if cuts and self.armed and b"COMMIT\0" in data:
                        self.armed = False
                        # The client is gone before the server answers; the server hangs up after the COMMIT.
                        source.shutdown(socket.SHUT_RDWR)
                        sink.sendall(data)
                        sink.shutdown(socket.SHUT_WR)
                        return
                    sink.sendall(data)
            except OSError:
                return


@pytest.fixture
def proxy(settings: Any) -> Iterator[Proxy]:
    """The server `shop` behind a connection that can be cut."""
    shop = settings.TENANT_DATABASES["shop"]
    proxy = Proxy(catalog.dsn(shop))
    options = {**shop.get("OPTIONS", {}), "sslmode": "disable"}
    options.pop("host", None)
    behind = {**shop, "HOST": "127.0.0.1", "PORT": proxy.port, "OPTIONS": options}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "behind": behind}
    yield proxy
    proxy.close()


@pytest.mark.parametrize("isolation", [Isolation.SCHEMA, Isolation.DATABASE])
def test_commit__whose_reply_is_lost_counts_as_the_tenant_has_it(
    proxy: Proxy, make_tenant: MakeTenant, isolation: Isolation
) -> None:
    tenant = make_tenant(isolation=isolation, database="behind")
    migrate(tenant, "users", "0001")

    def arm(step: Step) -> None:
        proxy.armed = step.name.startswith("0003")

    outcome = migrate(tenant, "users", observer=Seen(on_start=arm))
    assert outcome.failure is not None
    assert (outcome.end, outcome.failure.step) == ("failed", "users.0003_full_name")
    assert ("users", "0003_full_name") in outcome.after
    assert outcome.after == frozenset(applied(tenant))
    assert str(outcome.results[-1].step) == "users.0003_full_name"
    assert outcome.failure.transient
    assert migrate(tenant, "users").end == "succeeded"


def test_plan_digest__that_no_longer_fits_changes_nothing(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    seen = Seen()
    migrate(tenant, "users", "0001", observer=seen)
    assert seen.plan is not None
    before = catalog.fingerprint(catalog.tenant_dsn(tenant))
    with pytest.raises(exceptions.PlanChanged, match="acme"):
        migrate(tenant, "users", digest=seen.plan.digest)
    assert catalog.fingerprint(catalog.tenant_dsn(tenant)) == before


def test_plan_digest__that_fits(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    seen = Seen(stop_after=0)
    migrate(tenant, "users", observer=seen)
    assert seen.plan is not None
    assert migrate(tenant, "users", digest=seen.plan.digest).end == "succeeded"


def test_irreversible__is_refused_by_name_before_anything_is_undone(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_irreversible")
    tenant = make_tenant()
    migrate(tenant)
    before = applied(tenant)
    with pytest.raises(exceptions.IrreversibleMigration, match=r"orders\.0003_ship_paid"):
        migrate(tenant, "users", "zero")
    assert applied(tenant) == before
    assert migrate(tenant, "orders", "0002", fake=True).end == "succeeded"
    assert applied(tenant) == [key for key in before if key != ("orders", "0003_ship_paid")]


@pytest.mark.parametrize("steps", [0, 3])
def test_stop__ends_at_a_boundary(make_tenant: MakeTenant, steps: int) -> None:
    tenant = make_tenant()
    outcome = migrate(tenant, observer=Seen(stop_after=steps))
    assert outcome.failure is not None
    assert (outcome.end, outcome.failure.code, len(outcome.results)) == ("canceled", "canceled", steps)
    assert outcome.after == frozenset((result.step.app_label, result.step.name) for result in outcome.results)
    assert advisory_locks(tenant) == 0
    assert migrate(tenant).end == "succeeded"


def tenant_id_with_key(*, negative: bool, database: str) -> str:
    names = (f"acme{number}" for number in range(100))
    return next(name for name in names if (lock_key(database, f"public_{name}") < 0) == negative)


@pytest.mark.parametrize("negative", [False, True], ids=["positive", "negative"])
def test_lock__names_the_holder(make_tenant: MakeTenant, settings: Any, negative: bool) -> None:
    settings.TENANT_MIGRATIONS = {"lock_wait": 0}
    tenant = make_tenant(tenant_id_with_key(negative=negative, database=settings.SHOP))
    key = lock_key(settings.SHOP, tenant.schema_name)
    assert (key < 0) == negative
    with catalog.cursor({**catalog.tenant_dsn(tenant), "application_name": "somebody else"}) as holder:
        holder.execute("SELECT pg_advisory_lock(%s), pg_backend_pid()", [key])
        pid = holder.fetchone()[1]
        with pytest.raises(exceptions.TenantLocked, match=rf"'somebody else' \(server process {pid}, connected since"):
            migrate(tenant)
        assert tables(tenant) == set()
        holder.execute("SELECT pg_advisory_unlock(%s)", [key])
        assert holder.fetchone() == (True,)
    assert migrate(tenant, "users").end == "succeeded"


def test_lock__of_one_tenant_is_no_obstacle_to_another(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lock_wait": 0}
    acme, globex = make_tenant("acme"), make_tenant("globex")
    with catalog.cursor(catalog.tenant_dsn(acme)) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [lock_key(settings.SHOP, acme.schema_name)])
        assert migrate(globex, "users").end == "succeeded"


def test_lock__is_held_while_steps_run_and_released_afterwards(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    held: list[int] = []
    migrate(tenant, "users", observer=Seen(on_start=lambda step: held.append(advisory_locks(tenant))))
    assert held == [1] * 5
    assert advisory_locks(tenant) == 0


def test_lock__released_after_an_exception(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()

    def fail(step: Step) -> None:
        raise KeyError("a defect of the observer's")

    assert migrate(tenant, "users", observer=Seen(on_start=fail)).end == "failed"
    with pytest.raises(exceptions.UnknownApp):
        migrate(tenant, "nowhere")
    assert advisory_locks(tenant) == 0


def test_lock__whose_session_is_killed_while_it_waits(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lock_wait": 30}
    tenant = make_tenant()
    key = lock_key(settings.SHOP, tenant.schema_name)
    with (
        catalog.cursor(catalog.tenant_dsn(tenant)) as holder,
        tenant_session(tenant, application_name="waits") as connection,
    ):
        holder.execute("SELECT pg_advisory_lock(%s)", [key])
        holder.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid])
        with (
            pytest.raises(ServerUnreachable),
            tenant_lock(connection, database=settings.SHOP, schema=tenant.schema_name, wait=30),
        ):
            pass


def test_lock_timeout__is_transient_and_leaves_a_boundary(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lock_timeout": 0.1}
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    with open_transaction(tenant, "LOCK TABLE {}.users_user IN ACCESS EXCLUSIVE MODE"):
        outcome = migrate(tenant, "users")
    assert outcome.failure is not None
    assert (outcome.end, outcome.failure.step) == ("failed", "users.0002_email_unique")
    assert (outcome.failure.sqlstate, outcome.failure.transient) == (errorcodes.LOCK_NOT_AVAILABLE, True)
    assert migrate(tenant, "users").end == "succeeded"


def test_permission_denied__in_the_middle_of_a_run(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    when_recorded(tenant, "users", "0003_full_name", "RAISE insufficient_privilege")
    outcome = migrate(tenant, "users")
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.transient) == (PermissionDenied.code, False)
    assert outcome.failure.step == "users.0003_full_name"
    assert outcome.after == {("users", "0001_initial"), ("users", "0002_email_unique")}


def test_reconnecting__in_silence_is_refused(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_closes_connection")
    tenant = make_tenant()
    outcome = migrate(tenant)
    assert outcome.failure is not None
    assert (outcome.failure.step, outcome.failure.code) == ("orders.0003_close", ServerUnreachable.code)
    assert run_sql(tenant, "SELECT migration FROM {}.ledger") == [("orders.0002_ledger_entry",)]


def test_search_path__changed_by_a_migration_is_refused(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_sets_search_path")
    tenant = make_tenant()
    outcome = migrate(tenant)
    assert outcome.failure is not None
    assert outcome.failure.step == "orders.0003_search_path"
    assert "orders_stray" not in catalog.tables(catalog.tenant_dsn(tenant), "public")


def test_run_syncdb__is_for_apps_without_migrations_only(make_tenant: MakeTenant, settings: Any) -> None:
    settings.MIGRATION_MODULES = {"users": None, "products": None, "orders": None}
    tenant = make_tenant(isolation=Isolation.DATABASE)
    assert migrate(tenant).synced == ()
    assert tables(tenant) == set()
    assert set(migrate(tenant, run_syncdb=True).synced) <= tables(tenant)
    assert "orders_orderline" in tables(tenant)


def test_prune__forgets_only_what_is_gone_from_disk(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users")
    before = applied(tenant)
    run_sql(tenant, "INSERT INTO {}.django_migrations (app, name, applied) VALUES ('users', '0099_gone', now())")
    outcome = migrate(tenant, "users", prune=True)
    assert outcome.pruned == ("users.0099_gone",)
    assert applied(tenant) == before


@pytest.mark.parametrize(
    ("driver_error", "transient"),
    [
        (psycopg2.OperationalError("server closed the connection unexpectedly"), True),
        (psycopg2.ProgrammingError("no results to fetch"), False),
    ],
)
def test_failure_of__a_driver_error_without_sqlstate(driver_error: psycopg2.Error, transient: bool) -> None:
    error = OperationalError(str(driver_error))
    error.__cause__ = driver_error
    assert failure_of(error, step="users.0001_initial").transient is transient
    assert failure_of(error, step="users.0001_initial", transient_allowed=False).transient is False
