"""What can be said of one table; the words are Orator's, what comes out are Django's operations."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from django.db.migrations.operations import (
    AddConstraint,
    AddField,
    AddIndex,
    AlterField,
    CreateModel,
    DeleteModel,
    RemoveConstraint,
    RemoveField,
    RemoveIndex,
    RenameField,
    RenameModel,
)
from django.db.migrations.operations.base import Operation
from django.db.models import (
    BigIntegerField,
    BinaryField,
    BooleanField,
    CharField,
    CheckConstraint,
    CompositePrimaryKey,
    DateField,
    DateTimeField,
    DecimalField,
    FloatField,
    Index,
    IntegerField,
    JSONField,
    PositiveBigIntegerField,
    Q,
    SmallIntegerField,
    TextField,
    TimeField,
    UniqueConstraint,
)
from django.db.models.constraints import BaseConstraint

from migrations_api.schema.columns import AUTO, AnyField, Column, ForeignColumn, GivenColumn, require_name
from migrations_api.schema.exceptions import InvalidBlueprint
from migrations_api.schema.operations import (
    AddConstraintOnline,
    AddFieldOnline,
    AddIndexOnline,
    AlterFieldOnline,
    CompleteField,
    RemoveConstraintOnline,
    RemoveFieldOnline,
    RemoveIndexOnline,
)

SUFFIXES: Final = {"index": "idx", "unique": "unique", "check": "check"}


@dataclass(frozen=True, kw_only=True)
class _Made:
    """An index or a constraint of the table; `online` is None where the table decides."""

    thing: Index | BaseConstraint
    online: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _Change:
    """What can be done only to a table that is there: in its online form, and in Django's own."""

    what: str
    online: Operation
    plain: Operation
    wants: bool | None = None


Entry = TypeVar("Entry", Column, ForeignColumn, _Made, _Change)


class Blueprint:
    """Records what is called on it, in that order; what a lambda makes of the results does not matter."""

    __slots__ = ("_entries", "_model", "_primary")

    def __init__(self, model: str) -> None:
        self._model = model
        self._entries: list[Column | _Made | _Change] = []
        self._primary: tuple[str, ...] = ()

    # Columns

    def increments(self, name: str) -> Column:
        return self.integer(name, auto_increment=True)

    def big_increments(self, name: str) -> Column:
        return self.big_integer(name, auto_increment=True)

    def string(self, name: str, length: int = 255) -> Column:
        return self._column(name, CharField, max_length=length)

    def char(self, name: str, length: int = 255) -> Column:
        return self.string(name, length)

    def text(self, name: str) -> Column:
        return self._column(name, TextField)

    def medium_text(self, name: str) -> Column:
        return self.text(name)

    def long_text(self, name: str) -> Column:
        return self.text(name)

    def integer(self, name: str, *, auto_increment: bool = False, unsigned: bool = False) -> Column:
        return self._integer(name, IntegerField, auto_increment=auto_increment, unsigned=unsigned)

    def big_integer(self, name: str, *, auto_increment: bool = False, unsigned: bool = False) -> Column:
        return self._integer(name, BigIntegerField, auto_increment=auto_increment, unsigned=unsigned)

    def medium_integer(self, name: str, *, auto_increment: bool = False, unsigned: bool = False) -> Column:
        return self._integer(name, IntegerField, auto_increment=auto_increment, unsigned=unsigned)

    def small_integer(self, name: str, *, auto_increment: bool = False, unsigned: bool = False) -> Column:
        return self._integer(name, SmallIntegerField, auto_increment=auto_increment, unsigned=unsigned)

    def tiny_integer(self, name: str, *, auto_increment: bool = False, unsigned: bool = False) -> Column:
        return self._integer(name, SmallIntegerField, auto_increment=auto_increment, unsigned=unsigned)

    def unsigned_integer(self, name: str, *, auto_increment: bool = False) -> Column:
        return self.integer(name, auto_increment=auto_increment, unsigned=True)

    def unsigned_big_integer(self, name: str, *, auto_increment: bool = False) -> Column:
        return self.big_integer(name, auto_increment=auto_increment, unsigned=True)

    def float(self, name: str, total: int | None = None, places: int | None = None) -> Column:
        if total is not None or places is not None:
            raise InvalidBlueprint(
                f"Column '{name}' is to be a float with so many digits, which Django does not have. Leave them out, or "
                "use table.decimal()."
            )
        return self._column(name, FloatField)

    def double(self, name: str, total: int | None = None, places: int | None = None) -> Column:
        return self.float(name, total, places)

    def decimal(self, name: str, total: int = 8, places: int = 2) -> Column:
        return self._column(name, DecimalField, max_digits=total, decimal_places=places)

    def boolean(self, name: str) -> Column:
        return self._column(name, BooleanField)

    def enum(self, name: str, allowed: Sequence[str], *, check: str = "") -> Column:
        """A string with choices, and a check that the database makes; `check` is the name of that."""
        choices = [(value, value) for value in allowed]
        column = self._column(name, CharField, max_length=255, choices=choices)
        self.check(Q(**{f"{name}__in": list(allowed)}), name=check or self._name([name], "check"))
        return column

    def json(self, name: str) -> Column:
        return self._column(name, JSONField)

    def date(self, name: str) -> Column:
        return self._column(name, DateField)

    def datetime(self, name: str) -> Column:
        return self._column(name, DateTimeField)

    def time(self, name: str) -> Column:
        return self._column(name, TimeField)

    def timestamp(self, name: str) -> Column:
        return self._column(name, DateTimeField)

    def timestamps(self, *, use_current: bool = True) -> None:
        """`created_at` and `updated_at`, which Django sets; with use_current, so does the database."""
        created = self.timestamp("created_at").options(auto_now_add=True)
        updated = self.timestamp("updated_at").options(auto_now=True)
        if use_current:
            created.use_current()
            updated.use_current()

    def nullable_timestamps(self) -> None:
        self.timestamp("created_at").nullable()
        self.timestamp("updated_at").nullable()

    def soft_deletes(self) -> Column:
        return self.timestamp("deleted_at").nullable()

    def binary(self, name: str) -> Column:
        return self._column(name, BinaryField)

    def morphs(self, name: str, index_name: str | None = None) -> None:
        """`<name>_id` and `<name>_type`, and an index on both; for django.contrib.contenttypes, write the fields."""
        self._column(f"{name}_id", PositiveBigIntegerField)
        self.string(f"{name}_type")
        self.index([f"{name}_id", f"{name}_type"], index_name)

    def field(self, name: str, field: AnyField) -> Column:
        """Any field of Django's or of yours, as models.py has it."""
        return self._add(GivenColumn(name, field))

    def foreign(self, name: str) -> ForeignColumn:
        """The field `order` with the column `order_id`, for either of the two names."""
        return self._add(ForeignColumn(name))

    # Keys, indexes and constraints

    def primary(self, columns: str | Sequence[str]) -> None:
        """Of several columns, a CompositePrimaryKey; of one, the same as .primary() of the column."""
        self._primary = _names(columns)

    def unique(
        self, columns: str | Sequence[str], name: str | None = None, *, concurrently: bool | None = None
    ) -> None:
        fields = _names(columns)
        constraint = UniqueConstraint(fields=fields, name=name or self._name(fields, "unique"))
        self._add(_Made(thing=constraint, online=concurrently))

    def index(self, columns: str | Sequence[str], name: str | None = None, *, concurrently: bool | None = None) -> None:
        fields = _names(columns)
        self._add(_Made(thing=Index(fields=list(fields), name=self._index_name(fields, name)), online=concurrently))

    def check(self, condition: Q, *, name: str, online: bool | None = None) -> None:
        self._add(_Made(thing=CheckConstraint(condition=condition, name=name), online=online))

    # Changes of a table that is there

    def drop(self) -> None:
        self._change("drop()", DeleteModel(self._model))

    def drop_if_exists(self) -> None:
        raise InvalidBlueprint(
            f"Whether there is a '{self._model}' is known from the migrations before this one: drop it, or do not."
        )

    def rename(self, to: str) -> None:
        require_model(to)
        self._change("rename()", RenameModel(self._model, to))

    def drop_column(self, *columns: str) -> None:
        for column in columns:
            online, plain = RemoveFieldOnline(self._model, column), RemoveField(self._model, column)
            self._add(_Change(what="drop_column()", online=online, plain=plain))

    def rename_column(self, old: str, new: str) -> None:
        require_name(new, "column")
        self._change("rename_column()", RenameField(self._model, old, new))

    def drop_timestamps(self) -> None:
        self.drop_column("created_at", "updated_at")

    def drop_soft_deletes(self) -> None:
        self.drop_column("deleted_at")

    def drop_primary(self, name: str | None = None) -> None:
        raise InvalidBlueprint(f"A model has a primary key always, and so '{self._model}' cannot do without one.")

    def drop_unique(self, index: str | Sequence[str]) -> None:
        """By its name, or as a list of columns; of one that a field has, .change() the column instead."""
        name = index if isinstance(index, str) else self._name(index, "unique")
        self._drop_constraint("drop_unique()", name)

    def drop_check(self, name: str) -> None:
        self._drop_constraint("drop_check()", name)

    def drop_index(self, index: str | Sequence[str], *, concurrently: bool | None = None) -> None:
        """By its name, or as a list of columns; of one that a field has, .change() the column instead."""
        name = index if isinstance(index, str) else self._index_name(index, None)
        online, plain = RemoveIndexOnline(self._model, name), RemoveIndex(self._model, name)
        self._add(_Change(what="drop_index()", online=online, plain=plain, wants=concurrently))

    def drop_foreign(self, name: str) -> ForeignColumn:
        """Take the constraint from the database; column and relation stay, and are written out as for foreign()."""
        return self._add(ForeignColumn(name, keeps_constraint=False)).change()

    # What comes out

    def creation(self, options: dict[str, Any]) -> CreateModel:
        """Raises InvalidBlueprint for what a table that is not there yet cannot have."""
        columns = list(self._columns())
        made = [entry for entry in self._with_named() if isinstance(entry, _Made)]
        for entry in self._entries:
            if isinstance(entry, _Change) or (isinstance(entry, Column) and entry.is_changed):
                what = entry.what if isinstance(entry, _Change) else ".change()"
                raise InvalidBlueprint(f"'{self._model}' is created, and so has nothing to {what} yet: Schema.table().")
        fields = [(column.name, column.field()) for column in self._keyed(columns)]
        indexes = [entry.thing for entry in made if isinstance(entry.thing, Index)]
        constraints = [entry.thing for entry in made if isinstance(entry.thing, BaseConstraint)]
        things = {"indexes": indexes, "constraints": constraints}
        return CreateModel(self._model, fields, options | {key: value for key, value in things.items() if value})

    def changes(self, *, online: bool) -> list[Operation]:
        """Raises InvalidBlueprint for what cannot be done to a table that is there, and may have rows."""
        columns = list(self._columns())
        if self._primary or any(column.is_primary for column in columns):
            raise InvalidBlueprint(
                f"The primary key of '{self._model}' is chosen when it is created. To change it: migrations.AlterField."
            )
        return [operation for entry in self._with_named() for operation in self._operations(entry, online=online)]

    def _operations(self, entry: Column | _Made | _Change, *, online: bool) -> Iterator[Operation]:
        if isinstance(entry, Column):
            yield from self._of_column(entry, online=online and not entry.is_plain)
        elif isinstance(entry, _Made):
            yield self._of_made(entry.thing, online=online if entry.online is None else entry.online)
        else:
            yield entry.online if (online if entry.wants is None else entry.wants) else entry.plain

    def _of_column(self, column: Column, *, online: bool) -> Iterator[Operation]:
        if column.is_changed:
            yield (AlterFieldOnline if online else AlterField)(self._model, column.name, column.field())
            return
        column.require_values()
        bare = column.bare() if online else None
        yield (AddFieldOnline if online else AddField)(self._model, column.name, bare or column.field())
        if bare is not None:
            yield CompleteField(self._model, column.name, column.field())

    def _of_made(self, thing: Index | BaseConstraint, *, online: bool) -> Operation:
        if isinstance(thing, Index):
            return (AddIndexOnline if online else AddIndex)(self._model, thing)
        return (AddConstraintOnline if online else AddConstraint)(self._model, thing)

    def _with_named(self) -> Iterator[Column | _Made | _Change]:
        """The entries, each column followed by the index and the constraint that it gave a name."""
        for entry in self._entries:
            yield entry
            for kind, name in entry.named if isinstance(entry, Column) else ():
                fields, online = (entry.name,), False if entry.is_plain else None  # type: ignore[union-attr]
                if kind == "index":
                    yield _Made(thing=Index(fields=list(fields), name=self._index_name(fields, name)), online=online)
                else:
                    yield _Made(thing=UniqueConstraint(fields=fields, name=name), online=online)

    def _columns(self) -> Iterator[Column]:
        seen: set[str] = set()
        for entry in self._entries:
            if not isinstance(entry, Column):
                continue
            names = {entry.name, f"{entry.name}_id"} if isinstance(entry, ForeignColumn) else {entry.name}
            if names & seen:
                raise InvalidBlueprint(
                    f"Column '{entry.name}' of '{self._model}' is there twice. A foreign key has its column with it."
                )
            seen |= names
            yield entry

    def _keyed(self, columns: list[Column]) -> Iterable[Column]:
        if len(self._primary) > 1:
            return [GivenColumn("pk", CompositePrimaryKey(*self._primary)), *columns]
        for column in columns:
            if self._primary == (column.name,):
                column.primary()
        if not any(column.is_primary for column in columns):
            raise InvalidBlueprint(f"'{self._model}' has no primary key: table.big_increments('id').")
        return columns

    def _integer(self, name: str, field_class: type[AnyField], *, auto_increment: bool, unsigned: bool) -> Column:
        if auto_increment:
            # Those that Django adds to a model without a primary key of its own.
            implicit = {"auto_created": True, "verbose_name": "ID"} if name == "id" else {}
            return self._column(name, AUTO[field_class], primary_key=True, serialize=False, **implicit)
        column = self._column(name, field_class)
        return column.unsigned() if unsigned else column

    def _column(self, name: str, field_class: type[AnyField], **arguments: Any) -> Column:
        return self._add(Column(name, field_class, **arguments))

    def _change(self, what: str, operation: Operation) -> None:
        self._add(_Change(what=what, online=operation, plain=operation))

    def _drop_constraint(self, what: str, name: str) -> None:
        online, plain = RemoveConstraintOnline(self._model, name), RemoveConstraint(self._model, name)
        self._add(_Change(what=what, online=online, plain=plain))

    def _add(self, entry: Entry) -> Entry:
        self._entries.append(entry)
        return entry

    def _name(self, columns: Sequence[str], kind: str) -> str:
        return f"{self._model}_{'_'.join(columns)}_{SUFFIXES[kind]}".lower()

    def _index_name(self, columns: Sequence[str], name: str | None) -> str:
        found = name or self._name(columns, "index")
        if len(found) > Index.max_name_length:
            raise InvalidBlueprint(
                f"The index '{found}' has a name of {len(found)} characters, and Django takes {Index.max_name_length}. "
                "Give it a shorter one."
            )
        return found


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def require_model(name: object) -> None:
    """Raise InvalidBlueprint for what is the name of a table rather than that of a model."""
    require_name(name, "model")
    if not str(name)[0].isupper():
        raise InvalidBlueprint(
            f"'{name}' is to be the name of a model, as models.py has it, such as 'Invoice'. The name of its table is "
            f"Django's, or is given: Schema.create('Invoice', ..., db_table='{name}')."
        )
