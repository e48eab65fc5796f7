"""Tables as a migration creates, changes, renames and drops them."""

from collections.abc import Callable
from typing import Any, NoReturn

from django.db.migrations.operations import DeleteModel, RenameModel
from django.db.migrations.operations.base import Operation

from migrations_api.schema.blueprint import Blueprint, require_model
from migrations_api.schema.columns import require_name
from migrations_api.schema.exceptions import InvalidBlueprint, MissingStar

Write = Callable[[Blueprint], object]


class Operations(list[Operation]):
    """Operations that a star puts into a migration: `operations = [*Schema.table(...)]`.

    A flat list is what everything that reads migrations counts and names: `migrate --plan`, `sqlmigrate`, squashing,
    and whoever keeps account of how far a migration without a transaction has come. One object that carries out
    several would be one line there, half of which may be done.
    """

    def __getattr__(self, name: str) -> NoReturn:
        raise MissingStar(
            f"A list of operations has no '{name}'. Put a star before it: operations = [*Schema.table(...)]."
        )


class Schema:
    """The tables of a migration's app, named by their models; each of these makes a list of Django's operations.

    With `online`, PostgreSQL takes the form that keeps nobody waiting, for which the migration has to say
    `atomic = False`; without it, all is done by Django's own operations.
    """

    @staticmethod
    def create(model: str, write: Write, **options: Any) -> Operations:
        """`options` are those of the model's Meta, such as db_table. Raises InvalidBlueprint."""
        require_model(model)
        if wrong := {"indexes", "constraints"} & options.keys():
            raise InvalidBlueprint(f"Write {' and '.join(sorted(wrong))} of '{model}' into its blueprint.")
        return Operations([_written(model, write).creation(options)])

    @staticmethod
    def table(model: str, write: Write, *, online: bool = True) -> Operations:
        """Raises InvalidBlueprint."""
        require_name(model, "model")
        return Operations(_written(model, write).changes(online=online))

    @staticmethod
    def rename(old: str, new: str) -> Operations:
        require_model(new)
        return Operations([RenameModel(old, new)])

    @staticmethod
    def drop(model: str) -> Operations:
        return Operations([DeleteModel(model)])

    @staticmethod
    def drop_if_exists(model: str) -> NoReturn:
        Blueprint(model).drop_if_exists()
        raise AssertionError


def _written(model: str, write: Write) -> Blueprint:
    blueprint = Blueprint(model)
    write(blueprint)
    return blueprint
