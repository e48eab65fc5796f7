"""One pass of Django's `migrate` over a tenant, and what it has come to."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.models.signals import post_migrate, pre_migrate
from psycopg2 import errorcodes

from migrations_api.exceptions import OutcomeUnknown
from migrations_api.executor import signals
from migrations_api.executor.applied import TenantRecorder
from migrations_api.executor.diagnosis import Journal, has_left_nothing
from migrations_api.executor.failures import failure_of
from migrations_api.executor.lock import blocker, tenant_lock
from migrations_api.executor.migrator import TenantMigrator
from migrations_api.executor.model_rows import forget_model_rows
from migrations_api.executor.outcome import End, Failure, Observer, Options, Outcome, StepResult, StopRequested
from migrations_api.executor.rehearsal import Rehearsal
from migrations_api.executor.script import Script
from migrations_api.executor.syncdb import sync_apps
from migrations_api.executor.verification import Faults, absent_tables, faults, left_behind, tables_of
from migrations_api.plan import Applied, MigrationSource, Plan, Planner, Step, Undo, is_recorded
from tenants.app_sets import tenant_apps
from tenants.binding import control_plane
from tenants.conf import load_conf
from tenants.driver_errors import sqlstate, translated
from tenants.exceptions import ServiceError
from tenants.models import Tenant
from tenants.sessions import tenant_session
from tenants.watch import OwnSession, Reader, Watch


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a tenant is brought to its target. `has_types`: nothing is to be done for content types and permissions.

    They were seen to when the tenant was last migrated, and the plan needs no others. `is_empty`: nothing is in it yet.
    """

    rehearsal: Rehearsal
    plan: Plan
    script: Script | None
    has_types: bool
    is_empty: bool


class MigratePass:
    """One pass of `migrate` over a tenant that is `default`."""

    def __init__(
        self,
        tenant: Tenant,
        connection: DatabaseWrapper,
        course: Course,
        *,
        source: MigrationSource,
        options: Options,
        observer: Observer,
        watch: Watch | None,
    ) -> None:
        self.tenant = tenant
        self.connection = connection
        self.watch = watch
        self.rehearsal = course.rehearsal
        self.script = course.script
        self.has_types = course.has_types
        self.is_empty = course.is_empty
        self.plan = course.plan
        self.source = source
        self.options = options
        self.configs = tenant_apps(self.tenant.isolation)
        # None while nothing has been begun that could leave any.
        self.faults_before: Faults | None = None
        self.others = ExitStack()
        self.other: DatabaseWrapper | None = None
        self.migrator = TenantMigrator(
            connection,
            self.plan,
            schema=self.tenant.schema_name,
            role=self.tenant.role_name,
            observer=observer,
            other_session=self._other_session,
        )
        self.tables: frozenset[str] = frozenset()
        # None where nobody has looked at the end.
        self.after: Applied | None = None
        self.synced: tuple[str, ...] = ()

    def run(self) -> Outcome:
        signals.register_receivers()
        with self.others, self.connection.execute_wrapper(self.rehearsal.listen):
            return self._run()

    def _run(self) -> Outcome:
        signals.clear_caches()
        try:
            self._migrate()
        except StopRequested:
            failure = Failure(code="canceled", error_class="", message="Stopped before the next step, as asked.")
            return self._outcome(End.CANCELED, failure)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a migration is any code; whatever it raises is its result
            return self._failed(error)
        finally:
            signals.clear_caches()
        try:
            return self._verified()
        except ServiceError as error:
            # What was applied is told of, though the session was lost before it could be looked at.
            return self._failed(error)

    def _migrate(self) -> None:
        if self.script is not None:
            self._say(self.script)
            return
        with signals.own_types(self.connection):
            self._carry_out(self.rehearsal)
            if self.plan.then is not None:
                self.migrator.loader = self.plan.then.loader
                self._carry_out(Rehearsal(self.source, self.plan.then))

    def _carry_out(self, rehearsal: Rehearsal) -> None:
        """The sequence of Django's `migrate`, signals included."""
        migrations = list(rehearsal.plan.migrations)
        if not (self._is_plain and rehearsal.leaves_no_faults):
            self._look_before()
        with rehearsal.asking() as state_apps:
            signals.send(pre_migrate, configs=self.configs, state_apps=state_apps, migrations=migrations)
        try:
            plain = self._is_plain and not rehearsal.is_altered()
            if plain and rehearsal.is_over:
                self._follow(rehearsal)
                return
            self._look_before()
            with self.migrator.rehearsing(rehearsal) if plain else nullcontext():
                self._migrate_as_django(rehearsal)
        finally:
            rehearsal.restore()

    @property
    def _is_plain(self) -> bool:
        return self.options.is_plain and not self.plan.backwards

    def _say(self, script: Script) -> None:
        self.after = self.migrator.say(script)
        self.tables = script.tables
        if self.has_types:
            return
        if script.types is None:
            self.rehearsal.tell_receivers(has_types=False)
        elif not script.types.are_in(self._reader, self.tenant.schema_name):
            script.types.make(self.connection)

    def _follow(self, rehearsal: Rehearsal) -> None:
        self.migrator.follow(rehearsal, on_departure=self._look_before)
        self.tables = rehearsal.tables(self.connection)
        has_types = rehearsal.see_to_types(self.connection, self._reader, self.tenant.schema_name)
        rehearsal.tell_receivers(has_types=has_types)
        rehearsal.conclude(self.connection)

    def _migrate_as_django(self, rehearsal: Rehearsal) -> None:
        plan, migrations = rehearsal.plan, list(rehearsal.plan.migrations)
        if self.options.run_syncdb:
            unmigrated = [config for config in self.configs if config.label in plan.unmigrated_apps]
            self.synced = sync_apps(self.connection, [c for c in unmigrated if self._is_target(c.label)])
        state = self.migrator.migrate(
            list(plan.nodes),
            plan=migrations,
            state=rehearsal.before.clone(),
            fake=self.options.fake,
            fake_initial=self.options.fake_initial,
        )
        if plan.left is not None:
            # Django takes a plan that undoes to go down one line of the graph, and the state after it from its end.
            state = Planner(self.source.loader(plan.left)).project_state()
            if isinstance(plan.target, Undo) and plan.target.marks is not None:
                forget_model_rows(rehearsal.before, state, plan.target.marks)
        if not self.options.fake:
            self.tables = frozenset(tables_of(plan, state, self.connection))
        signals.send(post_migrate, configs=self.configs, state_apps=signals.final_apps(state), migrations=migrations)

    def _is_target(self, app_label: str) -> bool:
        return self.plan.target.app_label in {None, app_label}

    def _verified(self) -> Outcome:
        """Success only if the catalog agrees: each step recorded, its tables there, no index left invalid."""
        with translated():
            broken, absent = self._left_behind()
            after = self._applied_at_end() if self.after is None else self.after
        if broken.invalid_indexes:
            failure = Failure(code="invalid_index", error_class="", message=_invalid_message(broken.invalid_indexes))
            return self._outcome(End.PARTIAL, failure, after=after)
        if absent:
            message = f"Recorded, but the tables are not there: {', '.join(absent)}."
            return self._outcome(
                End.PARTIAL, Failure(code="missing_table", error_class="", message=message), after=after
            )
        last = {(step.app_label, step.name): step for step in self.plan.steps}
        missing = [str(step) for key, step in last.items() if (key in after) == step.backwards]
        if missing:
            failure = Failure(code="not_recorded", error_class="", message=f"Not recorded: {', '.join(missing)}.")
            return self._outcome(End.PARTIAL, failure, after=after)
        return self._outcome(End.SUCCEEDED, None, after=after, unvalidated=broken.unvalidated)

    def _left_behind(self) -> tuple[Faults, list[str]]:
        """Faults that were not there before this run, and tables of it that are not there."""
        schema = self.tenant.schema_name
        if self.faults_before is None:
            return Faults(), absent_tables(self._reader, schema, self.tables)
        found, absent = left_behind(self._reader, schema, self.tables)
        return found.since(self.faults_before), absent

    def _applied_at_end(self) -> Applied:
        if self.plan.applied or self.plan.steps:
            return self.migrator.recorder.applied_keys(is_there=True)
        return self.migrator.recorder.applied_keys()

    @property
    def _reader(self) -> Reader:
        return self.watch or OwnSession(self.connection)

    def _look_before(self) -> None:
        if self.faults_before is None and self.is_empty:
            self.faults_before = Faults()
        if self.faults_before is None:
            with translated():
                self.faults_before = faults(self._reader, self.tenant.schema_name)

    def _faults(self, reader: Reader) -> Faults:
        """Those that were not there before this run."""
        if self.faults_before is None:
            return Faults()
        return faults(reader, self.tenant.schema_name).since(self.faults_before)

    def _failed(self, error: BaseException) -> Outcome:
        """Tell a clean boundary from a tenant that stands between two; raises OutcomeUnknown when it cannot."""
        step = self.migrator.step
        try:
            with self._reading() as connection, translated():
                after = TenantRecorder(connection, self.tenant.schema_name).applied_keys()
                broken = self._faults(OwnSession(connection)).invalid_indexes
                half_done = step is not None and not step.atomic and not self._has_left_nothing(connection, step)
                in_vain = sqlstate(error) == errorcodes.LOCK_NOT_AVAILABLE
                holder = blocker(connection, self.tenant.schema_name) if in_vain else ""
        except ServiceError as lost:
            where = f"in {step}" if step else "between two steps"
            raise OutcomeUnknown(
                f"The session was lost {where}, and what became of it cannot be read yet: {lost.message}"
            ) from error
        if step is not None and is_recorded((step.app_label, step.name), after, self.source) != step.backwards:
            # The reply to COMMIT was lost, but not the COMMIT.
            half_done = False
            self.migrator.results.append(StepResult(step=step, faked=False, seconds=0.0))
        partial = half_done or bool(broken)
        # One that is not atomic is never begun again by itself, even if it seems to have done nothing.
        again = not partial and (step is None or step.atomic)
        failure = failure_of(error, step=str(step) if step else "", transient_allowed=again)
        if holder:
            failure = replace(failure, message=f"{failure.message}: {holder}.")
        if broken:
            failure = replace(failure, message=f"{_invalid_message(broken)} {failure.message}")
        return self._outcome(End.PARTIAL if partial else End.FAILED, failure, after=after)

    def _has_left_nothing(self, connection: DatabaseWrapper, step: Step) -> bool:
        if not self.migrator.journal.statements:
            return True
        operation, statements = self.migrator.journal.place
        key = (step.app_label, step.name)
        first = self.migrator.journal.first or 0
        journal = Journal(key=key, backwards=step.backwards, operation=operation, statements=statements, first=first)
        return has_left_nothing(connection, self.tenant, self.source, journal)

    @contextmanager
    def _reading(self) -> Iterator[DatabaseWrapper]:
        """A new session where the old one is gone: after a lost COMMIT only the tenant knows.

        Under the lock, since the server may not have noticed yet that the old session's client is gone.
        """
        raw = self.connection.connection
        if raw is not None and not raw.closed and self.connection.is_usable():
            yield self.connection
            return
        with (
            control_plane(),
            tenant_session(self.tenant, application_name="tenant-migrations settle", writable=False) as connection,
        ):
            database = connection.settings_dict["NAME"]
            with tenant_lock(connection, database=database, schema=self.tenant.schema_name, wait=load_conf().lock_wait):
                yield connection

    @contextmanager
    def _other_session(self) -> Iterator[DatabaseWrapper]:
        """A second session with the tenant's database; one of the tenant alone is opened when it is first needed."""
        if self.watch is not None:
            yield self.watch.connection
            return
        if self.other is None:
            with control_plane():
                session = tenant_session(self.tenant, application_name="tenant-migrations watch", writable=False)
                self.other = self.others.enter_context(session)
        yield self.other

    def _applied_now(self) -> Applied:
        with self._reading() as connection, translated():
            return TenantRecorder(connection, self.tenant.schema_name).applied_keys()

    def _outcome(
        self,
        end: End,
        failure: Failure | None,
        *,
        after: Applied | None = None,
        unvalidated: frozenset[str] = frozenset(),
    ) -> Outcome:
        return Outcome(
            end=end,
            before=self.plan.applied,
            after=self._applied_now() if after is None else after,
            results=tuple(self.migrator.results),
            synced=self.synced,
            failure=failure,
            unvalidated=tuple(sorted(unvalidated)),
        )


def _invalid_message(indexes: frozenset[str]) -> str:
    return f"The run left invalid indexes: {', '.join(sorted(indexes))}. Drop them and build them again."
