"""What an operator should know of a step before it runs, read from its operations alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from django.contrib.postgres.operations import (
    AddConstraintNotValid,
    AddIndexConcurrently,
    RemoveIndexConcurrently,
    ValidateConstraint,
)
from django.db.migrations import operations as ops
from django.db.migrations.operations.base import Operation

from migrations_api.schema.operations import (
    AddConstraintOnline,
    AlterFieldOnline,
    CompleteField,
    RemoveConstraintOnline,
)


class RiskKind(StrEnum):
    """`destructive` loses data; `blocking` holds a lock that queries wait for while rows are read or rewritten;
    `opaque` is code or SQL whose effect cannot be read off."""

    DESTRUCTIVE = "destructive"
    BLOCKING = "blocking"
    OPAQUE = "opaque"


@dataclass(frozen=True, kw_only=True)
class Risk:
    kind: RiskKind
    operation: str
    reason: str


_FORWARDS: dict[type[Operation], tuple[RiskKind, str]] = {
    ops.DeleteModel: (RiskKind.DESTRUCTIVE, "The table is dropped with its rows."),
    ops.RemoveField: (RiskKind.DESTRUCTIVE, "The column is dropped with its values."),
    AlterFieldOnline: (RiskKind.BLOCKING, "Only if its type changes: the table may then be rewritten under a lock."),
    ops.AlterField: (RiskKind.BLOCKING, "The table may be read or rewritten under a lock that excludes everybody."),
    ops.AddIndex: (RiskKind.BLOCKING, "Writers wait while the index is built; AddIndexConcurrently lets them through."),
    ops.AddConstraint: (RiskKind.BLOCKING, "The table is read under a lock; AddConstraintNotValid avoids that."),
    ops.AlterUniqueTogether: (RiskKind.BLOCKING, "Writers wait while the unique index is built."),
    ops.AlterIndexTogether: (RiskKind.BLOCKING, "Writers wait while the index is built."),
    ops.RunPython: (RiskKind.OPAQUE, "Python code runs against the tenant's rows."),
    ops.RunSQL: (RiskKind.OPAQUE, "The SQL is run as it stands."),
}
_BACKWARDS: dict[type[Operation], tuple[RiskKind, str]] = {
    ops.CreateModel: (RiskKind.DESTRUCTIVE, "Undoing it drops the table with its rows."),
    ops.AddField: (RiskKind.DESTRUCTIVE, "Undoing it drops the column with its values."),
    AlterFieldOnline: _FORWARDS[AlterFieldOnline],
    ops.AlterField: _FORWARDS[ops.AlterField],
    ops.RemoveIndex: _FORWARDS[ops.AddIndex],
    ops.RemoveConstraint: _FORWARDS[ops.AddConstraint],
    ops.RunPython: _FORWARDS[ops.RunPython],
    ops.RunSQL: _FORWARDS[ops.RunSQL],
}
_ONLINE = (
    AddConstraintNotValid,
    AddConstraintOnline,
    AddIndexConcurrently,
    CompleteField,
    RemoveConstraintOnline,
    RemoveIndexConcurrently,
    ValidateConstraint,
)
# Operations whose effect is known by what they are.
_KNOWN = ("django.", "migrations_api.schema.")


def risks_of(operations: Sequence[Operation], *, backwards: bool) -> Iterator[Risk]:
    table = _BACKWARDS if backwards else _FORWARDS
    for operation in operations:
        if isinstance(operation, ops.SeparateDatabaseAndState):
            yield from risks_of(operation.database_operations, backwards=backwards)
        elif not isinstance(operation, _ONLINE):
            for kind, (risk, reason) in table.items():
                if isinstance(operation, kind):
                    yield Risk(kind=risk, operation=operation.describe(), reason=reason)
                    break
            else:
                if not type(operation).__module__.startswith(_KNOWN):
                    reason = "An operation of the project's own."
                    yield Risk(kind=RiskKind.OPAQUE, operation=operation.describe(), reason=reason)
