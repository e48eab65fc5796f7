"""What the schema builder refuses, and what it says then. No database is needed."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.db import migrations, models
from django.db.migrations.state import ProjectState

from migrations_api.schema import InvalidBlueprint, Schema
from migrations_api.schema.exceptions import MissingStar
from migrations_api.schema.operations import AddConstraintOnline, AddIndexOnline

Write = Callable[[Any], object]


def order(table: Any) -> Any:
    return table.foreign("order_id").references("orders.Order")


REFUSED: dict[str, tuple[Write, str]] = {
    "after": (lambda t: t.integer("x").after("y"), "PostgreSQL adds columns at the end"),
    "charset": (lambda t: t.string("x").charset("latin1"), "a PostgreSQL database has one encoding"),
    "drop_if_exists": (lambda t: t.drop_if_exists(), "known from the migrations before this one"),
    "drop_primary": (lambda t: t.drop_primary(), "has a primary key always"),
    "primary": (lambda t: t.primary("x"), "chosen when it is created. To change it: migrations.AlterField"),
    "primary column": (lambda t: t.big_increments("x"), "chosen when it is created"),
    "float with digits": (lambda t: t.float("x", 8, 2), "use table.decimal"),
    "double with digits": (lambda t: t.double("x", 8), "use table.decimal"),
    "unsigned text": (lambda t: t.text("x").unsigned(), r'table.check\(Q\(x__gte=0\), name="..."\)'),
    "default of Python": (lambda t: t.json("x").default(dict), r"\.options\(default=\.\.\.\)"),
    "no value for rows": (lambda t: t.string("x"), r"Say \.nullable\(\) or \.default\(\.\.\.\)\."),
    "no value for rows, key": (lambda t: order(t).on_delete("cascade"), r"Say \.nullable\(\) or \.default\(\.\.\.\)\."),
    "options of a given field": (lambda t: t.field("x", models.TextField()).nullable(), "was given; say null there"),
    "no target": (lambda t: t.foreign("order_id").on_delete("cascade"), "points nowhere: .references"),
    "no app": (lambda t: t.foreign("order_id").references("id").on("orders"), "such as 'orders.Order'"),
    "no on_delete": (lambda t: order(t).nullable(), r"\.on_delete\(\.\.\.\) with one of 'cascade', 'no action'"),
    "unknown on_delete": (lambda t: order(t).on_delete("vanish"), "'vanish'\\) is none of: 'cascade', 'no action'"),
    "set null": (lambda t: order(t).on_delete("set null"), r"must be \.nullable\(\)"),
    "on_update": (lambda t: order(t).on_update("cascade"), "cannot cascade on update"),
    "twice": (lambda t: [t.integer("x").nullable(), t.text("x").nullable()], "is there twice"),
    "column of a key": (
        lambda t: [t.big_integer("order_id").nullable(), order(t).on_delete("cascade").nullable()],
        "A foreign key has its column with it",
    ),
    "no name": (lambda t: t.integer("x y"), "'x y' is no name of a column"),
    "rename to a table": (lambda t: t.rename("bills"), "as models.py has it, such as 'Invoice'"),
    "long index": (lambda t: t.index(["a_rather_long_column", "another"]), "Django takes 30. Give it a shorter one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_table__refuses(case: str) -> None:
    write, message = REFUSED[case]
    with pytest.raises(InvalidBlueprint, match=message):
        Schema.table("Invoice", write)


NOT_YET: dict[str, tuple[Write, str]] = {
    "change": (lambda t: t.integer("x").change(), r"has nothing to \.change\(\) yet"),
    "drop_column": (lambda t: t.drop_column("x"), r"has nothing to drop_column\(\) yet"),
    "drop_index": (lambda t: t.drop_index("x"), r"has nothing to drop_index\(\) yet"),
    "rename": (lambda t: t.rename("Bill"), r"has nothing to rename\(\) yet"),
}


@pytest.mark.parametrize("case", NOT_YET)
def test_create__refuses_what_needs_a_table(case: str) -> None:
    write, message = NOT_YET[case]
    with pytest.raises(InvalidBlueprint, match=message):
        Schema.create("Invoice", lambda table: [table.big_increments("id"), write(table)])


def test_create__refuses_a_table_without_a_key() -> None:
    with pytest.raises(InvalidBlueprint, match=r"has no primary key: table\.big_increments\('id'\)"):
        Schema.create("Invoice", lambda table: table.integer("x"))


def test_create__refuses_the_name_of_a_table() -> None:
    with pytest.raises(InvalidBlueprint, match=r"Schema\.create\('Invoice', \.\.\., db_table='invoices'\)"):
        Schema.create("invoices", lambda table: table.big_increments("id"))


def test_create__refuses_indexes_beside_the_blueprint() -> None:
    with pytest.raises(InvalidBlueprint, match="Write constraints and indexes of 'Invoice' into its blueprint"):
        Schema.create("Invoice", lambda table: table.big_increments("id"), indexes=[], constraints=[])


def test_schema__drop_if_exists_is_refused() -> None:
    with pytest.raises(InvalidBlueprint, match="known from the migrations before this one"):
        Schema.drop_if_exists("Invoice")


@pytest.mark.parametrize("setting", ["engine", "charset", "collation"])
def test_table__has_no_settings_of_mysql(setting: str) -> None:
    with pytest.raises(AttributeError):
        Schema.table("Invoice", lambda table: setattr(table, setting, "x"))


def test_list__without_a_star_says_so() -> None:
    operations: Any = [Schema.table("Invoice", lambda table: table.integer("x").nullable())]
    with pytest.raises(MissingStar, match=r"Put a star before it: operations = \[\*Schema\.table"):
        operations[0].state_forwards("billing", ProjectState())


def test_written_with_a_function__is_the_same_as_with_a_lambda() -> None:
    def write(table: Any) -> None:
        table.integer("x").nullable()
        table.index("x")

    written = [operation.deconstruct()[0] for operation in Schema.table("Invoice", write)]
    assert written == ["AddFieldOnline", "AddIndexOnline"]


PLAIN: dict[str, tuple[Write, bool, list[type]]] = {
    "online": (lambda t: t.index("x"), True, [AddIndexOnline]),
    "the whole table": (lambda t: t.index("x"), False, [migrations.AddIndex]),
    "one index": (lambda t: t.index("x", concurrently=False), True, [migrations.AddIndex]),
    "only one index online": (lambda t: t.index("x", concurrently=True), False, [AddIndexOnline]),
    "one constraint": (lambda t: t.unique("x", concurrently=False), True, [migrations.AddConstraint]),
    "one check": (lambda t: t.check(models.Q(x=1), name="x", online=False), True, [migrations.AddConstraint]),
    "one column": (
        lambda t: t.integer("x").nullable().unique().index("x").plain(),
        True,
        [migrations.AddField, migrations.AddIndex],
    ),
    "one change": (lambda t: t.integer("x").plain().change(), True, [migrations.AlterField]),
    "one drop": (lambda t: t.drop_index("x", concurrently=False), True, [migrations.RemoveIndex]),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain__can_be_chosen(case: str) -> None:
    write, online, kinds = PLAIN[case]
    assert [type(operation) for operation in Schema.table("Invoice", write, online=online)] == kinds


def test_add_constraint_online__refuses_what_has_no_such_form() -> None:
    with pytest.raises(InvalidBlueprint, match=r"'only_a' is another\. Use migrations\.AddConstraint"):
        AddConstraintOnline("invoice", models.UniqueConstraint(fields=["x"], condition=models.Q(x="a"), name="only_a"))


def test_import__needs_only_django() -> None:
    """A project takes its migrations along when it leaves the service: nothing else of it is loaded."""
    code = (
        "import sys; from migrations_api.schema import Schema;"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'rest_framework', 'tenants', 'service'}),"
        " sorted(name for name in sys.modules if name.startswith('migrations_api.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = ["", ".blueprint", ".builder", ".columns", ".exceptions", ".online", ".operations"]
    assert done.stdout == f"[] {[f'migrations_api.schema{name}' for name in ours]}\n"
