"""Django's MigrationExecutor over a plan that is made already, with each migration recorded in its own transaction."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, Final

from django.db import Error as DatabaseError
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.migration import Migration
from django.db.migrations.state import ProjectState

from migrations_api.executor.applied import TenantRecorder
from migrations_api.executor.outcome import Observer, StepResult, StopRequested
from migrations_api.plan import Plan, Planner, Step
from tenants.driver_errors import sqlstate
from tenants.exceptions import ServerError

_RECORD_PARAMETERS: Final = signature(MigrationExecutor.record_migration).parameters


class TenantMigrator(Planner):
    """Applies and unapplies migrations on one tenant, and tells an observer of each step.

    Where Django records a migration that leaves deferred SQL only after its transaction (ticket #29721), here the
    deferred SQL runs and the row is written before the transaction ends, so that neither is ever there alone. A
    migration with atomic = False has no such transaction; `statements` counts what it has done on its own.
    """

    def __init__(self, connection: BaseDatabaseWrapper, plan: Plan, *, schema: str, observer: Observer) -> None:
        self.connection = connection
        super().__init__(plan.loader)
        self.recorder: TenantRecorder = TenantRecorder(connection, schema)
        self.progress_callback = None
        self.step: Step | None = None
        self.statements = 0
        self.results: list[StepResult] = []
        self._schema = schema
        self._observer = observer
        self._steps = {(step.app_label, step.name): step for step in plan.steps}

    def apply_migration(
        self, state: ProjectState, migration: Migration, fake: bool = False, fake_initial: bool = False
    ) -> ProjectState:
        with self._step(migration) as finish:
            if not fake and fake_initial:
                fake, state = self.detect_soft_applied(state, migration)
            if fake:
                self._record(migration)
            else:
                with self.connection.schema_editor(atomic=migration.atomic) as editor:
                    state = migration.apply(state, editor)
                    self._settle(editor, migration, self._record)
            finish(fake)
        return state

    def detect_soft_applied(
        self, project_state: ProjectState | None, migration: Migration
    ) -> tuple[bool, ProjectState]:
        """As Django's, but tables that are only visible behind the tenant's own do not count."""
        with transaction.atomic(using=self.connection.alias), self.connection.cursor() as cursor:
            cursor.execute("SELECT set_config('search_path', quote_ident(%s), true)", [self._schema])
            return super().detect_soft_applied(project_state, migration)

    def unapply_migration(self, state: ProjectState, migration: Migration, fake: bool = False) -> ProjectState:
        with self._step(migration) as finish:
            if fake:
                self._forget(migration)
            else:
                with self.connection.schema_editor(atomic=migration.atomic) as editor:
                    state = migration.unapply(state, editor)
                    self._settle(editor, migration, self._forget)
            finish(fake)
        return state

    def _settle(
        self, editor: BaseDatabaseSchemaEditor, migration: Migration, record: Callable[[Migration], None]
    ) -> None:
        deferred, editor.deferred_sql = editor.deferred_sql, []
        for statement in deferred:
            editor.execute(statement)
        self._require_own_schema(migration)
        record(migration)

    def _record(self, migration: Migration) -> None:
        # Newer Djangos record a squashed migration beside what it replaces, 5.2 at the end of the run.
        if "app_label" in _RECORD_PARAMETERS:
            self.record_migration(migration.app_label, migration.name)
        else:
            self.record_migration(migration)  # type: ignore[call-arg, arg-type]  # the signature of 5.2

    def _forget(self, migration: Migration) -> None:
        for app_label, name in migration.replaces:
            self.recorder.record_unapplied(app_label, name)
        self.recorder.record_unapplied(migration.app_label, migration.name)

    def _require_own_schema(self, migration: Migration) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT current_schema()")
            found = cursor.fetchone()[0]
        if found != self._schema:
            raise ServerError(
                f"{migration.app_label}.{migration.name} changed the session's search_path: what follows "
                f"would go to schema '{found}' instead of '{self._schema}'. Take SET search_path out of it."
            )

    @contextmanager
    def _step(self, migration: Migration) -> Iterator[Callable[[bool], None]]:
        step = self._steps[migration.app_label, migration.name]
        if self._observer.should_stop():
            raise StopRequested
        self._observer.step_started(step)
        self.step, self.statements = step, 0
        started = time.monotonic()

        def finish(faked: bool) -> None:
            self.step = None
            result = StepResult(step=step, faked=faked, seconds=time.monotonic() - started)
            self.results.append(result)
            self._observer.step_finished(result)

        with self.connection.execute_wrapper(self._count):
            yield finish

    def _count(self, execute: Callable[..., Any], sql: Any, params: Sequence[Any], many: bool, context: Any) -> Any:
        changes = not str(sql).lstrip().upper().startswith("SELECT")
        try:
            return execute(sql, params, many, context)
        except DatabaseError as error:
            # What the server refused is not done; without its answer nobody knows.
            changes = changes and not sqlstate(error)
            raise
        finally:
            self.statements += changes
