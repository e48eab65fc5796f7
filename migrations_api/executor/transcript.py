"""The SQL of a plan, written down while it is carried out on a scratch database that stands where the tenant stands."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.migrations.migration import Migration
from django.db.migrations.operations import RunPython, RunSQL, SeparateDatabaseAndState
from django.db.migrations.operations.base import Operation
from psycopg2 import sql

from migrations_api.exceptions import CannotPretend
from migrations_api.executor.applied import TABLE, TenantRecorder
from migrations_api.executor.execution import execute
from migrations_api.executor.guard import MADE_SQL
from migrations_api.executor.journal import READS
from migrations_api.executor.outcome import End, Observer, Options, StepResult
from migrations_api.executor.structure import differences
from migrations_api.plan import (
    Applied,
    MigrationSource,
    Plan,
    Standing,
    Step,
    Target,
    load_source,
)
from tenants.conf import load_conf
from tenants.driver_errors import describe, translated
from tenants.models import Tenant
from tenants.sessions import tenant_session

SAVEPOINTS: Final = re.compile(r"\s*(SAVEPOINT|RELEASE|ROLLBACK)\b", re.IGNORECASE)
APPLICATION: Final = "tenant-migrations pretend"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement as the server gets it, or Python code: what that does with the tenant's rows nobody can tell."""

    text: str
    opaque: bool = False


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """The statements of each step of a plan, in order; a step is known by its name and whether it goes backwards.

    `differences` are what the tenant's structure has and its migrations do not make, or the other way round: where
    there are any, names in the SQL may be others than those that the tenant has.
    """

    statements: Mapping[tuple[str, bool], Sequence[Statement]]
    differences: tuple[str, ...] = ()

    def of(self, step: Step) -> Sequence[Statement]:
        return self.statements.get((str(step), step.backwards), ())


def transcribe(tenant: Tenant, shadow: Tenant, source: MigrationSource, plan: Plan) -> Transcript:
    """Bring the empty `shadow` to where the tenant stands, carry out the plan there, and return what was executed.

    The tenant is only read. Raises CannotPretend where the shadow does not bear it out, and what tenant_session() does.
    """
    stand(shadow, source, plan.applied)
    different = differences(tenant, shadow)
    scribe = Scribe()
    _carry_out(shadow, scribe.heard(source), plan.target, scribe, digest=plan.digest)
    return Transcript(statements=scribe.statements, differences=different)


def stand(shadow: Tenant, source: MigrationSource, applied: Applied) -> None:
    """Bring an empty place to that set, as the tenant was brought there."""
    if source.outside_keys:
        _stand_outside(shadow, source)
    _carry_out(shadow, source, Standing(applied=applied), _Silent())
    if not applied:
        return
    with tenant_session(shadow, application_name=APPLICATION) as connection, translated():
        recorder = TenantRecorder(connection, shadow.schema_name)
        recorder.ensure_schema()
        with connection.cursor() as cursor:
            table = sql.Identifier(shadow.schema_name, TABLE)
            cursor.execute(sql.SQL("DELETE FROM {}").format(table))
        for app_label, name in sorted(applied):
            recorder.record_applied(app_label, name)


def _stand_outside(shadow: Tenant, source: MigrationSource) -> None:
    """The tables of other apps that the tenant's refer to, in the schema behind its own."""
    labels = frozenset(app_label for app_label, _ in source.outside_keys)
    behind = copy(shadow)
    behind.schema_name = load_conf().extra_search_path[0]
    _carry_out(behind, load_source(labels, outside_allowed=True), Target(), _Silent())


def _carry_out(
    shadow: Tenant, source: MigrationSource, target: Target, observer: Observer, *, digest: str = ""
) -> None:
    outcome = execute(
        shadow,
        source,
        target,
        Options(),
        observer=observer,
        application_name=APPLICATION,
        plan_digest=digest,
    )
    if outcome.end is not End.SUCCEEDED:
        failure = outcome.failure
        where = f" in {failure.step}" if failure and failure.step else ""
        raise CannotPretend(f"The scratch database does not bear it out{where}: {failure.message if failure else ''}")


def _is_told(operation: Operation) -> bool:
    return "database_forwards" in vars(operation)


def _code_name(operation: Operation, act: Callable[..., None]) -> str:
    code = getattr(operation, "reverse_code" if act.__name__ == "database_backwards" else "code", None)
    return str(getattr(code, "__name__", ""))


class _Silent:
    """An observer that nothing is told to anybody by."""

    def planned(self, plan: Plan) -> None: ...

    def step_started(self, step: Step) -> None: ...

    def step_finished(self, result: StepResult) -> None: ...

    def should_stop(self) -> bool:
        return False

    def journal(self, step: Step, *, operation: int, statements: int) -> None: ...


class Scribe(_Silent):
    """Writes down the statements of each step; of Python code, only that it runs."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self.statements: dict[tuple[str, bool], list[Statement]] = {}
        self._writing: list[Statement] | None = None
        self._verbatim = False

    def heard(self, source: MigrationSource) -> MigrationSource:
        """The same migrations, with operations that tell when Python code runs and when SQL of their author's."""
        return replace(source, migrations={key: self._told(each) for key, each in source.migrations.items()})

    def planned(self, plan: Plan) -> None:
        self._plan = plan

    def step_started(self, step: Step) -> None:
        wrappers = connections[DEFAULT_DB_ALIAS].execute_wrappers
        if self._write not in wrappers:
            wrappers.append(self._write)
        self._tell_of_injected(step)
        self._writing = self.statements[str(step), step.backwards] = []

    def step_finished(self, result: StepResult) -> None:
        self._writing = None

    def _tell_of_injected(self, step: Step) -> None:
        """Receivers of pre_migrate add operations, as that of content types does after a model was renamed."""
        parts = [self._plan, self._plan.then] if self._plan else []
        for migration, backwards in (each for part in parts if part for each in part.migrations):
            if (migration.app_label, migration.name, backwards) == (step.app_label, step.name, step.backwards):
                operations: Any = migration.operations
                operations[:] = [
                    self._telling(each) if isinstance(each, RunPython) and not _is_told(each) else each
                    for each in operations
                ]

    def _told(self, migration: Migration) -> Migration:
        told: Any = copy(migration)
        told.operations = [self._telling(each) for each in migration.operations]
        return told  # type: ignore[no-any-return]

    def _telling(self, operation: Operation) -> Operation:
        if isinstance(operation, SeparateDatabaseAndState):
            told: Any = copy(operation)
            told.database_operations = [self._telling(each) for each in operation.database_operations]
            return told  # type: ignore[no-any-return]
        around = {RunPython: self._opaque, RunSQL: self._as_written}
        found = next((how for kind, how in around.items() if isinstance(operation, kind)), None)
        if found is None:
            return operation
        told = copy(operation)
        for name in ("database_forwards", "database_backwards"):
            setattr(told, name, self._carrying_out(operation, getattr(operation, name), found))
        return told  # type: ignore[no-any-return]

    def _carrying_out(self, operation: Operation, act: Callable[..., None], around: Any) -> Callable[..., None]:
        def carry_out(*arguments: Any) -> None:
            with around(f"{operation.describe()}: {_code_name(operation, act)}"):
                act(*arguments)

        return carry_out

    @contextmanager
    def _opaque(self, name: str) -> Iterator[None]:
        writing, self._writing = self._writing, None
        try:
            # Without rows it may not find what it relies on.
            with transaction.atomic() if connections[DEFAULT_DB_ALIAS].in_atomic_block else nullcontext():
                yield
            note = ""
        except Exception as error:  # noqa: BLE001 - a migration's operations are any code
            note = f" (without rows, it ends with {describe(error)})"
        finally:
            self._writing = writing
        if writing is not None:
            writing.append(Statement(text=f"{name}{note}", opaque=True))

    @contextmanager
    def _as_written(self, name: str) -> Iterator[None]:
        self._verbatim = True
        try:
            yield
        finally:
            self._verbatim = False

    def _write(self, execute: Callable[..., Any], statement: Any, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001
        # The service's own statements are composed ones, but for the question what a transaction has made.
        if self._writing is not None and isinstance(statement, str) and statement != MADE_SQL:
            own = not self._verbatim and (READS.match(statement) or SAVEPOINTS.match(statement))
            if not own:
                composed = context["connection"].ops.compose_sql(statement, params) if params else statement
                self._writing.append(Statement(text=composed))
        return execute(statement, params, many, context)
