"""A session that is passed on from tenant to tenant: who gets it, what is left in it, and what becomes of it."""

import gc
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.conf import settings as configured
from django.db import connections, migrations, models
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate, pre_migrate
from psycopg2 import extensions, sql
from psycopg2.extensions import ISOLATION_LEVEL_SERIALIZABLE
from psycopg2.extras import DictCursor

from migrations_api.executor import Options, repertoire
from migrations_api.executor.lock import lock_key
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.recorder import session_name
from migrations_api.plan import Target
from tenants import relay
from tenants.exceptions import ServerUnreachable
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant
from tenants.relay import relay_of
from tenants.sessions import tenant_session
from tenants.watch import watch_of
from tests import catalog
from tests.pooler import PORT, pooler
from tests.processes import wait_until
from tests.schema_editors import schema_editors
from tests.small_app import END, FIRST, Code, MakeTenant, add_field, migrate, migration, query, standing_at_first

OBSERVER = """
CREATE SCHEMA observer;
GRANT USAGE ON SCHEMA observer TO PUBLIC;
CREATE FUNCTION observer.tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('seen', json_build_object(
        'schema', TG_TABLE_SCHEMA,
        'pid', pg_backend_pid(),
        'name', current_setting('application_name'),
        'path', current_setting('search_path'),
        'home', (SELECT reset_val FROM pg_settings WHERE name = 'search_path'),
        'lock_timeout', current_setting('lock_timeout'),
        'mark', coalesce(current_setting('small_app.mark', true), ''),
        'locks', (SELECT json_agg((classid::bigint << 32) | objid::bigint) FROM pg_locks
                   WHERE locktype = 'advisory' AND pid = pg_backend_pid()))::text);
    RETURN NULL;
END $$
"""
OBSERVED = (
    "CREATE TRIGGER seen AFTER INSERT OR DELETE ON django_migrations FOR EACH ROW EXECUTE FUNCTION observer.tell()"
)
Scripted = Callable[..., list[Tenant]]
TOTAL = migration("m2", add_field("total"))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a session was when it wrote a row of some tenant's `django_migrations`; `home` is its search_path as new."""

    schema: str
    pid: int
    name: str
    path: str
    home: str
    lock_timeout: str
    mark: str
    locks: list[int]

    @property
    def is_relayed(self) -> bool:
        return self.schema not in self.home


class Observer:
    """Hears from the tenants' own tables which session writes into them."""

    def __init__(self, server: dict[str, Any]) -> None:
        self._session = psycopg2.connect(**server)
        self._session.autocommit = True
        self._cursor = self._session.cursor()
        self._cursor.execute(OBSERVER)
        self._cursor.execute("LISTEN seen")

    def look_at(self, *tenants: Tenant) -> None:
        for tenant in tenants:
            query(tenant, OBSERVED)

    def seen(self) -> list[Seen]:
        """Since it was last asked."""
        self._cursor.execute("SELECT 1")
        self._session.poll()
        told = [json.loads(each.payload) for each in self._session.notifies]
        self._session.notifies.clear()
        return [Seen(**each) for each in told]

    def close(self) -> None:
        self._cursor.execute("DROP SCHEMA observer CASCADE")
        self._session.close()


@pytest.fixture
def shop(plane: None) -> dict[str, Any]:
    return catalog.dsn(configured.TENANT_DATABASES["shop"])


@pytest.fixture
def observer(shop: dict[str, Any]) -> Iterator[Observer]:
    observer = Observer(shop)
    yield observer
    observer.close()


@pytest.fixture
def scripted(make_tenant: MakeTenant, code: Code, observer: Observer) -> Scripted:
    """So many tenants that stand before `m2` when two others have made a script of it; other migrations come behind."""

    def make(count: int, m2: Any = TOTAL, **more: Any) -> list[Tenant]:
        code(m2=m2, **more)
        tenants = standing_at_first(make_tenant, count + 2)
        for tenant in tenants[:2]:
            assert migrate(tenant, at("m2") if more else END).state == "succeeded"
        observer.look_at(*tenants[2:])
        return tenants[2:]

    return make


def at(name: str) -> Target:
    return Target(app_label="orders", migration_name=name)


def served(observer: Observer, tenant: Tenant, **how: Any) -> Seen:
    """Migrate it, and see by whom."""
    run = migrate(tenant, **how)
    assert (run.state, run.attempt, run.message) == ("succeeded", 1, "")
    [seen] = observer.seen()
    assert seen.schema == tenant.schema_name
    return seen


def columns(tenant: Tenant) -> set[str]:
    found = query(tenant, "SELECT attname FROM pg_attribute WHERE attrelid = 'orders_order'::regclass AND attnum > 0")
    return {name for (name,) in found}


def rows(tenant: Tenant) -> list[str]:
    return [name for (name,) in query(tenant, "SELECT name FROM django_migrations ORDER BY id")]


def idle(tenant: Tenant) -> Any:
    """The session that waits for the next tenant."""
    raw = relay_of(tenant)._raw
    assert raw is not None
    return raw


def ask(connection: Any, statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def add_rows(apps: Any, editor: Any) -> None:
    apps.get_model("orders", "Order").objects.create(number="7")


class Money(models.IntegerField):
    """Somebody's own: what it is in the database might be decided for each tenant."""


@pytest.mark.parametrize(
    "second",
    [
        TOTAL,
        migration("m2", migrations.RunPython(add_rows)),
        migration("m2", migrations.RunSQL("UPDATE orders_order SET number = '7'")),
        migration("m2", migrations.AddField("Order", "price", Money(null=True))),
    ],
    ids=["script", "python", "sql", "own field"],
)
def test_relay__serves_those_that_come_after_the_first(
    make_tenant: MakeTenant, code: Code, observer: Observer, second: Any
) -> None:
    code(m2=second)
    tenants = standing_at_first(make_tenant, 5)
    observer.look_at(*tenants)
    seen = [served(observer, tenant) for tenant in tenants]
    assert [each.is_relayed for each in seen] == [False, True, True, True, True]
    assert len({each.pid for each in seen[1:]}) == 1


def test_relay__is_the_tenants_while_it_serves(scripted: Scripted, observer: Observer) -> None:
    for tenant in scripted(2):
        seen = served(observer, tenant)
        assert seen.is_relayed
        assert seen.name == session_name(MigrationRun.objects.filter(tenant=tenant).latest("pk"))
        assert f"tenant={tenant.tenant_id}" in seen.name
        assert seen.path == f'"{tenant.schema_name}"'
        assert seen.locks == [lock_key(configured.SHOP, tenant.schema_name)]


LEAVINGS = """
CREATE FUNCTION observer.leave() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('small_app.mark', true) IS DISTINCT FROM 'left' THEN
        PERFORM set_config('small_app.mark', 'left', false), set_config('work_mem', '77MB', false),
                set_config('lock_timeout', '77s', false), pg_advisory_lock(77);
        EXECUTE 'PREPARE left_behind AS SELECT 1';
        EXECUTE 'CREATE TEMP TABLE left_behind ()';
        EXECUTE 'LISTEN left_behind';
    END IF;
END $$;
"""
WHAT_IS_LEFT = """
SELECT 'prepared ' || name FROM pg_prepared_statements
UNION ALL SELECT 'table ' || relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
UNION ALL SELECT 'lock ' || locktype FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
UNION ALL SELECT 'listens to ' || pg_listening_channels()
UNION ALL SELECT 'cursor ' || name FROM pg_cursors WHERE name <> ''
UNION ALL SELECT 'setting ' || name FROM pg_settings WHERE source = 'session'
UNION ALL SELECT 'mark ' || current_setting('small_app.mark', true) WHERE current_setting('small_app.mark', true) <> ''
UNION ALL SELECT 'search_path ' || current_setting('search_path') WHERE current_setting('search_path') NOT IN ('', '""')
"""


@contextmanager
def leaving_things(shop: dict[str, Any]) -> Iterator[None]:
    """Whoever changes a table of the database gets settings, locks and more into the session."""
    catalog.query(shop, LEAVINGS)
    catalog.query(shop, "CREATE EVENT TRIGGER leave ON ddl_command_end EXECUTE FUNCTION observer.leave()")
    try:
        yield
    finally:
        catalog.query(shop, "DROP EVENT TRIGGER leave")


@pytest.mark.parametrize("is_littered", [False, True])
def test_relay__has_nothing_left_between_two_tenants(
    scripted: Scripted, observer: Observer, shop: dict[str, Any], is_littered: bool
) -> None:
    first, second = scripted(2)
    if is_littered:
        with leaving_things(shop):
            seen = served(observer, first)
            assert (seen.mark, seen.lock_timeout, len(seen.locks)) == ("left", "77s", 2)
    else:
        seen = served(observer, first)
    [(name, locks)] = catalog.query(
        shop,
        "SELECT application_name, (SELECT count(*) FROM pg_locks l WHERE l.pid = a.pid AND locktype = 'advisory')"
        " FROM pg_stat_activity a WHERE pid = %s",
        [seen.pid],
    )
    assert (name, locks) == ("tenant-migrations relay", 0)
    assert ask(idle(first), WHAT_IS_LEFT) == []

    after = served(observer, second)
    assert (after.pid, after.mark, after.lock_timeout) == (seen.pid, "", "2s")
    assert len(after.locks) == 1


SETTINGS = """
SELECT name, setting FROM pg_settings WHERE name NOT IN ('application_name')
UNION ALL SELECT 'user', current_user UNION ALL SELECT 'mark', current_setting('small_app.mark', true) ORDER BY 1
"""


def mark(connection: Any, **values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('small_app.mark', 'by the project', false)")


@pytest.fixture
def peculiar(shop: dict[str, Any], settings: Any) -> Iterator[None]:
    """A database with a date style of its own, and a project that makes each session the way it likes it."""
    database = sql.Identifier(configured.SHOP)
    catalog.query(shop, sql.SQL("ALTER DATABASE {} SET datestyle = 'SQL, DMY'").format(database))
    catalog.query(shop, sql.SQL("ALTER DATABASE {} SET timezone = 'Asia/Tokyo'").format(database))
    server = settings.TENANT_DATABASES["shop"]
    options = {**server.get("OPTIONS", {}), "assume_role": "pg_monitor"}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "assuming": {**server, "OPTIONS": options}}
    connection_created.connect(mark)
    try:
        yield
    finally:
        connection_created.disconnect(mark)
        for name in ("datestyle", "timezone"):
            catalog.query(shop, sql.SQL("ALTER DATABASE {} RESET " + name).format(database))


@pytest.mark.parametrize("server", ["shop", "assuming"])
def test_relay__has_each_time_the_settings_of_a_new_session(
    make_tenant: MakeTenant, shop: dict[str, Any], peculiar: None, server: str
) -> None:
    tenants = [make_tenant(f"t{number}") for number in range(3)]
    for tenant in tenants:
        query(tenant, f'GRANT ALL ON SCHEMA "{tenant.schema_name}" TO pg_monitor')
        tenant.database = server
        with tenant_session(tenant, application_name="test") as connection:
            alone = ask(connection, SETTINGS)
        watch = watch_of(tenant)
        assert watch is not None
        with relay_of(tenant).session(tenant, application_name="test", watch=watch) as connection:
            assert ask(connection, SETTINGS) == alone
        tenant.database = "shop"


def set_mark(apps: Any, editor: Any) -> None:
    editor.execute("SELECT set_config('small_app.mark', 'by a migration', false)")


@pytest.mark.parametrize(
    "third",
    [
        migration("m3", migrations.RunPython(set_mark), after="m2"),
        migration("m3", migrations.RunSQL("SET small_app.mark = 'by a migration'"), after="m2"),
        migration("m3", add_field("size"), after="m2", atomic=False),
    ],
    ids=["python", "sql", "not atomic"],
)
def test_own_session__for_what_could_leave_something(scripted: Scripted, observer: Observer, third: Any) -> None:
    tenants = scripted(6, m3=third)
    seen = [served(observer, tenant, target=at("m2")) for tenant in tenants]
    assert all(each.is_relayed for each in seen)
    seen = [served(observer, tenant) for tenant in tenants[:4]]
    assert not any(each.is_relayed for each in seen)
    assert len({each.pid for each in seen}) == 4


def test_own_session__what_is_set_there_never_reaches_the_relay(scripted: Scripted, observer: Observer) -> None:
    first, second, third = scripted(3, m3=migration("m3", migrations.RunPython(set_mark), after="m2"))
    assert served(observer, first, target=at("m2")).mark == ""
    assert served(observer, first).mark == "by a migration"
    seen = served(observer, second, target=at("m2"))
    assert (seen.is_relayed, seen.mark) == (True, "")
    # A plan that begins with a script and goes on with something else.
    run = migrate(third)
    assert run.state == "succeeded"
    assert [(each.is_relayed, each.mark) for each in observer.seen()] == [(False, ""), (False, "by a migration")]


@pytest.mark.parametrize("options", [Options(fake=True), Options(fake_initial=True), Options(run_syncdb=True)])
def test_own_session__for_other_options(scripted: Scripted, observer: Observer, options: Options) -> None:
    for tenant in scripted(3):
        assert not served(observer, tenant, options=options).is_relayed
        assert ("total" in columns(tenant)) != options.fake


def test_own_session__for_a_plan_backwards(scripted: Scripted, observer: Observer) -> None:
    tenants = scripted(3)
    assert all(served(observer, tenant).is_relayed for tenant in tenants)
    assert not any(served(observer, tenant, target=FIRST).is_relayed for tenant in tenants)
    assert all(served(observer, tenant).is_relayed for tenant in tenants)


def test_script__is_not_sent_to_another_version_of_the_server(scripted: Scripted) -> None:
    tenants = scripted(4)
    for scripts in repertoire._scripts.values():
        for version in list(scripts):
            scripts[version - 10000] = scripts.pop(version)
    for each in repertoire._rehearsals.values():
        each._agreed.clear()
    written = []
    for tenant in tenants:
        with schema_editors() as found:
            assert migrate(tenant).state == "succeeded"
        written.append(bool(found))
    # Another one of that version has to agree first.
    assert written == [True, False, False, False]


@pytest.mark.parametrize("signal", [pre_migrate, post_migrate])
def test_script__is_not_sent_where_somebody_else_is_told(scripted: Scripted, observer: Observer, signal: Any) -> None:
    told: list[Any] = []

    def hear(**values: Any) -> None:
        told.append((values["app_config"].label, connection.settings_dict is served_by()))

    def served_by() -> Any:
        return connections["default"].settings_dict

    tenants = scripted(3)
    connection = connections["default"]
    signal.connect(hear)
    try:
        assert all(served(observer, tenant).is_relayed for tenant in tenants[:2])
    finally:
        signal.disconnect(hear)
    # By way of the tenant's session, not of the control plane's.
    assert told == [("orders", False)] * 2
    assert served(observer, tenants[2]).is_relayed


def resolve(tenant: Tenant, server: dict[str, Any]) -> dict[str, Any]:
    return server


def test_own_session__for_tenants_whose_settings_are_resolved(
    scripted: Scripted, observer: Observer, settings: Any
) -> None:
    tenants = scripted(3)
    settings.TENANT_MIGRATIONS = {"connection_resolver": f"{__name__}.resolve"}
    assert not any(served(observer, tenant).is_relayed for tenant in tenants)


def test_own_session__for_tenants_with_a_role(
    scripted: Scripted,
    make_tenant: MakeTenant,
    observer: Observer,
    shop: dict[str, Any],
    settings: Any,
) -> None:
    scripted(0)
    settings.TENANT_ROLE_TEMPLATE = "{tenant_id}_" + configured.SUFFIX + "_role"
    tenants = [make_tenant(f"with{number}") for number in range(3)]
    try:
        for tenant in tenants:
            assert migrate(tenant, FIRST).state == "succeeded"
            observer.look_at(tenant)
            assert not served(observer, tenant).is_relayed
    finally:
        for tenant in tenants:
            role = sql.Identifier(tenant.role_name)
            catalog.query(shop, sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(role))


def test_own_session__where_the_driver_sets_the_isolation_level(
    scripted: Scripted, observer: Observer, settings: Any
) -> None:
    tenants = scripted(2)
    server = settings.TENANT_DATABASES["shop"]
    options = {**server.get("OPTIONS", {}), "isolation_level": ISOLATION_LEVEL_SERIALIZABLE}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "shop": {**server, "OPTIONS": options}}
    for tenant in tenants:
        assert not served(observer, tenant).is_relayed


def test_own_session__for_tenants_with_a_database(scripted: Scripted, make_tenant: MakeTenant) -> None:
    scripted(0)
    for number in range(3):
        tenant = make_tenant(f"with{number}", Isolation.DATABASE)
        assert migrate(tenant, FIRST).state == "succeeded"
        observer = Observer(catalog.tenant_dsn(tenant))
        try:
            observer.look_at(tenant)
            assert not served(observer, tenant).is_relayed
        finally:
            observer.close()


def test_relay__has_the_schemas_of_the_extra_search_path(
    scripted: Scripted, observer: Observer, shop: dict[str, Any], settings: Any
) -> None:
    catalog.query(shop, "CREATE SCHEMA extras")
    try:
        settings.TENANT_MIGRATIONS = {"extra_search_path": ["extras"]}
        for tenant in scripted(2):
            seen = served(observer, tenant)
            assert (seen.is_relayed, seen.path) == (True, f'"{tenant.schema_name}","extras"')
            assert ask(idle(tenant), "SELECT current_schemas(false)") == [([],)]
    finally:
        catalog.query(shop, "DROP SCHEMA extras")


def test_relay__is_with_one_server(scripted: Scripted, shop: dict[str, Any], settings: Any) -> None:
    first, second = scripted(2)
    name = f"other_{configured.SUFFIX}"
    other = {**settings.TENANT_DATABASES["shop"], "NAME": name}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "other": other}
    catalog.query(shop, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    third = create_tenant(tenant_id="elsewhere", name="", isolation=Isolation.SCHEMA, database="other")
    assert migrate(third, FIRST).state == "succeeded"
    pids = []
    for tenant in (first, third, second):
        assert migrate(tenant).state == "succeeded"
        pids.append(idle(tenant).info.backend_pid)
        assert idle(tenant).info.dbname == catalog.tenant_dsn(tenant)["dbname"]
        assert rows(tenant) == ["0001_initial", "m2"]
    assert pids[0] == pids[2] != pids[1]


def test_relay__of_settings_that_have_changed_is_another(scripted: Scripted, observer: Observer, settings: Any) -> None:
    first, second, third = scripted(3)
    old = served(observer, first)
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "lock_timeout": 3}
    new = [served(observer, tenant) for tenant in (second, third)]
    assert [each.lock_timeout for each in (old, *new)] == ["2s", "3s", "3s"]
    assert old.pid != new[0].pid == new[1].pid
    assert wait_until(lambda: not lives(first, old.pid)) is None


class Keeping:
    """Python code of a migration that does something with its connection, for the first tenant that is served so."""

    def __init__(self, act: Callable[[DatabaseWrapper], Any]) -> None:
        self.act = act
        self.of: Tenant | None = None
        self.kept: Any = None
        self.found: list[Any] = []

    def __call__(self, apps: Any, editor: Any) -> None:
        connection = editor.connection
        raw = connection.connection
        self.found.append(
            (raw.cursor_factory, raw.readonly, len(connection.execute_wrappers), sorted(raw.string_types))
        )
        if self.of is not None and self.of.schema_name in connection.settings_dict["NAME"] + self._path(connection):
            self.kept = self.act(connection)

    def _path(self, connection: DatabaseWrapper) -> str:
        [(path,)] = ask(connection, "SHOW search_path")
        return str(path)


def keep_cursor(connection: DatabaseWrapper) -> Any:
    return connection.connection.cursor()


def keep_connection(connection: DatabaseWrapper) -> Any:
    return connection


def make_factory(connection: DatabaseWrapper) -> Any:
    connection.connection.cursor_factory = DictCursor


def register_type(connection: DatabaseWrapper) -> Any:
    extensions.register_type(extensions.new_type((600,), "POINT", lambda value, cursor: value), connection.connection)


def wrap_statements(connection: DatabaseWrapper) -> Any:
    connection.execute_wrappers.append(lambda execute, *given: execute(*given))


@pytest.mark.parametrize("act", [keep_cursor, keep_connection, make_factory, register_type, wrap_statements])
def test_code__leaves_nothing_in_the_connection_of_the_next_tenant(
    make_tenant: MakeTenant, code: Code, observer: Observer, act: Callable[[DatabaseWrapper], Any]
) -> None:
    keeping = Keeping(act)
    code(m2=migration("m2", migrations.RunPython(keeping)))
    tenants = standing_at_first(make_tenant, 4)
    keeping.of = tenants[1]
    observer.look_at(*tenants)
    seen = [served(observer, tenant) for tenant in tenants]
    assert [each.is_relayed for each in seen] == [False, True, True, True]
    assert keeping.found == [keeping.found[0]] * 4
    if keeping.kept is not None:
        speak = keeping.kept.execute if act is keep_cursor else partial(ask, keeping.kept)
        with pytest.raises((psycopg2.InterfaceError, ServerUnreachable)):
            speak("SELECT 1")


LEAVES_SOMETHING = [
    "SET work_mem = '7MB'",
    "UPDATE orders_order SET number = '7'; SET LOCAL small_app.mark = 'here'",
    "-- For this once.\nreset search_path",
    "SELECT set_config('small_app.mark', 'here', false)",
    "DO $$ BEGIN SET work_mem = '7MB'; END $$",
    "DO $$ BEGIN IF true THEN\n  RESET work_mem; END IF; END $$",
    "LISTEN orders",
]
ONLY_LOOKS_SO = [
    "UPDATE orders_order SET number = '7'",
    "UPDATE orders_order\nSET number = '7'",
    "ALTER TABLE orders_order ALTER number SET DEFAULT ''",
    "SET CONSTRAINTS ALL IMMEDIATE",
]


@pytest.mark.parametrize("text", [*LEAVES_SOMETHING, *ONLY_LOOKS_SO])
def test_relay__is_not_for_statements_that_may_leave_something(
    make_tenant: MakeTenant, code: Code, observer: Observer, text: str
) -> None:
    code(m2=migration("m2", migrations.RunSQL(text)))
    tenants = standing_at_first(make_tenant, 3)
    observer.look_at(*tenants)
    is_passed_on = text in ONLY_LOOKS_SO
    assert [served(observer, tenant).is_relayed for tenant in tenants] == [False, is_passed_on, is_passed_on]


def test_own_session__once_the_code_of_one_tenant_has_set_something(
    make_tenant: MakeTenant, code: Code, observer: Observer
) -> None:
    def set_for_one(apps: Any, editor: Any) -> None:
        if apps.get_model("orders", "Order").objects.exists():
            set_mark(apps, editor)

    code(m2=migration("m2", migrations.RunPython(set_for_one)))
    tenants = standing_at_first(make_tenant, 4)
    observer.look_at(*tenants)
    query(tenants[2], "INSERT INTO orders_order (number, changed_at) VALUES ('a', now()) RETURNING 1")
    seen = [served(observer, tenant) for tenant in tenants]
    assert [each.is_relayed for each in seen] == [False, True, True, False]
    assert [each.mark for each in seen] == ["", "", "by a migration", ""]


def test_code__that_fails_does_so_for_its_tenant_alone(make_tenant: MakeTenant, code: Code, observer: Observer) -> None:
    def refuse_rows(apps: Any, editor: Any) -> None:
        editor.execute("CREATE TEMP TABLE left_behind ()")
        assert not apps.get_model("orders", "Order").objects.exists(), "There are orders."

    code(m2=migration("m2", migrations.RunPython(refuse_rows)))
    tenants = standing_at_first(make_tenant, 5)
    observer.look_at(*tenants)
    query(tenants[2], "INSERT INTO orders_order (number, changed_at) VALUES ('a', now()) RETURNING 1")
    assert [migrate(tenant).state for tenant in tenants] == [*["succeeded"] * 2, "failed", *["succeeded"] * 2]
    assert [each.is_relayed for each in observer.seen()] == [False, True, True, True]
    assert rows(tenants[2]) == ["0001_initial"]


def lives(tenant: Tenant, pid: int) -> bool:
    return bool(catalog.query(catalog.tenant_dsn(tenant), "SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]))


def terminate(tenant: Tenant, pid: int) -> None:
    catalog.query(catalog.tenant_dsn(tenant), "SELECT pg_terminate_backend(%s, 5000)", [pid])


def test_relay__that_the_server_has_ended_is_opened_anew(scripted: Scripted, observer: Observer) -> None:
    first, second, third = scripted(3)
    old = served(observer, first)
    terminate(first, old.pid)
    new = [served(observer, tenant) for tenant in (second, third)]
    assert all(each.is_relayed for each in new)
    assert old.pid != new[0].pid == new[1].pid


def test_relay__is_replaced_after_so_many_tenants(
    scripted: Scripted, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = scripted(7)
    relay_of(tenants[0]).close()
    monkeypatch.setattr(relay, "TENANTS", 3)
    seen = [served(observer, tenant) for tenant in tenants[:4]]
    assert [each.pid == seen[0].pid for each in seen] == [True, True, True, False]
    # One that takes the place of a session that was lost serves as many.
    terminate(tenants[0], seen[3].pid)
    seen = [served(observer, tenant) for tenant in tenants[4:]]
    assert all(each.is_relayed for each in seen)
    assert len({each.pid for each in seen}) == 1


def test_relay__serves_code_until_it_is_worn_out(make_tenant: MakeTenant, code: Code, observer: Observer) -> None:
    # What Django's own objects, which refer to each other, hold on to is let go of at any time.
    code(m2=migration("m2", migrations.RunPython(add_rows), migrations.RunPython(lambda apps, editor: gc.collect())))
    tenants = standing_at_first(make_tenant, 8)
    observer.look_at(*tenants)
    seen = [served(observer, tenant) for tenant in tenants]
    assert len({each.pid for each in seen[1:]}) == 1


def test_relay__is_replaced_after_so_many_steps(
    scripted: Scripted, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = scripted(5)
    relay_of(tenants[0]).close()
    monkeypatch.setattr(relay, "STEPS", 2)
    pids = [served(observer, tenant).pid for tenant in tenants]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


@contextmanager
def in_the_way(tenant: Tenant, act: Callable[[int], None]) -> Iterator[list[int]]:
    """Somebody's lock on the orders, until the session that waits for it has been acted upon; yields whose that was."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s AND wait_event_type = 'Lock'"
    met: list[int] = []

    def watch() -> None:
        with catalog.cursor(catalog.tenant_dsn(tenant)) as cursor:

            def is_waiting() -> bool:
                cursor.execute(waiting, [f"%tenant={tenant.tenant_id}"])
                met.extend(pid for (pid,) in cursor.fetchall())
                return bool(met)

            wait_until(is_waiting)
            act(met[0])

            def is_over() -> bool:
                cursor.execute(waiting + " AND pid = %s", [f"%tenant={tenant.tenant_id}", met[0]])
                return not cursor.fetchall()

            wait_until(is_over)

    with psycopg2.connect(**catalog.tenant_dsn(tenant)) as blocker, blocker.cursor() as cursor:
        cursor.execute(sql.SQL("LOCK TABLE {}").format(sql.Identifier(tenant.schema_name, "orders_order")))

        def release_after() -> None:
            try:
                watch()
            finally:
                blocker.rollback()

        thread = threading.Thread(target=release_after, daemon=True)
        thread.start()
        yield met
        thread.join()
    blocker.close()


@pytest.fixture
def patient(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "lock_timeout": 30, "heartbeat": 0.1}


@pytest.mark.parametrize("attempts", [1, 2])
def test_relay__that_is_ended_in_the_middle_of_a_script(
    scripted: Scripted, observer: Observer, patient: None, settings: Any, attempts: int
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "attempts": attempts}
    first, second, third = scripted(3, m2=migration("m2", add_field("one"), add_field("two")))
    old = served(observer, first)
    with in_the_way(second, lambda pid: terminate(second, pid)) as met:
        run = migrate(second)
    assert met[0] == old.pid
    told = [step.state for step in run.steps.all()]
    if attempts == 1:
        assert (run.state, run.failed_step, run.attempt) == ("failed", "orders.m2", 1), run.message
        assert (told, rows(second)) == (["failed"], ["0001_initial"])
        assert not columns(second) & {"one", "two"}
        assert observer.seen() == []
    else:
        assert (run.state, run.attempt, told) == ("succeeded", 2, ["done"])
        assert rows(second) == ["0001_initial", "m2"]
        assert columns(second) >= {"one", "two"}
        assert [(each.is_relayed, each.pid != old.pid) for each in observer.seen()] == [(True, True)]
    assert served(observer, third).is_relayed


def test_script__that_fails_in_its_second_statement(scripted: Scripted, observer: Observer) -> None:
    first, second, third = scripted(3, m2=migration("m2", add_field("one"), add_field("two")))
    served(observer, first)
    query(second, "ALTER TABLE orders_order ADD COLUMN two int")
    run = migrate(second)
    assert (run.state, run.sqlstate, run.failed_step, run.attempt) == ("failed", "42701", "orders.m2", 1)
    assert [step.state for step in run.steps.all()] == ["failed"]
    assert rows(second) == ["0001_initial"]
    assert "one" not in columns(second)
    assert served(observer, third).is_relayed


def test_script__whose_record_is_refused_leaves_nothing(scripted: Scripted, observer: Observer) -> None:
    first, second, third = scripted(3)
    served(observer, first)
    query(second, "ALTER TABLE django_migrations ADD CHECK (name <> 'm2')")
    run = migrate(second)
    assert (run.state, run.sqlstate, run.failed_step) == ("failed", "23514", "orders.m2")
    assert rows(second) == ["0001_initial"]
    assert "total" not in columns(second)
    assert served(observer, third).is_relayed


def test_script__whose_second_migration_fails_keeps_the_first(
    scripted: Scripted, make_tenant: MakeTenant, observer: Observer
) -> None:
    tenants = scripted(4, m3=migration("m3", add_field("size"), after="m2"))
    assert [migrate(tenant).state for tenant in tenants[:2]] == ["succeeded"] * 2
    observer.seen()
    query(tenants[2], "ALTER TABLE orders_order ADD COLUMN size int")
    run = migrate(tenants[2])
    assert (run.state, run.sqlstate, run.failed_step) == ("failed", "42701", "orders.m3")
    assert [step.state for step in run.steps.order_by("position")] == ["done", "failed"]
    assert rows(tenants[2]) == ["0001_initial", "m2"]
    assert run.applied_after is not None
    assert run.applied_after.keys == {("orders", "0001_initial"), ("orders", "m2")}
    assert migrate(tenants[3]).state == "succeeded"
    assert all(each.is_relayed for each in observer.seen())


def test_interrupted__while_its_script_waits(scripted: Scripted, observer: Observer, patient: None) -> None:
    first, second, third = scripted(3)
    old = served(observer, first)

    def interrupt(pid: int) -> None:
        # Of this process, the control plane's connection is the tenant meanwhile.
        catalog.query(
            plane,
            "UPDATE migrations_api_migrationrun SET cancel_requested = true, interrupt_requested = true"
            " WHERE tenant_id = %s AND state = 'running'",
            [second.tenant_id],
        )

    plane = catalog.dsn(configured.DATABASES["default"])
    with in_the_way(second, interrupt) as met:
        run = migrate(second)
    assert met[0] == old.pid
    assert (run.state, run.error_code) == ("canceled", "canceled")
    assert rows(second) == ["0001_initial"]
    assert "total" not in columns(second)
    seen = served(observer, third)
    assert (seen.is_relayed, len(seen.locks)) == (True, 1)


def test_pooler__is_refused_before_anything_is_set_in_its_session(
    scripted: Scripted, observer: Observer, settings: Any
) -> None:
    first, second = scripted(2)
    assert served(observer, first).is_relayed
    server = settings.TENANT_DATABASES["shop"]
    if catalog.dsn(server).get("password"):
        pytest.skip("the pooler knows no passwords")
    with tempfile.TemporaryDirectory(dir="/tmp") as name, pooler(catalog.dsn(server), Path(name)) as pool:
        settings.TENANT_DATABASES = {"shop": {**server, "HOST": name, "PORT": PORT, "OPTIONS": {}}}
        run = migrate(second)
        settings.TENANT_DATABASES = {"shop": server}
    assert (run.state, run.error_code) == ("failed", "pooler_in_between")
    assert pool.queries
    # What is set in the session of a pooler is set for whoever gets it next.
    assert not [each for each in pool.queries if "set_config" in each]
    assert (rows(second), observer.seen()) == (["0001_initial"], [])
