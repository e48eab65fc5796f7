"""The statements of a migration as one message, where nothing about a tenant could change them.

Two tenants have said them word for word, and what wrote them was Django alone: from its own operations on models with
its own fields, without having asked the tenant's catalog anything, and without a default that is computed anew.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db.migrations import operations
from django.db.migrations.migration import Migration
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ModelState, ProjectState

from migrations_api.executor.model_types import ModelTypes
from migrations_api.plan import Key

# Those that change one model; what is said of others, such as keys that point to it, may be anybody's code.
OF_ONE_MODEL: Final = frozenset(
    {
        operations.AddConstraint,
        operations.AddField,
        operations.AddIndex,
        operations.AlterField,
        operations.AlterModelManagers,
        operations.AlterModelOptions,
        operations.CreateModel,
        operations.DeleteModel,
        operations.RemoveConstraint,
        operations.RemoveField,
        operations.RemoveIndex,
    }
)
Statement = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Script:
    """All that a plan comes to in a tenant that stands where it begins; plain data, for other processes too.

    `messages` are of its migrations, in their order; `tables` those that it makes; `types` what Django keeps of the
    models, None where only its own receivers know.
    """

    messages: Mapping[Key, str]
    tables: frozenset[str]
    types: ModelTypes | None


def script_of(migration: Migration, states: Sequence[ProjectState], noted: Sequence[Statement]) -> str | None:
    """`states` are those before, between and after the operations; None where each tenant must be asked itself."""
    if any(parameters != "None" or sql.lstrip()[:6].upper() == "SELECT" for sql, parameters in noted):
        return None
    for place, operation in enumerate(migration.operations):
        if not _is_plain(operation, migration.app_label, states[place : place + 2]):
            return None
    return ";\n".join(sql for sql, _ in noted)


def _is_plain(operation: Operation, app_label: str, around: Sequence[ProjectState]) -> bool:
    if type(operation) not in OF_ONE_MODEL:
        return False
    if isinstance(operation, operations.AddField | operations.AlterField) and not _is_settled(operation.field):
        return False
    name = getattr(operation, "model_name_lower", None) or operation.name_lower  # type: ignore[attr-defined]
    models = [state.models[app_label, name] for state in around if (app_label, name) in state.models]
    return all(type(part).__module__.split(".")[0] == "django" for model in models for part in _parts(model))


def computes(operation: Operation) -> bool:
    """Whether it gives rows that are there already a value that is computed anew for each tenant."""
    return isinstance(operation, operations.AddField | operations.AlterField) and _is_computed(operation.field)


def _is_computed(field: Any) -> bool:
    is_now = getattr(field, "auto_now", False) or getattr(field, "auto_now_add", False)
    return is_now or (callable(field.default) and field.has_default())


def _is_settled(field: Any) -> bool:
    """Whether rows that are there already get the same value in every tenant, and no other model has to follow."""
    return not (_is_computed(field) or field.primary_key or field.unique)


def _parts(model: ModelState) -> Iterator[Any]:
    yield from model.fields.values()
    yield from model.options.get("indexes", ())
    yield from model.options.get("constraints", ())
