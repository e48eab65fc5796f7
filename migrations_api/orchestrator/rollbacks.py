"""Ask what would be undone, and ask for it: of one tenant, or of all that a rollout has changed."""

from functools import partial

from migrations_api.exceptions import DependentMigrations, InvalidOptions, InvalidTransition, TenantPartial
from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.batches import (
    Batch,
    Choose,
    Found,
    batch_of_run,
    batches_of,
    held,
    last_batch,
    last_steps,
)
from migrations_api.orchestrator.fleet import how_to_repair, partial_runs, plan_for
from migrations_api.orchestrator.observations import fleet_plans_of
from migrations_api.orchestrator.previews import Preview, preview_of
from migrations_api.orchestrator.requests import Request, request_rollout, request_run
from migrations_api.orchestrator.selection import Selector, arrange
from migrations_api.orchestrator.sources import source_for
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.plan import Plan, plan_to, require_reversible
from migrations_api.states import ACTIVE_ROLLOUT_STATES
from tenants.models import Tenant


def chosen(tenant: Tenant, *, run_id: int | None = None, steps: int | None = None) -> Choose:
    """One run of the tenant, its newest so many steps, or else its last run that applied something."""
    if run_id is not None and steps is not None:
        raise InvalidOptions("Name a run or a number of steps, not both.")
    if steps is not None:
        return last_steps(steps)
    if run_id is None:
        return last_batch
    run = MigrationRun.objects.filter(pk=run_id, tenant=tenant).first()
    if run is None:
        raise InvalidOptions(f"Tenant '{tenant.tenant_id}' has no run {run_id}.")
    return batch_of_run(run)


def rollback_plan(tenant: Tenant, choose: Choose) -> Plan:
    """What a rollback would do now, read from the tenant; changes nothing.

    Raises TenantPartial, NothingToRollBack, CannotRollBack and why the tenant cannot be read.
    """
    if broken := partial_runs([tenant.pk]):
        raise TenantPartial(tenant.tenant_id, how_to_repair(broken[tenant.pk]))
    found = held([tenant])[tenant.tenant_id]
    try:
        return plan_for(tenant, choose(found).undo())
    except DependentMigrations as error:
        raise _with_runs(error, found) from error


def request_rollback(tenant: Tenant, choose: Choose, request: Request, *, expected_digest: str = "") -> MigrationRun:
    """A pending run that undoes what is chosen; whether it still can is seen under the tenant's lock.

    Raises what request_run() does, NothingToRollBack, and as far as the tenant's runs know, IrreversibleMigration and
    CannotRollBack.
    """
    undo = partial(choose_for, tenant, choose)
    return request_run(tenant, request, expected_digest=expected_digest, undo=undo)


def choose_for(tenant: Tenant, choose: Choose) -> Batch:
    found = held([tenant])[tenant.tenant_id]
    batch = choose(found)
    runs = MigrationRun.objects.filter(tenant=tenant, applied_after__isnull=False)
    newest = runs.select_related("applied_after").order_by("-pk").first()
    if newest is not None and newest.applied_after is not None:
        try:
            require_reversible(plan_to(source_for(tenant.isolation), newest.applied_after.keys, batch.undo()))
        except DependentMigrations as error:
            raise _with_runs(error, found) from error
    return batch


def _with_runs(error: DependentMigrations, found: Found) -> DependentMigrations:
    return DependentMigrations(error.keys, {key: found[key].run_id for key in error.keys if key in found})


def request_rollout_rollback(
    rollout: Rollout, request: Request, *, strategy: Strategy, confirmed: int | None = None
) -> Rollout:
    """A rollout that undoes, in each tenant that the given one has changed, just what it has applied there.

    What cannot be undone there fails in that tenant. Raises InvalidTransition while the given one goes on,
    NothingToRollBack, and what request_rollout() raises.
    """
    return request_rollout(
        _tenants_of(rollout),
        request,
        strategy=strategy,
        undoes=rollout,
        undo=partial(batches_of, rollout),
        confirmed=confirmed,
    )


def preview_rollout_rollback(rollout: Rollout, *, strategy: Strategy) -> Preview:
    """What request_rollout_rollback() would make of it now, from the tenants as they were last looked at."""
    tenants = _tenants_of(rollout)
    batches = batches_of(rollout, tenants)
    goals = {tenant_id: batch.undo() for tenant_id, batch in batches.items()}
    concerned = [tenant for tenant in tenants if tenant.pk in batches]
    return preview_of(
        arrange(concerned, strategy, shared_last=True),
        strategy=strategy,
        selector=Selector(),
        plan=fleet_plans_of([(tenant, goals[tenant.pk]) for tenant in concerned]),
    )


def _tenants_of(rollout: Rollout) -> list[Tenant]:
    rollout.refresh_from_db()
    if rollout.state in ACTIVE_ROLLOUT_STATES:
        raise InvalidTransition(f"Rollout {rollout.pk} is {rollout.state}; cancel it, or wait for its end.")
    return list(Tenant.objects.filter(pk__in=rollout.runs.order_by().values("tenant")))
