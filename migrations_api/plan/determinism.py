"""Which steps of a plan may leave other rows in each tenant: what they do is code, and is not read off."""

from collections.abc import Collection, Iterator

from django.db import models
from django.db.migrations import operations as ops
from django.db.migrations.operations.base import Operation

from migrations_api.plan.planner import Plan, Step
from migrations_api.plan.risk import RiskKind
from migrations_api.plan.source import MigrationSource


def unnamed_code(plan: Plan, source: MigrationSource, named: Collection[str]) -> list[str]:
    """Steps of the plan that run code of the project's own and are not in `named`, by step or by app label.

    Those of Django's own apps write the same everywhere. Once such code has run, tables may have rows, and a field that
    is added with a computed default gives each row, and so each tenant, its own value: that counts as code, too.
    """
    found: list[str] = []
    may_have_rows = False
    for step in plan.steps:
        migration = source.migrations[step.app_label, step.name]
        if type(migration).__module__.startswith("django."):
            continue
        is_code = any(risk.kind is RiskKind.OPAQUE for risk in step.risks)
        may_have_rows = may_have_rows or is_code
        computes = may_have_rows and any(map(_computes, _flat(migration.operations)))
        if (is_code or computes) and not _is_named(step, named):
            found.append(str(step))
    return found


def _is_named(step: Step, named: Collection[str]) -> bool:
    return step.app_label in named or str(step) in named


def _flat(operations: Collection[Operation]) -> Iterator[Operation]:
    for operation in operations:
        if isinstance(operation, ops.SeparateDatabaseAndState):
            yield from _flat(operation.database_operations)
        else:
            yield operation


def _computes(operation: Operation) -> bool:
    if not isinstance(operation, ops.AddField | ops.AlterField):
        return False
    field = operation.field
    if getattr(field, "auto_now", False) or getattr(field, "auto_now_add", False):
        return True
    default, db_default = field.default, getattr(field, "db_default", models.NOT_PROVIDED)
    is_call = callable(default) and default not in {models.NOT_PROVIDED, dict, list, tuple, set, str}
    # A plain value is no expression that the server computes.
    return is_call or (hasattr(db_default, "resolve_expression") and not isinstance(db_default, models.Value))
