"""Ask what a partial run has left, and bring its tenant to one end of the step by a run of its own."""

from collections.abc import Callable
from functools import partial

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from migrations_api.exceptions import InvalidOptions, InvalidTransition, OutcomeUnknown, RunActive
from migrations_api.executor import End, Failure, Outcome, failure_of, signals
from migrations_api.executor.applied import TenantRecorder
from migrations_api.executor.diagnosis import Diagnosis, Journal, diagnosis, examine
from migrations_api.executor.lock import tenant_lock
from migrations_api.executor.repair import place_of, repair, require_possible, tell_receivers
from migrations_api.executor.verification import faults
from migrations_api.models import Action, MigrationRun, RepairWay, RequestedVia
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.progress import AttemptLost
from migrations_api.orchestrator.recorder import Recorder, journal_of, session_name
from migrations_api.orchestrator.requests import get_tenant, keep, lease_of
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Applied, Step
from migrations_api.states import RunState, StepState
from tenants.binding import tenant_as_default
from tenants.conf import load_conf
from tenants.driver_errors import translated
from tenants.exceptions import ServiceError, TenantNotFound
from tenants.sessions import tenant_session
from tenants.watch import OwnSession


def diagnosis_of(run: MigrationRun) -> Diagnosis:
    """What is there, what is missing, and the ways out; reads the tenant and changes nothing.

    Raises InvalidTransition for a run that needs no repair, and why the tenant cannot be read.
    """
    tenant = get_tenant(run.tenant_id)
    journal = _journal(run)
    with tenant_session(tenant, application_name="tenant-migrations diagnose", writable=False) as connection:
        return diagnosis(examine(connection, tenant, source_for(tenant.isolation), journal))


def request_repair(run: MigrationRun, way: str, *, reason: str, by: str, via: str) -> MigrationRun:
    """A pending run that goes that way. Whether it can is read under the tenant's lock, when it is carried out.

    Raises InvalidTransition for a run that needs no repair, InvalidOptions for a mark without a reason, and RunActive.
    """
    _journal(run)
    if way == RepairWay.MARK and not reason:
        raise InvalidOptions("To mark a tenant as repaired by hand takes a reason.")
    tenant = get_tenant(run.tenant_id)
    if via == RequestedVia.COMMAND:
        settle_abandoned([tenant.tenant_id])
    with transaction.atomic():
        if not keep([tenant]):
            raise TenantNotFound(tenant.tenant_id)
        if active := MigrationRun.objects.active().filter(tenant=tenant).first():
            raise RunActive(tenant.tenant_id, active.pk)
        return MigrationRun.objects.create(
            tenant=tenant,
            action=Action.REPAIR,
            repair_of=run,
            repair_way=way,
            repair_reason=reason,
            requested_by=by,
            requested_via=via,
            lease_expires_at=lease_of(via),
        )


def carry_out(run: MigrationRun, recorder: Recorder) -> Outcome:
    """Do it under the tenant's lock; an operation that fails leaves the tenant partial, and the journal goes on.

    Raises RepairImpossible, TenantLocked and what tenant_session() raises, with nothing changed.
    """
    tenant, broken = run.tenant, run.repair_of
    if broken is None:
        raise InvalidTransition(f"Run {run.pk} repairs nothing.")
    journal, source = _journal(broken), source_for(tenant.isolation)
    with (
        tenant_session(tenant, application_name=session_name(run)) as connection,
        tenant_lock(
            connection,
            database=connection.settings_dict["NAME"],
            schema=tenant.schema_name,
            wait=load_conf().lock_wait,
        ),
    ):
        rows = TenantRecorder(connection, tenant.schema_name)
        with translated():
            before = rows.applied_keys()
        if run.repair_way == RepairWay.MARK:
            return Outcome(end=End.SUCCEEDED, before=before, after=before)
        half = examine(connection, tenant, source, journal)
        require_possible(half, run.repair_way)
        step = _step(journal, undoing=run.repair_way == RepairWay.UNDO)
        signals.register_receivers()
        signals.clear_caches()
        with tenant_as_default(tenant, connection):
            operation, statements = place_of(half, run.repair_way)
            recorder.repairing(step, before, operation=operation, statements=statements)
            going = partial(repair, connection, tenant, half, run.repair_way, tell=partial(_tell, recorder, step))
            failure = _failure_in(going, str(step))
            after, invalid = _read(connection, run)
            if failure is None and invalid:
                message = f"Invalid indexes are left: {', '.join(sorted(invalid))}."
                failure = Failure(code="invalid_index", error_class="", message=message)
            if failure is not None:
                return Outcome(end=End.PARTIAL, before=before, after=after, failure=failure)
            recorder.repaired(step)
            failure = _failure_in(partial(tell_receivers, tenant, source, after), "")
        signals.clear_caches()
        return Outcome(end=End.FAILED if failure else End.SUCCEEDED, before=before, after=after, failure=failure)


def _failure_in(act: Callable[[], None], step: str) -> Failure | None:
    try:
        act()
    except AttemptLost:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a migration's operations are any code
        return failure_of(error, step=step, transient_allowed=False)
    return None


def _read(connection: BaseDatabaseWrapper, run: MigrationRun) -> tuple[Applied, frozenset[str]]:
    """What is applied now, and which indexes are invalid; raises OutcomeUnknown when the session was lost."""
    schema = run.tenant.schema_name
    try:
        with translated():
            found = faults(OwnSession(connection), schema)
            return TenantRecorder(connection, schema).applied_keys(), found.invalid_indexes
    except ServiceError as lost:
        raise OutcomeUnknown("The session was lost in the repair, and what became of it cannot be read yet.") from lost


def _tell(recorder: Recorder, step: Step, operation: int, statements: int) -> None:
    recorder.journal(step, operation=operation, statements=statements)


def _journal(run: MigrationRun) -> Journal:
    """Where the run's step stopped; raises InvalidTransition."""
    if run.state != RunState.PARTIAL:
        raise InvalidTransition(f"Run {run.pk} is {run.state}; only one that is partial needs a repair.")
    later = MigrationRun.objects.filter(tenant=run.tenant_id, pk__gt=run.pk, applied_after__isnull=False)
    if newer := later.order_by("-pk").first():
        raise InvalidTransition(f"Run {newer.pk} has changed tenant '{run.tenant_id}' since; look at that one.")
    step = run.steps.filter(state__in=[StepState.RUNNING, StepState.FAILED]).first() or run.steps.last()
    if step is None:
        raise InvalidTransition(f"Run {run.pk} has no step that could be repaired.")
    return journal_of(step)


def _step(journal: Journal, *, undoing: bool) -> Step:
    app_label, name = journal.key
    return Step(app_label=app_label, name=name, backwards=journal.backwards != undoing, atomic=False)
