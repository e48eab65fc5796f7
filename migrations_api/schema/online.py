"""The statements with which PostgreSQL changes a table beside those who are using it.

Each is a transaction of its own. It either holds a lock that excludes writers for no longer than a change of the
catalog takes, or one that excludes only other changes of the table. What has to wait for its lock longer than the
session's lock_timeout gives way, so that those queueing behind it get through, and is tried again.

Everything here finds out what is there already, and can be carried out again after it was stopped at any statement.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from itertools import count
from typing import Any, Final

from django.db import DatabaseError, IntegrityError, NotSupportedError, transaction
from django.db.models import Model

ATTEMPTS: Final = 10
PAUSE: Final = 1.0  # seconds
BATCH: Final = 1000  # rows
LOCK_NOT_AVAILABLE: Final = "55P03"
DEADLOCK_DETECTED: Final = "40P01"
MAX_NAME: Final = 63  # bytes

# Of Django's fields with a CHECK of their own, those that hold the same values without it.
_UNCHECKED: Final = {
    "PositiveIntegerField": "IntegerField",
    "PositiveBigIntegerField": "BigIntegerField",
    "PositiveSmallIntegerField": "SmallIntegerField",
}

# A schema editor, of which much that is needed here is not in its public interface.
Editor = Any


def is_postgresql(editor: Editor) -> bool:
    return bool(editor.connection.vendor == "postgresql")


def require_no_transaction(editor: Editor, what: str) -> None:
    """Raise NotSupportedError inside of a transaction, which would hold every lock until its end."""
    if editor.connection.in_atomic_block:
        raise NotSupportedError(
            f"'{what}' keeps nobody waiting, which it cannot in a transaction: set atomic = False on the migration, or "
            "ask for the plain form (online=False, concurrently=False, .plain())."
        )


def patiently(editor: Editor, act: Callable[[], None]) -> None:
    """Try again what has to wait for its lock longer than lock_timeout; raises the last refusal."""
    for _ in range(ATTEMPTS - 1):
        try:
            return act()
        except DatabaseError as error:
            if _sqlstate(error) not in {LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED} or editor.connection.in_atomic_block:
                raise
        time.sleep(PAUSE)
    return act()


def _sqlstate(error: DatabaseError) -> str | None:
    cause = error.__cause__
    return getattr(cause, "pgcode", None) or getattr(cause, "sqlstate", None)


def execute(editor: Editor, statement: object) -> None:
    patiently(editor, lambda: editor.execute(str(statement), params=None))


def _ask(editor: Editor, question: str, *parameters: object) -> list[tuple[Any, ...]]:
    with editor.connection.cursor() as cursor:
        cursor.execute(question, parameters)
        return list(cursor.fetchall())


def _tell(editor: Editor, statement: str, parameters: Sequence[object]) -> None:
    with editor.connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def _alter_table(editor: Editor, model: type[Model], change: str) -> str:
    return f"ALTER TABLE {editor.quote_name(model._meta.db_table)} {change}"


# Indexes and unique constraints


def index_validity(editor: Editor, model: type[Model], name: str) -> bool | None:
    """Whether the index of that name on the table can be used; None where there is none."""
    found = _ask(
        editor,
        "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE i.indrelid = to_regclass(%s) AND c.relname = %s",
        editor.quote_name(model._meta.db_table),
        name,
    )
    return bool(found[0][0]) if found else None


def drop_invalid_index(editor: Editor, model: type[Model], name: str) -> None:
    if index_validity(editor, model, name) is False:
        _drop_index(editor, name)


def drop_unattached_index(editor: Editor, model: type[Model], name: str) -> None:
    """Drop the index that was built for a unique constraint, to which it was not added any more; if there is one."""

    def drop() -> None:
        found = _ask(
            editor,
            "SELECT true FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = to_regclass(%s) AND c.relname = %s AND i.indisunique"
            " AND NOT EXISTS (SELECT FROM pg_constraint r WHERE r.conindid = i.indexrelid)",
            editor.quote_name(model._meta.db_table),
            name,
        )
        if found:
            _drop_index(editor, name)

    patiently(editor, drop)


def _drop_index(editor: Editor, name: str) -> None:
    concurrently = not editor.connection.in_atomic_block
    statement = editor.sql_delete_index_concurrently if concurrently else editor.sql_delete_index
    editor.execute(statement % {"name": editor.quote_name(name)}, params=None)


def build_index(editor: Editor, model: type[Model], name: str, build: Callable[[], None]) -> None:
    """Carry out `build`, which makes the index concurrently; leaves no invalid one behind unless the session is lost.

    What cannot be used is maintained all the same, and a unique one that is refused goes on refusing rows.
    """

    def again() -> None:
        drop_invalid_index(editor, model, name)
        build()

    try:
        patiently(editor, again)
    except DatabaseError:
        with suppress(DatabaseError):
            patiently(editor, lambda: drop_invalid_index(editor, model, name))
        raise


def add_field_indexes(editor: Editor, model: type[Model], field: Any) -> None:
    """The indexes that Django gives the column, under the names that it gives them."""
    for statement in editor._field_indexes_sql(model, field):
        statement.template = editor.sql_create_index_concurrently
        name = str(statement.parts["name"]).strip('"')
        if index_validity(editor, model, name) is not True:
            build_index(editor, model, name, lambda made=statement: editor.execute(made, params=None))  # type: ignore[misc]


def add_unique(editor: Editor, model: type[Model], columns: Sequence[str], name: str, *, suffix: str = "") -> None:
    """A unique constraint, on an index that was built concurrently under the same name."""
    if _has_unique(editor, model, columns, name):
        return
    quoted = editor.quote_name(name)
    named = ", ".join(map(editor.quote_name, columns))
    statement = f"CREATE UNIQUE INDEX CONCURRENTLY {quoted} ON {editor.quote_name(model._meta.db_table)} ({named})"
    if index_validity(editor, model, name) is not True:
        build_index(editor, model, name, lambda: editor.execute(statement, params=None))
    execute(editor, _alter_table(editor, model, f"ADD CONSTRAINT {quoted} UNIQUE USING INDEX {quoted}{suffix}"))


def _has_unique(editor: Editor, model: type[Model], columns: Sequence[str], name: str) -> bool:
    found = _ask(
        editor,
        "SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_constraint r"
        " CROSS JOIN unnest(r.conkey) WITH ORDINALITY k (number, place)"
        " JOIN pg_attribute a ON a.attrelid = r.conrelid AND a.attnum = k.number"
        " WHERE r.conrelid = to_regclass(%s) AND r.conname = %s AND r.contype = 'u'",
        editor.quote_name(model._meta.db_table),
        name,
    )
    return found == [(list(columns),)]


# Foreign keys, checks and NOT NULL


def constraint_validity(editor: Editor, model: type[Model], name: str) -> bool | None:
    """Whether all rows are known to obey the table's check or foreign key of that name; None where there is none."""
    found = _ask(
        editor,
        "SELECT convalidated FROM pg_constraint"
        " WHERE conrelid = to_regclass(%s) AND conname = %s AND contype IN ('c', 'f')",
        editor.quote_name(model._meta.db_table),
        name,
    )
    return bool(found[0][0]) if found else None


def add_validated(
    editor: Editor,
    model: type[Model],
    name: str,
    adding: object,
    *,
    before_validation: Callable[[], None] = lambda: None,
) -> None:
    """Add the constraint for rows to come, then look at those that are there, which excludes nobody.

    Where one of them breaks it, the constraint is taken back and IntegrityError is raised.
    """
    validity = constraint_validity(editor, model, name)
    if validity is None:
        execute(editor, f"{adding} NOT VALID")
    if validity:
        return
    try:
        before_validation()
        execute(editor, _alter_table(editor, model, f"VALIDATE CONSTRAINT {editor.quote_name(name)}"))
    except IntegrityError:
        drop_constraint(editor, model, name)
        raise


def drop_constraint(editor: Editor, model: type[Model], name: str) -> None:
    execute(editor, _alter_table(editor, model, f"DROP CONSTRAINT IF EXISTS {editor.quote_name(name)}"))


def add_foreign_key(editor: Editor, model: type[Model], field: Any) -> None:
    statement = editor._create_fk_sql(model, field, "_fk_%(to_table)s_%(to_column)s")
    add_validated(editor, model, str(statement.parts["name"]).strip('"'), statement)


def refuse_nulls(editor: Editor, model: type[Model], field: Any) -> None:
    """NOT NULL, which believes a constraint that says the same and is validated, instead of reading the table.

    Where the field has a default, rows without a value get it first, some at a time. A row that has none is written
    freely until then: the constraint would refuse it as soon as it is touched.
    """
    name = _not_null_name(editor, model, field)
    column = editor.quote_name(field.column)
    adding = _alter_table(editor, model, f"ADD CONSTRAINT {editor.quote_name(name)} CHECK ({column} IS NOT NULL)")
    has_default = field.has_default() or field.has_db_default()

    def fill() -> None:
        if has_default:
            fill_nulls(editor, model, field)

    fill()
    # What was written while the last of them were filled.
    add_validated(editor, model, name, adding, before_validation=fill)
    execute(editor, _alter_table(editor, model, f"ALTER COLUMN {column} SET NOT NULL"))
    drop_constraint(editor, model, name)


def _not_null_name(editor: Editor, model: type[Model], field: Any) -> str:
    return str(editor._create_index_name(model._meta.db_table, [field.column], suffix="_notnull"))


def accept_nulls(editor: Editor, model: type[Model], field: Any) -> None:
    drop_constraint(editor, model, _not_null_name(editor, model, field))
    execute(editor, _alter_table(editor, model, f"ALTER COLUMN {editor.quote_name(field.column)} DROP NOT NULL"))


def fill_nulls(editor: Editor, model: type[Model], field: Any) -> None:
    """Give each row that has no value the field's default, in short transactions in the order of the primary key."""
    table, column = editor.quote_name(model._meta.db_table), editor.quote_name(field.column)
    value, parameters = _default_sql(editor, field)
    if editor.collect_sql:
        editor.execute(f"UPDATE {table} SET {column} = {value} WHERE {column} IS NULL", parameters)  # noqa: S608
        return
    keys = [editor.quote_name(each.column) for each in model._meta.pk_fields]
    key = ", ".join(keys)
    marks = ", ".join(["%s"] * len(keys))
    last: Sequence[Any] = ()
    while True:
        beyond = f" AND ({key}) > ({marks})" if last else ""
        # By the primary key alone: how many rows have no value yet, PostgreSQL's statistics do not know.
        select = f"SELECT {key} FROM {table} WHERE true{beyond} ORDER BY {key} OFFSET {BATCH - 1} LIMIT 1"  # noqa: S608
        (end,) = _ask(editor, select, *last) or [()]
        until = f" AND ({key}) <= ({marks})" if end else ""
        update = f"UPDATE {table} SET {column} = {value} WHERE {column} IS NULL{beyond}{until}"  # noqa: S608
        given = [*parameters, *last, *end]
        patiently(editor, lambda update=update, given=given: _tell(editor, update, given))  # type: ignore[misc]
        if not end:
            return
        last = end


def _default_sql(editor: Editor, field: Any) -> tuple[str, Sequence[Any]]:
    if field.has_db_default():
        sql, parameters = editor.db_default_sql(field)
        return str(sql), list(parameters)
    return "%s", [editor.effective_default(field)]


# Columns


def alter_field(
    editor: Editor, model: type[Model], old: Any, new: Any, *, what: str, is_new_column: bool = False
) -> None:
    """As schema_editor.alter_field(); what would keep writers waiting while rows are read is done online.

    Of a new column, constraints are named as PostgreSQL names those of ADD COLUMN, and rows get the database's default.
    """
    if old.column is None or new.column is None or old.primary_key or new.primary_key:
        editor.alter_field(model, old, new)
        return
    steps = _steps(editor, model, old, new, is_new_column=is_new_column)
    if steps:
        require_no_transaction(editor, what)
    if old.unique and not new.unique:
        for is_new in (True, False):
            drop_unattached_index(editor, model, _unique_name(editor, model, old, is_new_column=is_new))
    if new.null and not old.null:
        # Before a default goes, on which those rely who do not know the column.
        accept_nulls(editor, model, new)
    between = _between(editor, old, new)
    wholly(editor, lambda: editor.alter_field(model, old, between))
    for step in steps:
        step()


def _steps(
    editor: Editor, model: type[Model], old: Any, new: Any, *, is_new_column: bool
) -> Sequence[Callable[[], None]]:
    # What rows may refuse comes before what only takes its time.
    gained: dict[Callable[[], None], bool] = {
        lambda: fill_nulls(editor, model, new): is_new_column and new.has_db_default() and not old.has_db_default(),
        lambda: _add_column_check(editor, model, new, is_new_column=is_new_column): _gains_check(editor, old, new),
        lambda: add_foreign_key(editor, model, new): _gains_target(old, new),
        lambda: _add_column_unique(editor, model, new, is_new_column=is_new_column): _gains_unique(old, new),
        lambda: refuse_nulls(editor, model, new): old.null and not new.null,
        lambda: add_field_indexes(editor, model, new): _gains_index(old, new),
    }
    return [step for step, is_needed in gained.items() if is_needed]


def _between(editor: Editor, old: Any, new: Any) -> Any:
    """The new field without what the steps add to it."""
    field = copy(new)
    field.null = old.null
    if _gains_index(old, new):
        field.db_index = False
    if _gains_unique(old, new):
        field._unique = field.db_index = False
        # Cached, and copied with the rest.
        vars(field).pop("unique", None)
    if _gains_check(editor, old, new):
        unchecked = _UNCHECKED[new.get_internal_type()]
        field.get_internal_type = lambda: unchecked
    if _gains_target(old, new):
        field.db_constraint = False
    return field


def wholly(editor: Editor, act: Callable[[], None]) -> None:
    """Patiently, where Django has several statements: all of them or nothing."""

    def in_transaction() -> None:
        deferred = list(editor.deferred_sql)
        try:
            with transaction.atomic(using=editor.connection.alias):
                act()
        except DatabaseError:
            editor.deferred_sql = deferred
            raise

    patiently(editor, in_transaction)


def _gains_index(old: Any, new: Any) -> bool:
    return bool(new.db_index and not new.unique and not (old.db_index and not old.unique))


def _gains_unique(old: Any, new: Any) -> bool:
    return bool(new.unique and not old.unique)


def _gains_check(editor: Editor, old: Any, new: Any) -> bool:
    checks = [editor._field_db_check(field, field.db_parameters(editor.connection)) for field in (old, new)]
    return new.get_internal_type() in _UNCHECKED and checks[0] != checks[1]


def _gains_target(old: Any, new: Any) -> bool:
    return _target(new) is not None and _target(new) != _target(old)


def _target(field: Any) -> tuple[str, str] | None:
    """The column that the database makes it point to."""
    if not field.remote_field or not field.db_constraint:
        return None
    return field.target_field.model._meta.db_table, field.target_field.column


def _unique_name(editor: Editor, model: type[Model], field: Any, *, is_new_column: bool) -> str:
    given = str(editor._unique_constraint_name(model._meta.db_table, [field.column], quote=False))
    return own_name(editor, model, field, "key") if is_new_column else given


def _add_column_unique(editor: Editor, model: type[Model], field: Any, *, is_new_column: bool) -> None:
    name = _unique_name(editor, model, field, is_new_column=is_new_column)
    add_unique(editor, model, [field.column], name)
    add_field_indexes(editor, model, field)


def _add_column_check(editor: Editor, model: type[Model], field: Any, *, is_new_column: bool) -> None:
    given = editor._create_index_name(model._meta.db_table, [field.column], suffix="_check")
    name = own_name(editor, model, field, "check") if is_new_column else given
    add_validated(
        editor, model, name, editor._create_check_sql(model, name, field.db_parameters(editor.connection)["check"])
    )


def own_name(editor: Editor, model: type[Model], field: Any, label: str) -> str:
    """The name that PostgreSQL gives a column's constraint that has none; the one there is, or a free one."""
    table = model._meta.db_table
    found = _ask(
        editor,
        "SELECT r.conname, r.conkey = ARRAY[a.attnum] FROM pg_constraint r JOIN pg_attribute a"
        " ON a.attrelid = r.conrelid AND a.attname = %s WHERE r.conrelid = to_regclass(%s)",
        field.column,
        editor.quote_name(table),
    )
    is_own = dict(found)
    names = (shortened(table.strip('"'), field.column, f"{label}{number or ''}") for number in count())
    return next(name for name in names if is_own.get(name, True))


def shortened(table: str, column: str, label: str) -> str:
    """`table_column_label` in at most 63 bytes, of which the longer of table and column gives way first.

    As makeObjectName() of PostgreSQL's src/backend/commands/indexcmds.c.
    """
    first, second = table.encode(), column.encode()
    while len(first) + len(second) > MAX_NAME - len(label.encode()) - 2:
        if len(first) > len(second):
            first = first[:-1]
        else:
            second = second[:-1]
    return f"{first.decode(errors='ignore')}_{second.decode(errors='ignore')}_{label}"
