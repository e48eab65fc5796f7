"""Django's MigrationExecutor over a plan that is made already, with each migration recorded in its own transaction."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from typing import Any, Final, Protocol

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.migration import Migration
from django.db.migrations.state import ProjectState

from migrations_api.executor.applied import TenantRecorder, applied_of
from migrations_api.executor.guard import (
    STANDING,
    Standing,
    locked_things,
    made_things,
    named_things,
    outside,
    standing,
    standing_of,
)
from migrations_api.executor.journal import JournalKeeper, flush_deferred
from migrations_api.executor.lending import isolated
from migrations_api.executor.outcome import Observer, StepResult, StopRequested
from migrations_api.executor.rehearsal import Rehearsal, server_version
from migrations_api.executor.script import Script, computes
from migrations_api.executor.tape import Around, Departure, Tape
from migrations_api.plan import Applied, Plan, Planner, Step
from tenants.conf import load_conf
from tenants.exceptions import OutsideTenant, ServerError

logger = logging.getLogger(__name__)

_RECORD_PARAMETERS: Final = signature(MigrationExecutor.record_migration).parameters


class _Finish(Protocol):
    def __call__(self, *, faked: bool) -> None: ...


class TenantMigrator(Planner):
    """Applies and unapplies migrations on one tenant, and tells an observer of each step.

    Where Django records a migration that leaves deferred SQL only after its transaction (ticket #29721), here the
    deferred SQL runs and the row is written before the transaction ends, so that neither is ever there alone. A
    migration with atomic = False has no such transaction; its deferred SQL runs with the operation that leaves it, and
    `journal` keeps what has been done of it.
    """

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        plan: Plan,
        *,
        schema: str,
        role: str,
        observer: Observer,
        other_session: Callable[[], AbstractContextManager[BaseDatabaseWrapper]],
    ) -> None:
        self.connection = connection
        # What a transaction drops, only others still see.
        self._other_session = other_session
        super().__init__(plan.loader)
        self._source = plan.loader.source
        self.recorder: TenantRecorder = TenantRecorder(connection, schema)
        self.progress_callback = None
        self.step: Step | None = None
        self.journal = JournalKeeper(connection, tell=self._tell)
        self.results: list[StepResult] = []
        self._applied = plan.applied
        self._rehearsal: Rehearsal | None = None
        self._schema = schema
        self._role = role
        self._observer = observer
        self._steps = {(step.app_label, step.name, step.backwards): step for step in plan.steps}

    def follow(self, rehearsal: Rehearsal, *, on_departure: Callable[[], None]) -> None:
        """Apply the plan's migrations, all forwards, on states of the models that tenants share.

        `on_departure` is called before one that is not what it was for other tenants is begun again.
        """
        if rehearsal.order and not self._applied:
            self.recorder.ensure_schema()
        for migration in rehearsal.order:
            with self._step(migration, backwards=False) as finish:
                if not migration.atomic:
                    with rehearsal.chain.around_apart(migration) as around:
                        self._apply(ProjectState(), migration, around=around)
                elif not self._follows(migration, rehearsal):
                    on_departure()
                    self._apply(isolated(rehearsal.chain.states(migration)[0]), migration)
                finish(faked=False)
        if self.loader.replacements:
            self.check_replacements()

    def say(self, script: Script) -> Applied | None:
        """Send what is known word for word; returns what is applied then, None where that was not seen on the way."""
        if script.messages and not self._applied:
            self.recorder.ensure_schema()
        may_record_more = bool(self.loader.replacements)
        last, seen = next(reversed([*script.messages]), None), list[tuple[Any, ...]]()
        for key, message in script.messages.items():
            migration = self.loader.graph.nodes[key]
            with self._step(migration, backwards=False) as finish:
                looks = key == last and not may_record_more
                with self.recorder.sent_with(message, asking=self.recorder.looking() if looks else None) as seen:
                    self._record(migration)
                finish(faked=False)
        if may_record_more:
            self.check_replacements()
        return applied_of(seen[0][0]) if seen else None

    def _follows(self, migration: Migration, rehearsal: Rehearsal) -> bool:
        """Whether it was carried out as for other tenants; behind a departure, nothing is known of them any more."""
        if not rehearsal.knows(migration):
            return False
        try:
            self._follow(migration, rehearsal)
        except Departure:
            logger.info("%s.%s is not what it was for other tenants", migration.app_label, migration.name)
            rehearsal.forget()
            return False
        return True

    def _follow(self, migration: Migration, rehearsal: Rehearsal) -> None:
        version = server_version(self.connection)
        if (script := rehearsal.script(migration, version)) is None:
            self._play(migration, rehearsal)
            rehearsal.agreed(migration, version)
            return
        with self.recorder.sent_with(script):
            self._record(migration)

    def _play(self, migration: Migration, rehearsal: Rehearsal) -> None:
        noted = rehearsal.noted[migration.app_label, migration.name]
        tape = Tape(noted, values_vary=any(computes(operation) for operation in migration.operations))
        with (
            self.connection.execute_wrapper(tape.wrap),
            self.connection.schema_editor(atomic=migration.atomic) as editor,
        ):
            tape.taped(migration, rehearsal.chain.around(migration)).apply(ProjectState(), editor)
            with tape.running():
                flush_deferred(editor)
            if not tape.is_played_out():
                raise Departure
            if rehearsal.is_harmless(migration):
                self._record(migration)
            else:
                self._settle(migration)

    @contextmanager
    def rehearsing(self, rehearsal: Rehearsal) -> Iterator[None]:
        """Note what the migrations' operations send to the server, and keep the models that they are given."""
        self._rehearsal = rehearsal
        try:
            with rehearsal.first_time():
                yield
        finally:
            self._rehearsal = None

    def apply_migration(
        self, state: ProjectState, migration: Migration, fake: bool = False, fake_initial: bool = False
    ) -> ProjectState:
        with self._step(migration, backwards=False) as finish:
            if not fake and fake_initial:
                fake, state = self.detect_soft_applied(state, migration)
            if fake:
                self._record(migration)
            else:
                state = self._apply(state, migration)
            finish(faked=fake)
        return state

    def _apply(
        self, state: ProjectState, migration: Migration, *, around: Sequence[Around] | None = None
    ) -> ProjectState:
        tape = Tape()
        with (
            self.connection.execute_wrapper(tape.wrap),
            self.connection.schema_editor(atomic=migration.atomic) as editor,
        ):
            told = self._journaled(migration, tape)
            if around is not None:
                told = tape.taped(told, around)
            if self._rehearsal is not None:
                told = self._rehearsal.chain.keeping(told)
            state = told.apply(state, editor)
            with tape.running():
                flush_deferred(editor)
            self._settle(migration)
        if self._rehearsal is not None:
            self._rehearsal.chain.passed(migration, state)
            if migration.atomic:
                self._rehearsal.noted[migration.app_label, migration.name] = tape.noted
        return state

    def detect_soft_applied(
        self, project_state: ProjectState | None, migration: Migration
    ) -> tuple[bool, ProjectState]:
        """As Django's, but tables that are only visible behind the tenant's own do not count."""
        with transaction.atomic(using=self.connection.alias), self.connection.cursor() as cursor:
            cursor.execute("SELECT set_config('search_path', quote_ident(%s), true)", [self._schema])
            return super().detect_soft_applied(project_state, migration)

    def unapply_migration(self, state: ProjectState, migration: Migration, fake: bool = False) -> ProjectState:
        with self._step(migration, backwards=True) as finish:
            fake = fake or (self.step is not None and self.step.fake)
            if fake:
                self._forget(migration)
            else:
                with self.connection.schema_editor(atomic=migration.atomic) as editor:
                    state = self._journaled(migration).unapply(state, editor)
                    flush_deferred(editor)
                    self._require_own(migration, standing(self.connection))
                    self._forget(migration)
            finish(faked=fake)
        return state

    def _settle(self, migration: Migration) -> None:
        """Record what was applied, unless it has reached others: where that can be taken back, in one message."""
        # A role that it has changed to may not record anything.
        if not migration.atomic or self._role:
            self._require_own(migration, standing(self.connection))
            self._record(migration)
            return
        with self.recorder.sent_with(asking=STANDING) as found:
            self._record(migration)
        self._require_own(migration, standing_of(found))

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

    def _require_own(self, migration: Migration, found: Standing) -> None:
        """Before the commit, so that what is refused has not happened."""
        if self._role and found.user != self._role:
            raise ServerError(
                f"{migration.app_label}.{migration.name} changed the session's role: what follows would belong to "
                f"'{found.user}' instead of '{self._role}'. Take SET ROLE out of it."
            )
        if found.path[:1] != (self._schema,):
            raise ServerError(
                f"{migration.app_label}.{migration.name} changed the session's search_path: what follows "
                f"would go to schema '{', '.join(found.path[:1])}' instead of '{self._schema}'. Take SET search_path "
                "out of it."
            )
        if migration.atomic:
            self._require_nothing_outside(migration, found)

    def _require_nothing_outside(self, migration: Migration, found: Standing) -> None:
        own = {self._schema, *load_conf().extra_search_path}
        things, dropped = set(found.things), found.dropped
        if not own.issuperset(found.path):
            # Then a name that is visible may be anybody's.
            things, dropped = locked_things(self.connection)
        if dropped:
            with self._other_session() as other:
                things |= named_things(other, dropped)
        if self.journal.has_unlocked:
            things |= made_things(self.connection)
        if strange := outside(things, own):
            raise OutsideTenant(
                f"{migration.app_label}.{migration.name} changes {', '.join(strange[:5])}, which is not the tenant's. "
                "It was rolled back."
            )

    @contextmanager
    def _step(self, migration: Migration, *, backwards: bool) -> Iterator[_Finish]:
        step = self._steps[migration.app_label, migration.name, backwards]
        if self._observer.should_stop():
            raise StopRequested
        self._observer.step_started(step)
        self.step = step
        self.journal = JournalKeeper(
            self.connection,
            tell=self._tell,
            is_kept=not step.atomic,
            before_commit=lambda: self._require_nothing_outside(migration, standing(self.connection)),
        )
        started = time.monotonic()

        def finish(*, faked: bool) -> None:
            self.step = None
            result = StepResult(step=step, faked=faked, seconds=time.monotonic() - started)
            self.results.append(result)
            self._observer.step_finished(result)

        with self.connection.execute_wrapper(self.journal.count):
            yield finish

    def _tell(self, operation: int, statements: int) -> None:
        # Operations that have sent nothing have left nothing, however many they are.
        if self.step is not None and not self.step.atomic and self.journal.has_begun:
            self._observer.journal(self.step, operation=operation, statements=statements)

    def _journaled(self, migration: Migration, tape: Tape | None = None) -> Migration:
        """The migration with operations that tell: without a transaction, only that says how far it has come.

        Those that a receiver of pre_migrate has added have no number of their own.
        """
        if migration.atomic:
            return migration if tape is None else tape.taped(migration)
        written = self._source.migrations[migration.app_label, migration.name].operations
        backwards = self.step is not None and self.step.backwards
        numbers = {id(each): len(written) - 1 - place if backwards else place for place, each in enumerate(written)}
        return self.journal.journaled(migration, [(numbers.get(id(each)), each) for each in migration.operations])
