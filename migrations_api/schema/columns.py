"""A column as it is written, and the Django fields that it becomes."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import (
    CASCADE,
    DO_NOTHING,
    PROTECT,
    RESTRICT,
    SET_DEFAULT,
    SET_NULL,
    AutoField,
    BigAutoField,
    BigIntegerField,
    Field,
    ForeignKey,
    IntegerField,
    OneToOneField,
    PositiveBigIntegerField,
    PositiveIntegerField,
    PositiveSmallIntegerField,
    SmallAutoField,
    SmallIntegerField,
    Value,
)
from django.db.models.fields import NOT_PROVIDED
from django.db.models.functions import Now

from migrations_api.schema.exceptions import InvalidBlueprint

# Django's fields are generic to the type checker alone.
if TYPE_CHECKING:
    AnyField: TypeAlias = Field[Any, Any]
else:
    AnyField = Field

UNSIGNED: Final[dict[type[AnyField], type[AnyField]]] = {
    IntegerField: PositiveIntegerField,
    BigIntegerField: PositiveBigIntegerField,
    SmallIntegerField: PositiveSmallIntegerField,
}
SIGNED: Final = {unsigned: signed for signed, unsigned in UNSIGNED.items()}
AUTO: Final[dict[type[AnyField], type[AnyField]]] = {
    IntegerField: AutoField,
    BigIntegerField: BigAutoField,
    SmallIntegerField: SmallAutoField,
}
ON_DELETE: Final[dict[str, Any]] = {
    "cascade": CASCADE,
    "no action": DO_NOTHING,
    "protect": PROTECT,
    "restrict": RESTRICT,
    "set default": SET_DEFAULT,
    "set null": SET_NULL,
}


class Column:
    """A column of a table, whose modifiers can be called one after the other, in any order."""

    def __init__(self, name: str, field_class: type[AnyField], **arguments: Any) -> None:
        require_name(name, "column")
        self.name = name
        self.is_changed = False
        self.is_plain = False
        self._class = field_class
        self._arguments: dict[str, Any] = arguments
        # Each with its name, from .unique("name") and .index("name").
        self.named: list[tuple[str, str]] = []

    def nullable(self) -> Self:
        return self.options(null=True)

    def default(self, value: Any) -> Self:
        """The default that the database itself knows; a value, or an expression such as Now()."""
        if callable(value) and not hasattr(value, "resolve_expression"):
            raise InvalidBlueprint(
                f"The default of column '{self.name}' is a function of Python, which the database cannot call. "
                "Give a value or an expression; or say .options(default=...), which only Django knows."
            )
        return self.options(db_default=value)

    def use_current(self) -> Self:
        return self.default(Now())

    def unsigned(self) -> Self:
        if self._class in UNSIGNED.values():
            return self
        if self._class not in UNSIGNED:
            raise InvalidBlueprint(
                f"Column '{self.name}' is no integer, and only those have an unsigned form. Add a check instead: "
                f'table.check(Q({self.name}__gte=0), name="...").'
            )
        self._class = UNSIGNED[self._class]
        return self

    def comment(self, text: str) -> Self:
        return self.options(db_comment=text)

    def collate(self, collation: str) -> Self:
        return self.options(db_collation=collation)

    def primary(self) -> Self:
        return self.options(primary_key=True, serialize=False)

    def unique(self, name: str | None = None) -> Self:
        """With a name, a UniqueConstraint of the model; without, `unique=True` of the field."""
        return self._named("unique", name) if name else self.options(unique=True)

    def index(self, name: str | None = None) -> Self:
        """With a name, an Index of the model; without, `db_index=True` of the field."""
        return self._named("index", name) if name else self.options(db_index=True)

    def change(self) -> Self:
        """The column is there already, and is to be as it is written here, in full."""
        self.is_changed = True
        return self

    def plain(self) -> Self:
        """By Django's own operation alone, which may keep writers waiting."""
        self.is_plain = True
        return self

    def options(self, **arguments: Any) -> Self:
        """What else the model says of the field, such as blank, choices or help_text."""
        self._arguments.update(arguments)
        return self

    def after(self, column: str) -> Self:
        raise InvalidBlueprint(
            f"Column '{self.name}' cannot be put after '{column}': PostgreSQL adds columns at the end."
        )

    def charset(self, charset: str) -> Self:
        raise InvalidBlueprint(
            f"Column '{self.name}' cannot have a charset of its own: a PostgreSQL database has one encoding."
        )

    @property
    def is_primary(self) -> bool:
        return bool(self._arguments.get("primary_key"))

    def field(self) -> AnyField:
        return self._class(**self._arguments)

    def bare(self) -> AnyField | None:
        """What can be added in no time; None where that is the field itself."""
        arguments = {key: value for key, value in self._arguments.items() if key not in {"unique", "db_index"}}
        if _is_computed(arguments.get("db_default")):
            del arguments["db_default"]
            arguments["null"] = True
        field_class = SIGNED.get(self._class, self._class)
        if field_class is self._class and arguments == self._arguments:
            return None
        return field_class(**arguments)

    def require_values(self) -> None:
        """Raise InvalidBlueprint where a table that has rows could not take the column."""
        field = self.field()
        if field.null or field.has_db_default() or field.many_to_many or field.has_default():
            return
        if not field.is_relation and BaseDatabaseSchemaEditor._effective_default(field) is not None:  # type: ignore[attr-defined]
            return
        raise InvalidBlueprint(
            f"Column '{self.name}' is added to a table that may have rows, which would have no value for it. "
            "Say .nullable() or .default(...)."
        )

    def _named(self, kind: str, name: str) -> Self:
        self.named.append((kind, name))
        return self


class GivenColumn(Column):
    """A column whose field was given as it is."""

    def __init__(self, name: str, field: AnyField) -> None:
        super().__init__(name, type(field))
        self._field = field
        *_, self._arguments = field.deconstruct()

    def field(self) -> AnyField:
        return self._field

    def bare(self) -> AnyField | None:
        if self._field.is_relation:
            return None
        # By its attributes: some fields have an index, or are unique, without being told.
        bare: Any = self._field.clone()
        bare._unique = bare.db_index = False
        if _is_computed(bare.db_default):
            bare.null, bare.db_default = True, NOT_PROVIDED
        _, path, arguments, options = bare.deconstruct()
        if signed := SIGNED.get(type(bare)):
            return signed(**options)
        same = (path, arguments, options) == self._field.deconstruct()[1:]
        return None if same else type(bare)(*arguments, **options)

    def options(self, **arguments: Any) -> Self:
        raise InvalidBlueprint(f"The field of column '{self.name}' was given; say {', '.join(arguments)} there.")


class ForeignColumn(Column):
    """A foreign key: the column `<name>_id`, and the relation of the model's field `<name>`."""

    def __init__(self, name: str, *, keeps_constraint: bool = True) -> None:
        super().__init__(name.removesuffix("_id") or name, ForeignKey)
        self._column = name
        self._to = ""
        self._to_field = ""
        if not keeps_constraint:
            self.options(db_constraint=False)

    def references(self, target: str) -> Self:
        """A model, as in "orders.Order"; or a column of the one that on() names."""
        if "." in target:
            return self.on(target)
        self._to_field = target
        return self

    def on(self, model: str) -> Self:
        label, _, name = model.partition(".")
        if not label.isidentifier() or not name.isidentifier():
            raise InvalidBlueprint(
                f"The foreign key '{self._column}' points to '{model}'; name app and model, such as 'orders.Order'."
            )
        self._to = model
        return self

    def on_delete(self, action: str | Callable[..., Any]) -> Self:
        """What Django does when the row that is pointed to is deleted; the database itself refuses that."""
        found = ON_DELETE.get(action.lower()) if isinstance(action, str) else action
        if found is None:
            raise InvalidBlueprint(f"on_delete({action!r}) is none of: {_listed(ON_DELETE)}.")
        return self.options(on_delete=found)

    def on_update(self, action: str) -> Self:
        if action.lower() != "no action":
            raise InvalidBlueprint(
                f"The foreign key '{self._column}' cannot {action} on update: Django's have no such rule, as primary "
                "keys do not change. Leave it out."
            )
        return self

    def field(self) -> AnyField:
        arguments = self._complete()
        if arguments.pop("unique", False):
            return OneToOneField(**arguments)
        return ForeignKey(**arguments)

    def bare(self) -> AnyField | None:
        arguments = self._complete()
        arguments.pop("unique", None)
        bare = {**arguments, "db_index": False, "db_constraint": False}
        if _is_computed(bare.get("db_default")):
            del bare["db_default"]
            bare["null"] = True
        return None if bare == self._complete() else ForeignKey(**bare)

    def _complete(self) -> dict[str, Any]:
        if not self._to:
            raise InvalidBlueprint(f"The foreign key '{self._column}' points nowhere: .references('orders.Order').")
        if "on_delete" not in self._arguments:
            raise InvalidBlueprint(
                f"The foreign key '{self._column}' does not say what happens when the row it points to is deleted: "
                f".on_delete(...) with one of {_listed(ON_DELETE)}."
            )
        if self._arguments["on_delete"] is SET_NULL and not self._arguments.get("null"):
            raise InvalidBlueprint(
                f"The foreign key '{self._column}' is set null on delete, and so must be .nullable()."
            )
        target = {"to_field": self._to_field} if self._to_field not in {"", "id"} else {}
        return {"to": self._to, **target, **self._arguments}


def _is_computed(default: Any) -> bool:
    """Whether PostgreSQL may have to compute the default for each row that is there, and so rewrite the table."""
    return hasattr(default, "resolve_expression") and not isinstance(default, Value | Now)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)


def require_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidBlueprint(f"{name!r} is no name of a {what}: letters, digits and underscores.")
