"""Carry out one plan on one tenant: connect, check, lock, plan again, apply, verify."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from django.db import transaction
from django.db.backends.postgresql.base import DatabaseWrapper

from migrations_api.exceptions import ConfirmationRequired, MissingRecord, PlanChanged
from migrations_api.executor.applied import TABLE, TenantRecorder
from migrations_api.executor.entry import Entry, Found
from migrations_api.executor.lock import tenant_lock
from migrations_api.executor.migrate_pass import Course, MigratePass
from migrations_api.executor.model_rows import model_marks
from migrations_api.executor.outcome import End, Observer, Options, Outcome
from migrations_api.executor.rehearsal import server_version
from migrations_api.executor.repertoire import may_be_passed_on, rehearsal_of
from migrations_api.executor.verification import first_tables, present_tables
from migrations_api.plan import MigrationSource, Plan, Target, fingerprint, prunable, require_reversible
from tenants.binding import tenant_as_default
from tenants.conf import load_conf
from tenants.driver_errors import translated
from tenants.models import Tenant
from tenants.preflight import HomeFacts
from tenants.relay import relay_of
from tenants.sessions import tenant_session
from tenants.watch import OwnSession, Reader, Watch, watch_of


def execute(
    tenant: Tenant,
    source: MigrationSource,
    target: Target,
    options: Options,
    *,
    observer: Observer,
    application_name: str,
    plan_digest: str = "",
    left_before: str | None = None,
    home: HomeFacts | None = None,
    waits: bool = True,
) -> Outcome:
    """Migrate `tenant` to `target` and return how that ended; a migration that fails is an outcome, not an exception.

    With `plan_digest`, only a plan of that content is carried out. `left_before` is the fingerprint of what the last
    run has left, if it has succeeded: content types and permissions are taken to be there where the tenant still stands
    there. `home` is what the catalog has said of the tenant just now. Without `waits`, whoever has its lock is not
    waited for.

    Raises, with nothing changed, PlanError, PlanChanged, TenantLocked, and what tenant_session() raises; and
    OutcomeUnknown when the session was lost in the middle and the tenant cannot be read.
    """
    work = _Work(
        tenant=tenant,
        source=source,
        target=target,
        options=options,
        observer=observer,
        plan_digest=plan_digest,
        left_before=left_before,
        lock_wait=load_conf().lock_wait if waits else 0.0,
        watch=watch_of(tenant),
    )
    relay = relay_of(tenant) if options.is_plain and may_be_passed_on(source) else None
    if relay is not None:
        entry = Entry(tenant.schema_name)
        with relay.session(
            tenant, application_name=application_name, watch=work.watch, inquiry=entry, home=home
        ) as connection:
            outcome = work.carry_out_in_passing(connection, entry)
            relay.wear(steps=len(outcome.results) if outcome else 0)
        if outcome is not None:
            return outcome
    entry = Entry(tenant.schema_name)
    with tenant_session(
        tenant, application_name=application_name, watch=work.watch, inquiry=entry, home=home
    ) as connection:
        return work.carry_out(connection, entry)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What execute() was asked for."""

    tenant: Tenant
    source: MigrationSource
    target: Target
    options: Options
    observer: Observer
    plan_digest: str
    left_before: str | None
    lock_wait: float
    watch: Watch | None

    def carry_out_in_passing(self, connection: DatabaseWrapper, entry: Entry) -> Outcome | None:
        """In a session that is passed on; None, with nothing done, where the tenant needs one of its own."""
        # The session lets go of the lock as it is made new for the next tenant.
        with nullcontext() if entry.is_locked else self._locked(connection, entry):
            course = self._course(connection, entry.found or self._found(connection))
            if course.script is None and not course.rehearsal.may_be_passed_on:
                return None
            return self._execute(connection, course)

    def carry_out(self, connection: DatabaseWrapper, entry: Entry) -> Outcome:
        with self._locked(connection, entry):
            return self._execute(connection, self._course(connection, entry.found or self._found(connection)))

    def _locked(self, connection: DatabaseWrapper, entry: Entry) -> AbstractContextManager[None]:
        database, schema = connection.settings_dict["NAME"], self.tenant.schema_name
        return tenant_lock(connection, database=database, schema=schema, wait=self.lock_wait, is_held=entry.is_locked)

    def _execute(self, connection: DatabaseWrapper, course: Course) -> Outcome:
        self._require_allowed(connection, course)
        self.observer.planned(course.plan)
        with tenant_as_default(self.tenant, connection):
            if self.options.prune:
                return _prune(self.tenant, connection, course.plan, self.source)
            return MigratePass(
                self.tenant,
                connection,
                course,
                source=self.source,
                options=self.options,
                observer=self.observer,
                watch=self.watch,
            ).run()

    def reader(self, connection: DatabaseWrapper) -> Reader:
        return self.watch or OwnSession(connection)

    def _found(self, connection: DatabaseWrapper) -> Found:
        reader, schema = self.reader(connection), self.tenant.schema_name
        with translated():
            has_record = bool(present_tables(reader, schema, [TABLE]))
            applied = TenantRecorder(connection, schema).applied_keys(is_there=has_record)
            return Found(applied=applied, marks=model_marks(reader, schema))

    def _course(self, connection: DatabaseWrapper, found: Found) -> Course:
        rehearsal = rehearsal_of(self.source, found.applied, self.target)
        return Course(
            rehearsal=rehearsal,
            plan=replace(rehearsal.plan, marks=found.marks),
            script=rehearsal.whole_script(server_version(connection)) if self.options.is_plain else None,
            has_types=rehearsal.keeps_types and self.left_before == fingerprint(found.applied),
            is_empty=found.is_empty,
        )

    def _require_allowed(self, connection: DatabaseWrapper, course: Course) -> None:
        plan = course.plan
        if self.plan_digest and plan.digest != self.plan_digest:
            raise PlanChanged(self.tenant.tenant_id, plan.digest)
        if plan.backwards and not self.options.allow_backwards:
            raise ConfirmationRequired
        if not self.options.fake:
            require_reversible(plan)
        if not (self.options.fake or self.options.fake_initial or plan.applied or course.is_empty):
            self._require_nothing_there(connection, plan)

    def _require_nothing_there(self, connection: DatabaseWrapper, plan: Plan) -> None:
        """Raise MissingRecord for a tenant that has the tables of its apps and nothing recorded."""
        with translated():
            tables = first_tables(plan, connection)
            there = present_tables(self.reader(connection), self.tenant.schema_name, tables)
        if there:
            raise MissingRecord(self.tenant.tenant_id, sorted(there))


def _prune(tenant: Tenant, connection: DatabaseWrapper, plan: Plan, source: MigrationSource) -> Outcome:
    stale = prunable(plan, source, plan.target.app_label or "")
    recorder = TenantRecorder(connection, tenant.schema_name)
    with translated():
        with transaction.atomic(using=connection.alias):
            for app_label, name in stale:
                recorder.record_unapplied(app_label, name)
        after = recorder.applied_keys()
    return Outcome(
        end=End.SUCCEEDED, before=plan.applied, after=after, pruned=tuple(f"{app}.{name}" for app, name in stale)
    )
