"""What a plan would execute in its tenant, shown without touching it."""

from threading import BoundedSemaphore
from typing import Final

from migrations_api.dispatch.apart import NoAnswer, ask_apart
from migrations_api.exceptions import CannotPretend, PretendedTooLong, TooManyPretended
from migrations_api.executor.transcript import Transcript, transcribe
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Applied, Plan, Target, plan_to, require_reversible
from tenants.conf import load_conf
from tenants.exceptions import ServiceError
from tenants.models import Tenant
from tenants.shadows import shadow_of

# Each is a process and a database; of the web server, and not of commands.
AT_ONCE: Final = 2
_places = BoundedSemaphore(AT_ONCE)


def pretend(tenant: Tenant, plan: Plan) -> Transcript:
    """In this process, in which nothing else may use `default` meanwhile.

    Raises IrreversibleMigration, CannotPretend, and PermissionDenied where no scratch database can be made.
    """
    require_reversible(plan)
    with shadow_of(tenant) as shadow:
        return transcribe(tenant, shadow, source_for(tenant.isolation), plan)


def pretend_apart(tenant: Tenant, plan: Plan) -> Transcript:
    """The same from a process that serves others, and bounded in time.

    Raises PretendedTooLong and TooManyPretended as well.
    """
    require_reversible(plan)
    if not _places.acquire(blocking=False):
        raise TooManyPretended
    seconds = load_conf().pretend_timeout
    try:
        # Made and dropped here: the other process may be killed.
        with shadow_of(tenant) as shadow:
            found = ask_apart(
                f"{__name__}.answer", (tenant, shadow, plan.applied, plan.target, plan.digest), seconds=seconds
            )
    except NoAnswer as error:
        raise PretendedTooLong(f"The SQL of the plan was not ready within {seconds:g} seconds.") from error
    finally:
        _places.release()
    if isinstance(found, Transcript):
        return found
    raise CannotPretend(found)


def answer(tenant: Tenant, shadow: Tenant, applied: Applied, target: Target, digest: str) -> Transcript | str:
    """In the other process: the transcript, or why there is none, which is simpler to send than an exception."""
    source = source_for(tenant.isolation)
    plan = plan_to(source, applied, target)
    if plan.digest != digest:
        return "The code of this service has changed since its start; it has to be started again."
    try:
        return transcribe(tenant, shadow, source, plan)
    except ServiceError as error:
        return error.message
