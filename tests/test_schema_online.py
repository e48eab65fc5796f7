"""What the schema builder does on PostgreSQL keeps nobody waiting, and can be stopped anywhere."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.db import IntegrityError, NotSupportedError, OperationalError, connections, migrations, models
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.models.functions import Random
from psycopg2 import errors

from migrations_api.schema import Schema, online
from tests import catalog, soak
from tests.sandbox import Sandbox, migration, sandbox, server

Write = Callable[[Any], object]
Measure = Callable[[str, object], None]
ROWS = 300_000
# Milliseconds: what the sandbox's own session gives way after, and what a writer may wait at most, with some to spare
# for a machine that is busy.
LOCK_TIMEOUT, BOUND = 500, 1000
BUILDS = re.compile(r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY \"(\w+)\"")

CUSTOMER = migrations.CreateModel("Customer", [("id", models.BigAutoField(primary_key=True))])
INVOICE = migrations.CreateModel(
    "Invoice",
    [
        ("id", models.BigAutoField(primary_key=True)),
        ("number", models.IntegerField(null=True)),
        ("code", models.CharField(max_length=20, null=True)),
        ("note", models.CharField(max_length=20, null=True)),
        ("customer", models.BigIntegerField(null=True, db_column="customer_id")),
    ],
)
FORMS: dict[str, Write] = {
    "index": lambda t: t.index(["number", "code"]),
    "unique": lambda t: t.unique(["number", "code"]),
    "check": lambda t: t.check(models.Q(number__gte=0), name="number_not_negative"),
    "column with an index": lambda t: t.string("extra", 20).nullable().index(),
    "column that is unique": lambda t: t.string("extra", 20).nullable().unique(),
    "column that is unsigned": lambda t: t.unsigned_integer("extra").default(1),
    "column with a default": lambda t: t.string("extra", 20).default("none"),
    "column with a computed default": lambda t: t.float("extra").default(Random()),
    "column with a foreign key": lambda t: (
        t.foreign("payer_id").references("billing.Customer").on_delete("cascade").nullable()
    ),
    "given column with an index": lambda t: t.field("extra", models.SlugField(null=True)),
    "given column that is unsigned and unique": lambda t: t.field(
        "extra", models.PositiveSmallIntegerField(null=True, unique=True)
    ),
    "change to unique": lambda t: t.integer("number").nullable().unique().change(),
    "change to indexed": lambda t: t.string("code", 20).nullable().index().change(),
    "change to unsigned": lambda t: t.unsigned_integer("number").nullable().change(),
    "change to a foreign key": lambda t: (
        t.foreign("customer_id").references("billing.Customer").on_delete("cascade").nullable().change()
    ),
    "change to not null": lambda t: t.integer("number").change(),
    "change to not null with a default": lambda t: t.string("note", 20).default("none").change(),
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "PAUSE", 0.05)


@pytest.fixture(scope="module")
def one(django_db_setup: None, django_db_blocker: Any) -> Iterator[Sandbox]:
    with django_db_blocker.unblock(), sandbox() as made:
        yield made


@pytest.fixture
def box(one: Sandbox, django_db_blocker: Any) -> Iterator[Sandbox]:
    with django_db_blocker.unblock():
        prepare(one, rows=40)
        yield one


@pytest.fixture(scope="module")
def big(one: Sandbox, django_db_blocker: Any) -> Iterator[Sandbox]:
    """For all tests that use it the same table, in which each leaves what it has found."""
    with django_db_blocker.unblock():
        prepare(one, rows=ROWS)
        yield one


def prepare(box: Sandbox, *, rows: int) -> None:
    box.empty()
    box.apply([CUSTOMER, INVOICE])
    box.query("INSERT INTO billing_customer SELECT FROM generate_series(1, 1000)")
    box.query(
        "INSERT INTO billing_invoice (number, code, customer_id) SELECT n, 'code ' || n, n %% 1000 + 1"
        " FROM generate_series(1, %s) n",
        rows,
    )


class Writer(threading.Thread):
    """Writes rows of the invoices, one after the other, as an application does whose statements may wait so long."""

    def __init__(self) -> None:
        super().__init__()
        self.done = threading.Event()
        self.longest = 0.0
        self.written = 0
        self.blocked = 0

    def run(self) -> None:
        with catalog.cursor(server()) as cursor:
            cursor.execute(f"SET lock_timeout = {BOUND}")
            while not self.done.is_set():
                started = time.monotonic()
                try:
                    self._write(cursor)
                except errors.LockNotAvailable:
                    self.blocked += 1
                self.longest = max(self.longest, time.monotonic() - started)
                time.sleep(0.005)

    def _write(self, cursor: Any) -> None:
        number = ROWS + self.written + 1
        cursor.execute(
            "INSERT INTO billing_invoice (number, code, note, customer_id) VALUES (%s, %s, 'new', 1) RETURNING id",
            [number, f"code {number}"],
        )
        (key,) = cursor.fetchone()
        cursor.execute("UPDATE billing_invoice SET code = code WHERE id IN (%s, %s)", [key, number % ROWS])
        cursor.execute("DELETE FROM billing_invoice WHERE id = %s", [key])
        self.written += 1


@contextmanager
def writing() -> Iterator[Writer]:
    writer = Writer()
    writer.start()
    try:
        yield writer
    finally:
        writer.done.set()
        writer.join()


@contextmanager
def locking(statement: str, *, seconds: float) -> Iterator[None]:
    """Another session that has carried out the statement in a transaction, which it ends after so long."""
    begun = threading.Event()

    def hold() -> None:
        with catalog.cursor(server()) as cursor:
            cursor.execute(f"BEGIN; {statement}")
            begun.set()
            time.sleep(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize("name", FORMS)
def test_writer__is_never_blocked_longer_than_lock_timeout(
    big: Sandbox, django_db_blocker: Any, record_property: Measure, name: str
) -> None:
    """Beside a reader, too, whom the change has to wait for, with the writer queueing behind it."""
    operations = Schema.table("Invoice", FORMS[name])
    with django_db_blocker.unblock():
        before, found = big.state.clone(), big.catalog()
        with (
            writing() as writer,
            locking("SELECT count(*) FROM billing_customer, billing_invoice LIMIT 0", seconds=0.8),
        ):
            big.apply(operations)
            big.unapply(operations, before)
        assert big.catalog() == found
    soak.measured(record_property, f"writer beside {name}", f"{LOCK_TIMEOUT} ms", f"{writer.longest * 1000:.0f} ms")
    assert writer.written
    assert writer.blocked == 0


def test_writer__would_be_blocked_without_a_lock_timeout(big: Sandbox, django_db_blocker: Any) -> None:
    """What the bound is good for: the same writer, and a change that waits for the same reader."""
    with django_db_blocker.unblock(), writing() as writer:
        big.query("SET lock_timeout = 0")
        with locking("SELECT count(*) FROM billing_invoice LIMIT 0", seconds=BOUND / 1000 * 2):
            big.query("ALTER TABLE billing_invoice ALTER COLUMN number DROP NOT NULL")
        big.query(f"SET lock_timeout = {LOCK_TIMEOUT}")
    assert writer.blocked


def reading(box: Sandbox, operations: Sequence[Operation]) -> list[str]:
    """Those statements of theirs during which rows are read, or written, under a lock that excludes writers."""
    found: list[str] = []

    def watch(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        notices = box.connection.connection.notices
        notices.clear()
        result = execute(sql, params, many, context)
        told = "".join(notices)
        # What PostgreSQL says of itself; building concurrently and validating lets writers through.
        works = re.search("(rewriting|verifying) table|building index .* on table|validating foreign key", told)
        if works and not re.search("CONCURRENTLY|VALIDATE CONSTRAINT", str(sql)):
            found.append(str(sql))
        return result

    box.query("SET client_min_messages = debug1")
    with box.connection.execute_wrapper(watch):
        box.apply(operations)
    box.query("RESET client_min_messages")
    return found


@pytest.mark.parametrize("name", FORMS)
def test_statements__none_reads_rows_under_a_lock(box: Sandbox, name: str) -> None:
    assert reading(box, Schema.table("Invoice", FORMS[name])) == []


@pytest.mark.parametrize("name", [name for name in FORMS if name != "column with a default"])
def test_statements__some_of_the_plain_form_do(box: Sandbox, name: str) -> None:
    """So that the test above can fail."""
    assert len(reading(box, Schema.table("Invoice", FORMS[name], online=False))) >= 1


def test_fill__gives_every_row_its_value(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "BATCH", 7)
    box.query("UPDATE billing_invoice SET note = 'kept' WHERE id % 3 = 0")
    box.apply(Schema.table("Invoice", FORMS["change to not null with a default"]))
    assert box.query("SELECT note, count(*) FROM billing_invoice GROUP BY 1 ORDER BY 1") == [("kept", 13), ("none", 27)]


def test_fill__computes_a_default_for_each_row(box: Sandbox) -> None:
    box.apply(Schema.table("Invoice", FORMS["column with a computed default"]))
    assert box.query("SELECT count(DISTINCT extra) FROM billing_invoice") == [(40,)]


@pytest.mark.parametrize("name", [name for name in FORMS if name not in {"column with a default"}])
def test_atomic__is_refused_with_what_to_do(box: Sandbox, name: str) -> None:
    found = box.catalog()
    with pytest.raises(NotSupportedError, match=r"set atomic = False on the migration, or ask for the plain form"):
        box.apply(Schema.table("Invoice", FORMS[name]), atomic=True)
    assert box.catalog() == found


@pytest.mark.parametrize("name", FORMS)
def test_atomic__takes_the_plain_form(box: Sandbox, name: str) -> None:
    before, found = box.state.clone(), box.catalog()
    operations = Schema.table("Invoice", FORMS[name], online=False)
    box.apply(operations, atomic=True)
    box.unapply(operations, before, atomic=True)
    assert box.catalog() == found


WRONG: dict[str, tuple[str, str]] = {
    "unique": ("UPDATE billing_invoice SET number = 1, code = 'a' WHERE id < 3", "could not create unique index"),
    "check": ("UPDATE billing_invoice SET number = -1 WHERE id = 3", "number_not_negative"),
    "change to unique": ("UPDATE billing_invoice SET number = 1", "could not create unique index"),
    "change to unsigned": ("UPDATE billing_invoice SET number = -1 WHERE id = 3", "is violated by some row"),
    "change to a foreign key": ("UPDATE billing_invoice SET customer_id = 0 WHERE id = 3", "violates foreign key"),
    "change to not null": ("UPDATE billing_invoice SET number = NULL WHERE id = 3", "is violated by some row"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_break_it__leave_nothing_behind(box: Sandbox, name: str) -> None:
    statement, message = WRONG[name]
    box.query(statement)
    found = box.catalog()
    with pytest.raises(IntegrityError, match=message):
        box.apply(Schema.table("Invoice", FORMS[name]))
    assert box.catalog() == found


LOCKS = {
    "unique": "LOCK billing_invoice IN SHARE UPDATE EXCLUSIVE MODE",
    "change to a foreign key": "LOCK billing_customer IN ROW EXCLUSIVE MODE",
    "change to not null": "LOCK billing_invoice IN ACCESS SHARE MODE",
}


@pytest.mark.parametrize("name", LOCKS)
def test_lock__is_tried_for_again(box: Sandbox, name: str) -> None:
    operations = Schema.table("Invoice", FORMS[name])
    with locking(LOCKS[name], seconds=1.2):
        box.apply(operations)
    found = box.catalog()
    prepare(box, rows=40)
    box.apply(operations)
    assert found == box.catalog()


def test_lock__that_is_never_given_up_ends_it(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "ATTEMPTS", 2)
    found = box.catalog()
    with locking(LOCKS["unique"], seconds=2), pytest.raises(OperationalError, match="lock timeout"):
        box.apply(Schema.table("Invoice", FORMS["unique"]))
    assert box.catalog() == found


class Stop:
    """A worker that dies at its n-th statement that changes anything: before, or right after it was carried out."""

    def __init__(self, number: int, *, after: bool) -> None:
        self.left, self.after = number, after

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        if re.match(r"\s*SELECT", str(sql)) or self.left < 1:
            return execute(sql, params, many, context)
        self.left -= 1
        if self.left:
            return execute(sql, params, many, context)
        if self.after:
            execute(sql, params, many, context)
            return self._die(str(sql))
        raise InterruptedError

    def _die(self, statement: str) -> None:
        if built := BUILDS.match(statement):
            with catalog.cursor(server()) as cursor:
                cursor.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", [built[1]])
        raise InterruptedError


STOPPED = [name for name in FORMS if "column" not in name and name != "index"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", STOPPED)
def test_stopped__anywhere_it_can_be_carried_out_again_or_undone(
    box: Sandbox, name: str, *, backwards: bool, after: bool
) -> None:
    operations = Schema.table("Invoice", FORMS[name])
    start, unchanged = box.state.clone(), box.catalog()
    box.apply(operations)
    changed = box.catalog()
    goals, stops = {False: changed, True: unchanged}, 0
    for number in range(1, 30):
        carry_out(box, operations, start, backwards=not backwards)
        stop = Stop(number, after=after)
        with box.connection.execute_wrapper(stop), suppress(InterruptedError):
            carry_out(box, operations, start, backwards=backwards)
        if stop.left:
            break
        stops += 1
        # In turn it is carried out again and undone.
        way = backwards == bool(number % 2)
        carry_out(box, operations, start, backwards=way)
        assert box.catalog() == goals[way], number
    assert stops
    assert stop.left


def carry_out(box: Sandbox, operations: Sequence[Operation], start: ProjectState, *, backwards: bool) -> None:
    if backwards:
        box.unapply(operations, start.clone())
    else:
        box.state = start.clone()
        box.apply(operations)


def test_column__whose_constraint_s_name_is_taken_gets_the_next(box: Sandbox) -> None:
    """As PostgreSQL does when a column that was renamed has kept it."""
    rename = Schema.table("Invoice", lambda t: t.rename_column("extra", "former"))
    add = Schema.table("Invoice", lambda t: t.integer("extra").nullable().unique())
    box.apply([*add, *rename, *add])
    found = box.catalog()
    prepare(box, rows=40)
    plain = Schema.table("Invoice", lambda t: t.integer("extra").nullable().unique(), online=False)
    box.apply([*plain, *rename, *plain])
    assert found == box.catalog()
    assert any("billing_invoice_extra_key1" in line for line in found)


def test_shortened__is_postgresql_s_own_way(box: Sandbox) -> None:
    for table, column in [("a" * 50, "b" * 40), ("a" * 60, "b"), ("a", "b" * 60), ("ä" * 30, "ö" * 20), ("t", "c")]:
        box.query(f'CREATE TABLE "{table}" ("{column}" int UNIQUE CHECK ("{column}" > 0))')
        found = box.query("SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass ORDER BY 1", f'"{table}"')
        assert found == sorted([(online.shortened(table, column, label),) for label in ("key", "check")])


def test_sqlmigrate__shows_what_is_run(box: Sandbox) -> None:
    assert box.sql(Schema.table("Invoice", FORMS["change to not null with a default"])) == [
        'ALTER TABLE "billing_invoice" ALTER COLUMN "note" SET DEFAULT \'none\';',
        'UPDATE "billing_invoice" SET "note" = \'none\' WHERE "note" IS NULL;',
        'ALTER TABLE "billing_invoice" ADD CONSTRAINT "billing_invoice_note_65fcd3cd_notnull"'
        ' CHECK ("note" IS NOT NULL) NOT VALID;',
        'UPDATE "billing_invoice" SET "note" = \'none\' WHERE "note" IS NULL;',
        'ALTER TABLE "billing_invoice" VALIDATE CONSTRAINT "billing_invoice_note_65fcd3cd_notnull";',
        'ALTER TABLE "billing_invoice" ALTER COLUMN "note" SET NOT NULL;',
        'ALTER TABLE "billing_invoice" DROP CONSTRAINT IF EXISTS "billing_invoice_note_65fcd3cd_notnull";',
    ]


def test_describe__says_what_each_does() -> None:
    operations = [
        *Schema.table("Invoice", FORMS["column with a foreign key"]),
        *Schema.table("Invoice", FORMS["change to unique"]),
        *Schema.table("Invoice", FORMS["unique"]),
        *Schema.table("Invoice", FORMS["index"]),
        *Schema.table("Invoice", lambda t: [t.drop_index("by_x"), t.drop_unique("only_x")]),
    ]
    assert [operation.formatted_description() for operation in operations] == [
        "+ Add field payer to Invoice",
        "~ Complete field payer on Invoice without blocking",
        "~ Alter field number on Invoice without blocking",
        "+ Create constraint invoice_number_code_unique on model Invoice without blocking",
        "+ Concurrently create index invoice_number_code_idx on field(s) number, code of model Invoice",
        "- Concurrently remove index by_x from Invoice",
        "- Remove constraint only_x from model Invoice",
    ]


@pytest.mark.parametrize("name", [name for name in FORMS if "computed" not in name])
def test_sqlite__gets_the_plain_form(django_db_blocker: Any, name: str) -> None:
    connections.databases["lite"] = {**connections.databases["default"], "ENGINE": "django.db.backends.sqlite3"}
    connections.databases["lite"] |= {"NAME": ":memory:", "OPTIONS": {}, "CONN_MAX_AGE": 0}
    try:
        with django_db_blocker.unblock():
            found = [lite(Schema.table("Invoice", FORMS[name], online=value)) for value in (True, False)]
    finally:
        connections["lite"].close()
        del connections["lite"]
        del connections.databases["lite"]
    assert found[0] == found[1]
    assert found[0]


def lite(operations: Sequence[Operation]) -> list[Any]:
    """The tables that SQLite has after the operations; they are undone, too."""
    connection, before = connections["lite"], ProjectState()
    with connection.schema_editor() as editor:
        before = migration([CUSTOMER, INVOICE]).apply(before, editor)
    with connection.schema_editor() as editor:
        migration(operations).apply(before.clone(), editor)
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, sql FROM sqlite_master ORDER BY 1")
        found = list(cursor.fetchall())
    with connection.schema_editor() as editor:
        migration(operations).unapply(before.clone(), editor)
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE billing_invoice")
        cursor.execute("DROP TABLE billing_customer")
    return found
