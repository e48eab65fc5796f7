"""Each word of the blueprint makes the tables, and leaves the models, that Django's own operation does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import migrations, models
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.operations.base import Operation
from django.db.migrations.optimizer import MigrationOptimizer
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import MigrationWriter
from django.db.models import Value
from django.db.models.functions import Abs, Now, Random

from migrations_api.schema import Schema
from tests.sandbox import APP, Sandbox, migration, sandbox

Write = Callable[[Any], object]
Fields = list[tuple[str, Any]]
COLORS = [("red", "red"), ("blue", "blue")]
ID = models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


def big_id() -> Any:
    return ID.clone()


@pytest.fixture(scope="module")
def one(django_db_setup: None, django_db_blocker: Any) -> Iterator[Sandbox]:
    with django_db_blocker.unblock(), sandbox() as made:
        yield made


@pytest.fixture
def box(one: Sandbox, django_db_blocker: Any) -> Iterator[Sandbox]:
    with django_db_blocker.unblock():
        one.empty()
        yield one


@dataclass(frozen=True)
class Row:
    """What is written, and what Django's fields, indexes and constraints for the same are."""

    write: Write
    fields: Fields
    indexes: tuple[models.Index, ...] = ()
    constraints: tuple[models.BaseConstraint, ...] = ()


def check(name: str, **condition: Any) -> models.CheckConstraint:
    return models.CheckConstraint(condition=models.Q(**condition), name=name)


def fk(**values: Any) -> Any:
    return models.ForeignKey("billing.Customer", **{"on_delete": models.CASCADE, **values})


COLUMNS: dict[str, Row] = {
    "string": Row(lambda t: t.string("x").nullable(), [("x", models.CharField(max_length=255, null=True))]),
    "string length": Row(lambda t: t.string("x", 32).nullable(), [("x", models.CharField(max_length=32, null=True))]),
    "char": Row(lambda t: t.char("x", 3).nullable(), [("x", models.CharField(max_length=3, null=True))]),
    "text": Row(lambda t: t.text("x").nullable(), [("x", models.TextField(null=True))]),
    "medium_text": Row(lambda t: t.medium_text("x").nullable(), [("x", models.TextField(null=True))]),
    "long_text": Row(lambda t: t.long_text("x").nullable(), [("x", models.TextField(null=True))]),
    "integer": Row(lambda t: t.integer("x").nullable(), [("x", models.IntegerField(null=True))]),
    "big_integer": Row(lambda t: t.big_integer("x").nullable(), [("x", models.BigIntegerField(null=True))]),
    "medium_integer": Row(lambda t: t.medium_integer("x").nullable(), [("x", models.IntegerField(null=True))]),
    "small_integer": Row(lambda t: t.small_integer("x").nullable(), [("x", models.SmallIntegerField(null=True))]),
    "tiny_integer": Row(lambda t: t.tiny_integer("x").nullable(), [("x", models.SmallIntegerField(null=True))]),
    "unsigned_integer": Row(
        lambda t: t.unsigned_integer("x").nullable(), [("x", models.PositiveIntegerField(null=True))]
    ),
    "unsigned_big_integer": Row(
        lambda t: t.unsigned_big_integer("x").default(1), [("x", models.PositiveBigIntegerField(db_default=1))]
    ),
    "unsigned": Row(
        lambda t: t.small_integer("x").unsigned().default(0), [("x", models.PositiveSmallIntegerField(db_default=0))]
    ),
    "float": Row(lambda t: t.float("x").nullable(), [("x", models.FloatField(null=True))]),
    "double": Row(lambda t: t.double("x").nullable(), [("x", models.FloatField(null=True))]),
    "decimal": Row(
        lambda t: t.decimal("x", 12, 2).nullable(),
        [("x", models.DecimalField(max_digits=12, decimal_places=2, null=True))],
    ),
    "boolean": Row(lambda t: t.boolean("x").default(False), [("x", models.BooleanField(db_default=False))]),
    "enum": Row(
        lambda t: t.enum("x", ["red", "blue"]).default("red"),
        [("x", models.CharField(max_length=255, choices=COLORS, db_default="red"))],
        constraints=(check("invoice_x_check", x__in=["red", "blue"]),),
    ),
    "json": Row(lambda t: t.json("x").nullable(), [("x", models.JSONField(null=True))]),
    "date": Row(lambda t: t.date("x").nullable(), [("x", models.DateField(null=True))]),
    "datetime": Row(lambda t: t.datetime("x").nullable(), [("x", models.DateTimeField(null=True))]),
    "time": Row(lambda t: t.time("x").nullable(), [("x", models.TimeField(null=True))]),
    "timestamp": Row(lambda t: t.timestamp("x").nullable(), [("x", models.DateTimeField(null=True))]),
    "use_current": Row(lambda t: t.timestamp("x").use_current(), [("x", models.DateTimeField(db_default=Now()))]),
    "timestamps": Row(
        lambda t: t.timestamps(),
        [
            ("created_at", models.DateTimeField(auto_now_add=True, db_default=Now())),
            ("updated_at", models.DateTimeField(auto_now=True, db_default=Now())),
        ],
    ),
    "timestamps, only Django's": Row(
        lambda t: t.timestamps(use_current=False),
        [
            ("created_at", models.DateTimeField(auto_now_add=True)),
            ("updated_at", models.DateTimeField(auto_now=True)),
        ],
    ),
    "nullable_timestamps": Row(
        lambda t: t.nullable_timestamps(),
        [("created_at", models.DateTimeField(null=True)), ("updated_at", models.DateTimeField(null=True))],
    ),
    "soft_deletes": Row(lambda t: t.soft_deletes(), [("deleted_at", models.DateTimeField(null=True))]),
    "binary": Row(lambda t: t.binary("x").nullable(), [("x", models.BinaryField(null=True))]),
    "morphs": Row(
        lambda t: [t.morphs("x", "x_idx")][:0] or t.field("y", models.IntegerField(null=True)),
        [
            ("x_id", models.PositiveBigIntegerField()),
            ("x_type", models.CharField(max_length=255)),
            ("y", models.IntegerField(null=True)),
        ],
        indexes=(models.Index(fields=["x_id", "x_type"], name="x_idx"),),
    ),
    "field": Row(lambda t: t.field("x", models.UUIDField(null=True)), [("x", models.UUIDField(null=True))]),
    "field, indexed": Row(lambda t: t.field("x", models.SlugField(null=True)), [("x", models.SlugField(null=True))]),
    "field, unsigned and computed": Row(
        lambda t: t.field("x", models.PositiveIntegerField(db_default=Abs(Value(-3)))),
        [("x", models.PositiveIntegerField(db_default=Abs(Value(-3))))],
    ),
    "many to many": Row(
        lambda t: t.field("xs", models.ManyToManyField("billing.Customer")),
        [("xs", models.ManyToManyField("billing.Customer"))],
    ),
    "default": Row(
        lambda t: t.string("x", 9).default("it's"), [("x", models.CharField(max_length=9, db_default="it's"))]
    ),
    "default, only Django's": Row(lambda t: t.integer("x").options(default=7), [("x", models.IntegerField(default=7))]),
    "default, computed": Row(lambda t: t.float("x").default(Random()), [("x", models.FloatField(db_default=Random()))]),
    "default, computed, nullable": Row(
        lambda t: t.float("x").default(Random()).nullable(), [("x", models.FloatField(db_default=Random(), null=True))]
    ),
    "comment": Row(
        lambda t: t.integer("x").nullable().comment("in cents"),
        [("x", models.IntegerField(null=True, db_comment="in cents"))],
    ),
    "collate": Row(
        lambda t: t.text("x").nullable().collate("C"), [("x", models.TextField(null=True, db_collation="C"))]
    ),
    "unique": Row(
        lambda t: t.string("x", 9).nullable().unique(), [("x", models.CharField(max_length=9, null=True, unique=True))]
    ),
    "unique integer": Row(
        lambda t: t.unsigned_integer("x").nullable().unique(),
        [("x", models.PositiveIntegerField(null=True, unique=True))],
    ),
    "unique by name": Row(
        lambda t: t.string("x", 9).nullable().unique("only_x"),
        [("x", models.CharField(max_length=9, null=True))],
        constraints=(models.UniqueConstraint(fields=["x"], name="only_x"),),
    ),
    "index": Row(
        lambda t: t.string("x", 9).nullable().index(),
        [("x", models.CharField(max_length=9, null=True, db_index=True))],
    ),
    "index by name": Row(
        lambda t: t.string("x", 9).nullable().index("by_x"),
        [("x", models.CharField(max_length=9, null=True))],
        indexes=(models.Index(fields=["x"], name="by_x"),),
    ),
    "options": Row(
        lambda t: t.text("x").default("").options(blank=True, help_text="why"),
        [("x", models.TextField(db_default="", blank=True, help_text="why"))],
    ),
    "foreign": Row(
        lambda t: t.foreign("customer_id").references("billing.Customer").on_delete("cascade").nullable(),
        [("customer", fk(null=True))],
    ),
    "foreign, as Orator has it": Row(
        lambda t: (
            t.foreign("payer_id").references("id").on("billing.Customer").on_delete("set null").on_update("no action")
        ).nullable(),
        [("payer", fk(null=True, on_delete=models.SET_NULL))],
    ),
    "foreign, to a column": Row(
        lambda t: t.foreign("payer").references("code").on("billing.Customer").on_delete("restrict").nullable(),
        [("payer", fk(null=True, on_delete=models.RESTRICT, to_field="code"))],
    ),
    "foreign, unique": Row(
        lambda t: t.foreign("customer_id").references("billing.Customer").on_delete("protect").nullable().unique(),
        [("customer", models.OneToOneField("billing.Customer", null=True, on_delete=models.PROTECT))],
    ),
    "foreign, with a default": Row(
        lambda t: t.foreign("customer_id").references("billing.Customer").on_delete("cascade").default(1),
        [("customer", fk(db_default=1))],
    ),
    "table unique": Row(
        lambda t: [t.integer("x").nullable(), t.integer("y").nullable(), t.unique(["x", "y"])],
        [("x", models.IntegerField(null=True)), ("y", models.IntegerField(null=True))],
        constraints=(models.UniqueConstraint(fields=["x", "y"], name="invoice_x_y_unique"),),
    ),
    "table index": Row(
        lambda t: [t.integer("x").nullable(), t.integer("y").nullable(), t.index(["x", "y"])],
        [("x", models.IntegerField(null=True)), ("y", models.IntegerField(null=True))],
        indexes=(models.Index(fields=["x", "y"], name="invoice_x_y_idx"),),
    ),
    "table check": Row(
        lambda t: [t.integer("x").nullable(), t.check(models.Q(x__gte=0), name="x_not_negative")],
        [("x", models.IntegerField(null=True))],
        constraints=(check("x_not_negative", x__gte=0),),
    ),
}
# Columns without a value for rows that are there, which only a new table can have.
NEW_ONLY = {"morphs"}


def customers() -> Operation:
    code = models.CharField(max_length=9, unique=True)
    return migrations.CreateModel("Customer", [("id", big_id()), ("code", code)])


def invoices(*fields: Any, **options: Any) -> Operation:
    return migrations.CreateModel("Invoice", [("id", big_id()), *fields], options)


def begin(box: Sandbox, *operations: Operation) -> None:
    box.empty()
    box.apply([customers(), *operations])
    box.query("INSERT INTO billing_customer (code) VALUES ('one')")


def compare(box: Sandbox, base: list[Operation], ours: list[Operation], djangos: list[Operation], fill: str) -> None:
    """Both leave the same tables and models, and the same tables when they are undone, and done once more."""
    found = []
    for operations in (ours, djangos):
        begin(box, *base)
        if fill:
            box.query(fill)
        before, tables = box.state.clone(), []
        for _ in range(1):
            box.apply(operations)
            tables.append(box.catalog())
            state = box.state
            box.unapply(operations, before)
            tables.append(box.catalog())
        found.append((tables, state))
    assert found[0][0] == found[1][0]
    assert_same_models(found[0][1], found[1][1])


def assert_same_models(one: ProjectState, other: ProjectState) -> None:
    assert one == other
    for before, after in ((one, other), (other, one)):
        assert MigrationAutodetector(before, after)._detect_changes() == {}


FILL = "INSERT INTO billing_invoice DEFAULT VALUES; INSERT INTO billing_invoice DEFAULT VALUES"


@pytest.mark.parametrize("name", COLUMNS)
def test_create__is_create_model(box: Sandbox, name: str) -> None:
    row = COLUMNS[name]
    ours = Schema.create("Invoice", lambda table: [table.big_increments("id"), row.write(table)])
    options = {"indexes": list(row.indexes), "constraints": list(row.constraints)}
    djangos = [invoices(*row.fields, **{key: value for key, value in options.items() if value})]
    compare(box, [], ours, djangos, "")


@pytest.mark.parametrize("online", [True, False], ids=["online", "plain"])
@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in NEW_ONLY])
def test_table__is_add_field(box: Sandbox, name: str, *, online: bool) -> None:
    row = COLUMNS[name]
    ours = Schema.table("Invoice", row.write, online=online)
    djangos: list[Operation] = [migrations.AddField("invoice", field, value.clone()) for field, value in row.fields]
    djangos += [migrations.AddIndex("invoice", index) for index in row.indexes]
    djangos += [migrations.AddConstraint("invoice", constraint) for constraint in row.constraints]
    compare(box, [invoices()], ours, djangos, FILL)


KEYS: dict[str, tuple[Write, Fields]] = {
    "increments": (
        lambda t: t.increments("id"),
        [("id", models.AutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"))],
    ),
    "big_increments": (lambda t: t.big_increments("id"), [("id", big_id())]),
    "big_increments by another name": (
        lambda t: t.big_increments("number"),
        [("number", models.BigAutoField(primary_key=True, serialize=False))],
    ),
    "small": (
        lambda t: t.small_integer("id", auto_increment=True),
        [("id", models.SmallAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"))],
    ),
    "primary": (
        lambda t: t.string("code", 9).primary(),
        [("code", models.CharField(max_length=9, primary_key=True, serialize=False))],
    ),
    "table primary": (
        lambda t: [t.string("code", 9), t.primary("code")],
        [("code", models.CharField(max_length=9, primary_key=True, serialize=False))],
    ),
    "table primary of two": (
        lambda t: [t.integer("a"), t.integer("b"), t.primary(["a", "b"])],
        [("pk", models.CompositePrimaryKey("a", "b")), ("a", models.IntegerField()), ("b", models.IntegerField())],
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_create__keys(box: Sandbox, name: str) -> None:
    write, fields = KEYS[name]
    compare(box, [], Schema.create("Invoice", write), [migrations.CreateModel("Invoice", fields)], "")


def test_create__with_options_of_meta(box: Sandbox) -> None:
    options = {"db_table": "invoices", "ordering": ["id"], "default_permissions": ()}
    ours = Schema.create("Invoice", lambda table: table.big_increments("id"), **options)
    compare(box, [], ours, [invoices(**options)], "")


X_NULL = ("x", models.CharField(max_length=9, null=True))
CHANGES: dict[str, tuple[list[Any], Write, list[Operation]]] = {
    "longer": (
        [X_NULL],
        lambda t: t.string("x", 99).nullable().change(),
        [migrations.AlterField("invoice", "x", models.CharField(max_length=99, null=True))],
    ),
    "another type": (
        [X_NULL],
        lambda t: t.text("x").nullable().index().change(),
        [migrations.AlterField("invoice", "x", models.TextField(null=True, db_index=True))],
    ),
    "not null": (
        [("x", models.IntegerField(null=True, db_default=3))],
        lambda t: t.integer("x").default(3).change(),
        [migrations.AlterField("invoice", "x", models.IntegerField(db_default=3))],
    ),
    "not null, with a default": (
        [X_NULL],
        lambda t: t.string("x", 9).default("none").change(),
        [migrations.AlterField("invoice", "x", models.CharField(max_length=9, db_default="none"))],
    ),
    "not null, with Django's default": (
        [X_NULL],
        lambda t: t.string("x", 9).options(default="none").change(),
        [migrations.AlterField("invoice", "x", models.CharField(max_length=9, default="none"))],
    ),
    "nullable": (
        [("x", models.IntegerField(db_default=3))],
        lambda t: t.integer("x").nullable().default(3).change(),
        [migrations.AlterField("invoice", "x", models.IntegerField(null=True, db_default=3))],
    ),
    "nullable foreign key": (
        [("x", fk(db_default=1))],
        lambda t: t.foreign("x_id").references("billing.Customer").on_delete("cascade").nullable().change(),
        [migrations.AlterField("invoice", "x", fk(null=True))],
    ),
    "not null foreign key": (
        [("x", fk(null=True, db_default=1))],
        lambda t: t.foreign("x_id").references("billing.Customer").on_delete("cascade").default(1).change(),
        [migrations.AlterField("invoice", "x", fk(db_default=1))],
    ),
    "default": (
        [X_NULL],
        lambda t: t.string("x", 9).nullable().default("none").change(),
        [migrations.AlterField("invoice", "x", models.CharField(max_length=9, null=True, db_default="none"))],
    ),
    "unsigned": (
        [("x", models.IntegerField(null=True))],
        lambda t: t.unsigned_integer("x").nullable().change(),
        [migrations.AlterField("invoice", "x", models.PositiveIntegerField(null=True))],
    ),
    "bigger and unsigned": (
        [("x", models.IntegerField(null=True))],
        lambda t: t.unsigned_big_integer("x").nullable().change(),
        [migrations.AlterField("invoice", "x", models.PositiveBigIntegerField(null=True))],
    ),
    "unique": (
        [X_NULL],
        lambda t: t.string("x", 9).nullable().unique().change(),
        [migrations.AlterField("invoice", "x", models.CharField(max_length=9, null=True, unique=True))],
    ),
    "unique instead of indexed": (
        [("x", models.CharField(max_length=9, null=True, db_index=True))],
        lambda t: t.string("x", 9).nullable().unique().change(),
        [migrations.AlterField("invoice", "x", models.CharField(max_length=9, null=True, unique=True))],
    ),
    "indexed instead of unique": (
        [("x", models.CharField(max_length=9, null=True, unique=True))],
        lambda t: t.string("x", 9).nullable().index().change(),
        [migrations.AlterField("invoice", "x", models.CharField(max_length=9, null=True, db_index=True))],
    ),
    "no more unique": (
        [("x", models.CharField(max_length=9, null=True, unique=True))],
        lambda t: t.string("x", 9).nullable().change(),
        [migrations.AlterField("invoice", "x", models.CharField(max_length=9, null=True))],
    ),
    "index": (
        [X_NULL],
        lambda t: t.string("x", 9).nullable().index().change(),
        [migrations.AlterField("invoice", "x", models.CharField(max_length=9, null=True, db_index=True))],
    ),
    "an integer becomes a foreign key": (
        [("x", models.BigIntegerField(null=True, db_column="x_id"))],
        lambda t: t.foreign("x_id").references("billing.Customer").on_delete("cascade").nullable().change(),
        [migrations.AlterField("invoice", "x", fk(null=True))],
    ),
    "drop_foreign": (
        [("x", fk(null=True))],
        lambda t: t.drop_foreign("x_id").references("billing.Customer").on_delete("cascade").nullable(),
        [migrations.AlterField("invoice", "x", fk(null=True, db_constraint=False))],
    ),
    "drop_column": ([X_NULL], lambda t: t.drop_column("x"), [migrations.RemoveField("invoice", "x")]),
    "drop_timestamps": (
        [("created_at", models.DateTimeField(null=True)), ("updated_at", models.DateTimeField(null=True))],
        lambda t: t.drop_timestamps(),
        [migrations.RemoveField("invoice", "created_at"), migrations.RemoveField("invoice", "updated_at")],
    ),
    "drop_soft_deletes": (
        [("deleted_at", models.DateTimeField(null=True))],
        lambda t: t.drop_soft_deletes(),
        [migrations.RemoveField("invoice", "deleted_at")],
    ),
    "rename_column": ([X_NULL], lambda t: t.rename_column("x", "z"), [migrations.RenameField("invoice", "x", "z")]),
    "rename": ([X_NULL], lambda t: t.rename("Bill"), [migrations.RenameModel("Invoice", "Bill")]),
    "drop": ([X_NULL], lambda t: t.drop(), [migrations.DeleteModel("Invoice")]),
}


@pytest.mark.parametrize("online", [True, False], ids=["online", "plain"])
@pytest.mark.parametrize("name", CHANGES)
def test_table__is_django_s_change(box: Sandbox, name: str, *, online: bool) -> None:
    fields, write, djangos = CHANGES[name]
    compare(box, [invoices(*fields)], Schema.table("Invoice", write, online=online), djangos, FILL)


DROPS: dict[str, tuple[dict[str, Any], Write, Operation]] = {
    "drop_unique": (
        {"constraints": [models.UniqueConstraint(fields=["x"], name="only_x")]},
        lambda t: t.drop_unique("only_x"),
        migrations.RemoveConstraint("invoice", "only_x"),
    ),
    "drop_unique by columns": (
        {"constraints": [models.UniqueConstraint(fields=["x"], name="invoice_x_unique")]},
        lambda t: t.drop_unique(["x"]),
        migrations.RemoveConstraint("invoice", "invoice_x_unique"),
    ),
    "drop_unique with a condition": (
        {"constraints": [models.UniqueConstraint(fields=["x"], condition=models.Q(x="a"), name="only_a")]},
        lambda t: t.drop_unique("only_a"),
        migrations.RemoveConstraint("invoice", "only_a"),
    ),
    "drop_check": (
        {"constraints": [check("x_is_not_y", x="y")]},
        lambda t: t.drop_check("x_is_not_y"),
        migrations.RemoveConstraint("invoice", "x_is_not_y"),
    ),
    "drop_index": (
        {"indexes": [models.Index(fields=["x"], name="by_x")]},
        lambda t: t.drop_index("by_x"),
        migrations.RemoveIndex("invoice", "by_x"),
    ),
    "drop_index by columns": (
        {"indexes": [models.Index(fields=["x"], name="invoice_x_idx")]},
        lambda t: t.drop_index(["x"]),
        migrations.RemoveIndex("invoice", "invoice_x_idx"),
    ),
}


@pytest.mark.parametrize("online", [True, False], ids=["online", "plain"])
@pytest.mark.parametrize("name", DROPS)
def test_table__is_django_s_drop(box: Sandbox, name: str, *, online: bool) -> None:
    options, write, djangos = DROPS[name]
    compare(box, [invoices(X_NULL, **options)], Schema.table("Invoice", write, online=online), [djangos], FILL)


def test_schema__rename_and_drop(box: Sandbox) -> None:
    compare(box, [invoices()], Schema.rename("Invoice", "Bill"), [migrations.RenameModel("Invoice", "Bill")], FILL)
    compare(box, [invoices()], Schema.drop("Invoice"), [migrations.DeleteModel("Invoice")], FILL)


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in NEW_ONLY])
def test_squash__is_what_django_s_operation_would_be_squashed_to(box: Sandbox, name: str) -> None:
    """Onto a table that is made in the same squashed migration: nothing is left of how it was done."""
    row = COLUMNS[name]
    ours = [customers(), invoices(), *Schema.table("Invoice", row.write)]
    squashed = MigrationOptimizer().optimize(ours, APP)
    begin_with = [operation for operation in squashed if type(operation) is migrations.CreateModel]
    assert len(begin_with) == 2
    box.apply(squashed)
    state, tables = box.state, box.catalog()
    box.empty()
    whole = invoices(*row.fields, **_options(row))
    box.apply([customers(), whole])
    assert_same_models(state, box.state)
    assert tables == box.catalog()


def _options(row: Row) -> dict[str, Any]:
    options = {"indexes": list(row.indexes), "constraints": list(row.constraints)}
    return {key: value for key, value in options.items() if value}


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in NEW_ONLY])
def test_writer__writes_what_was_written(name: str) -> None:
    """As squashmigrations does with operations that it has not merged."""
    operations = Schema.table("Invoice", COLUMNS[name].write)
    text = MigrationWriter(migration(operations), include_header=False).as_string()
    names: dict[str, Any] = {}
    exec(text, names)  # noqa: S102 - a migration that was just written
    read = names["Migration"].operations
    assert [type(each) for each in read] == [type(each) for each in operations]
    state, other = ProjectState(), ProjectState()
    for base, each in ((state, operations), (other, read)):
        for operation in [customers(), invoices(), *each]:
            operation.state_forwards(APP, base)
    assert_same_models(state, other)
