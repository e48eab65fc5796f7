"""Django's operations, carried out on PostgreSQL beside those who are using the table.

Each is a subclass of the operation that it stands for: the same arguments, the same state, and the same tables in the
end, so that the autodetector, the optimizer, squashing and the writer know what to do with it. On other databases it is
that operation. Those that are `restartable` can be carried out again after they were stopped at any statement.
"""

from collections.abc import Callable
from typing import Any

from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db.migrations.operations import (
    AddConstraint,
    AddField,
    AddIndex,
    AlterField,
    RemoveConstraint,
    RemoveField,
    RemoveIndex,
)
from django.db.migrations.state import ProjectState
from django.db.models import CheckConstraint, Model, UniqueConstraint
from django.db.models.constraints import BaseConstraint

from migrations_api.schema import online
from migrations_api.schema.exceptions import InvalidBlueprint


class AddFieldOnline(AddField):
    """AddField, which tries again when somebody has the table for long."""

    def database_forwards(self, app_label: str, schema_editor: Any, *states: ProjectState) -> None:
        _wholly(super().database_forwards, app_label, schema_editor, *states)

    def database_backwards(self, app_label: str, schema_editor: Any, *states: ProjectState) -> None:
        _wholly(super().database_backwards, app_label, schema_editor, *states)


class RemoveFieldOnline(RemoveField):
    """RemoveField, which tries again when somebody has the table for long."""

    def database_forwards(self, app_label: str, schema_editor: Any, *states: ProjectState) -> None:
        _wholly(super().database_forwards, app_label, schema_editor, *states)

    def database_backwards(self, app_label: str, schema_editor: Any, *states: ProjectState) -> None:
        _wholly(super().database_backwards, app_label, schema_editor, *states)


class AlterFieldOnline(AlterField):
    """AlterField, with indexes, foreign keys, checks and NOT NULL that keep nobody waiting.

    What cannot be had that way is done as AlterField does it: a change of the column's type may rewrite the table.
    """

    restartable = True
    is_new_column = False

    def describe(self) -> str:
        return f"Alter field {self.name} on {self.model_name} without blocking"

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        if not online.is_postgresql(schema_editor) or not self.preserve_default:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            before = from_state.apps.get_model(app_label, self.model_name)
            online.alter_field(
                schema_editor,
                before,
                before._meta.get_field(self.name),
                model._meta.get_field(self.name),
                what=self.describe(),
                is_new_column=self.is_new_column,
            )


class CompleteField(AlterFieldOnline):
    """The rest of a column that AddField has added bare: its index, constraints, default for rows that are there."""

    is_new_column = True

    def describe(self) -> str:
        return f"Complete field {self.name} on {self.model_name} without blocking"


def _model_online(operation: AddIndex | RemoveIndex, app_label: str, schema_editor: Any, state: ProjectState) -> Any:
    """The model whose index is to change, outside of a transaction; None where the database has no part of it."""
    online.require_no_transaction(schema_editor, operation.describe())
    model = state.apps.get_model(app_label, operation.model_name)
    return model if operation.allow_migrate_model(schema_editor.connection.alias, model) else None


class AddIndexOnline(AddIndexConcurrently):
    """AddIndexConcurrently, which first drops what an earlier attempt has left invalid."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        if not online.is_postgresql(schema_editor):
            AddIndex.database_forwards(self, app_label, schema_editor, from_state, to_state)
            return
        if model := _model_online(self, app_label, schema_editor, to_state):
            _build(schema_editor, model, self.index)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        if not online.is_postgresql(schema_editor):
            AddIndex.database_backwards(self, app_label, schema_editor, from_state, to_state)
            return
        if model := _model_online(self, app_label, schema_editor, from_state):
            _drop(schema_editor, model, self.index)


class RemoveIndexOnline(RemoveIndexConcurrently):
    """RemoveIndexConcurrently, which tries again what has to wait."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        if not online.is_postgresql(schema_editor):
            RemoveIndex.database_forwards(self, app_label, schema_editor, from_state, to_state)
            return
        if model := _model_online(self, app_label, schema_editor, from_state):
            _drop(schema_editor, model, self._index_of(app_label, from_state))

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        if not online.is_postgresql(schema_editor):
            RemoveIndex.database_backwards(self, app_label, schema_editor, from_state, to_state)
            return
        if model := _model_online(self, app_label, schema_editor, to_state):
            _build(schema_editor, model, self._index_of(app_label, to_state))

    def _index_of(self, app_label: str, state: ProjectState) -> Any:
        return state.models[app_label, self.model_name_lower].get_index_by_name(self.name)


class AddConstraintOnline(AddConstraint):
    """AddConstraint: a check is validated after it was added; of unique columns, the index is built before."""

    restartable = True

    def __init__(self, model_name: str, constraint: BaseConstraint) -> None:
        _require_known(constraint)
        super().__init__(model_name, constraint)

    def describe(self) -> str:
        return f"Create constraint {self.constraint.name} on model {self.model_name} without blocking"

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        if not online.is_postgresql(schema_editor):
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            _constrain(schema_editor, model, self.constraint, what=self.describe())

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        if not online.is_postgresql(schema_editor):
            super().database_backwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            _free(schema_editor, model, self.constraint)


class RemoveConstraintOnline(RemoveConstraint):
    """RemoveConstraint, which is undone as AddConstraintOnline does it."""

    restartable = True

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        if not online.is_postgresql(schema_editor):
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            _free(schema_editor, model, self._constraint_of(app_label, from_state))

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        constraint = self._constraint_of(app_label, to_state)
        if not online.is_postgresql(schema_editor) or not _is_known(constraint):
            super().database_backwards(app_label, schema_editor, from_state, to_state)
            return
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            _constrain(schema_editor, model, constraint, what=self.describe())

    def _constraint_of(self, app_label: str, state: ProjectState) -> Any:
        return state.models[app_label, self.model_name_lower].get_constraint_by_name(self.name)


def _wholly(act: Callable[..., None], app_label: str, editor: Any, *states: ProjectState) -> None:
    if online.is_postgresql(editor):
        online.wholly(editor, lambda: act(app_label, editor, *states))
    else:
        act(app_label, editor, *states)


def _build(editor: Any, model: type[Model], index: Any) -> None:
    online.build_index(editor, model, index.name, lambda: editor.add_index(model, index, concurrently=True))


def _drop(editor: Any, model: type[Model], index: Any) -> None:
    online.patiently(editor, lambda: editor.remove_index(model, index, concurrently=True))


def _constrain(editor: Any, model: type[Model], constraint: Any, *, what: str) -> None:
    online.require_no_transaction(editor, what)
    if isinstance(constraint, CheckConstraint):
        online.add_validated(editor, model, constraint.name, constraint.create_sql(model, editor))
        return
    fields: list[Any] = [model._meta.get_field(name) for name in constraint.fields]
    suffix = editor._deferrable_constraint_sql(constraint.deferrable)
    online.add_unique(editor, model, [field.column for field in fields], constraint.name, suffix=suffix)


def _free(editor: Any, model: type[Model], constraint: Any) -> None:
    """Without the constraint, or what adding it has left."""
    if _is_known(constraint):
        online.drop_constraint(editor, model, constraint.name)
        if isinstance(constraint, UniqueConstraint):
            online.drop_unattached_index(editor, model, constraint.name)
    else:
        online.patiently(editor, lambda: editor.remove_constraint(model, constraint))


def _is_known(constraint: BaseConstraint) -> bool:
    if isinstance(constraint, UniqueConstraint):
        given: Any = constraint
        special = given.condition, given.include, given.opclasses, given.expressions, given.nulls_distinct is not None
        return not any(special)
    return isinstance(constraint, CheckConstraint)


def _require_known(constraint: BaseConstraint) -> None:
    if not _is_known(constraint):
        raise InvalidBlueprint(
            f"Only a check, and a unique constraint of columns without a condition, can be added online; "
            f"'{constraint.name}' is another. Use migrations.AddConstraint."
        )
