"""What a caller asks for becomes rows; nothing is carried out here."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from django.db import transaction
from django.utils import timezone

from migrations_api.exceptions import (
    ConfirmationRequired,
    InvalidOptions,
    PlanChanged,
    RunActive,
    TenantHeld,
    TenantPartial,
    TooManyRuns,
)
from migrations_api.executor import Options
from migrations_api.models import Action, MigrationRun, RequestedVia, Rollout, records
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.fleet import how_to_repair, partial_runs, plan_for
from migrations_api.orchestrator.selection import Arrangement, Selector, arrange, concerned_tenants
from migrations_api.orchestrator.sources import require_target
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.plan import Refresh, Reset, Target
from migrations_api.states import RunState
from tenants.conf import load_conf
from tenants.exceptions import TenantNotFound
from tenants.models import Tenant

if TYPE_CHECKING:
    from migrations_api.orchestrator.batches import Batch

DEFAULT_STRATEGY: Final = Strategy()
EVERYBODY: Final = Selector()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be done, and who asks for it."""

    target: Target = field(default_factory=Target)
    options: Options = field(default_factory=Options)
    action: str = Action.MIGRATE
    by: str = ""
    via: str = RequestedVia.COMMAND

    @property
    def goal(self) -> Target:
        """What each tenant is planned towards; of a rollback, what that is depends on the tenant."""
        return {Action.RESET: Reset(), Action.REFRESH: Refresh()}.get(Action(self.action), self.target)


def target_of(asked: MigrationRun | Rollout) -> Target:
    return Target(app_label=asked.app_label or None, migration_name=asked.migration_name or None)


def same_again(asked: MigrationRun | Rollout, *, by: str, via: str, allow_backwards: bool) -> Request:
    """The same action, target and options as that one's; `allow_backwards` can only take a right away."""
    options = Options(**asked.options)
    options = replace(options, allow_backwards=options.allow_backwards and allow_backwards)
    # What could not be repaired is repaired by another repair; this one only goes forwards.
    action = Action.MIGRATE if asked.action == Action.REPAIR else asked.action
    return Request(action=action, target=target_of(asked), options=options, by=by, via=via)


def get_tenant(tenant_id: str) -> Tenant:
    try:
        return Tenant.objects.get(pk=tenant_id)
    except (Tenant.DoesNotExist, ValueError) as error:
        raise TenantNotFound(tenant_id) from error


def keep(tenants: Sequence[Tenant]) -> list[Tenant]:
    """Lock the tenants' rows until the transaction ends: none is forgotten or held while it gets a run.

    Returns those that are left, as they are now.
    """
    rows = Tenant.objects.select_for_update(no_key=True).filter(pk__in=[tenant.pk for tenant in tenants])
    return list(rows.order_by("pk"))


def require_plan(tenant: Tenant, target: Target, digest: str) -> None:
    """Raise PlanChanged unless the tenant's plan is the one of that digest, or why it cannot be read."""
    plan = plan_for(tenant, target)
    if plan.digest != digest:
        raise PlanChanged(tenant.tenant_id, plan.digest)


def request_run(
    tenant: Tenant,
    request: Request,
    *,
    expected_digest: str = "",
    retry_of: MigrationRun | None = None,
    undo: Callable[[], "Batch"] | None = None,
) -> MigrationRun:
    """A pending run; raises RunActive when the tenant has one that is not finished, TenantHeld, InvalidOptions or
    TooManyRuns.

    `undo` is asked, while nothing can happen to the tenant, what a rollback is to undo; what it raises is raised.
    """
    check_options(request)
    require_target(tenant.isolation, request.target)
    prepare(request, [tenant.tenant_id])
    with transaction.atomic():
        if not (kept := keep([tenant])):
            raise TenantNotFound(tenant.tenant_id)
        if kept[0].held_at is not None:
            raise TenantHeld(tenant.tenant_id, kept[0].held_by, kept[0].hold_reason)
        if broken := partial_runs([tenant.pk]):
            raise TenantPartial(tenant.tenant_id, how_to_repair(broken[tenant.pk]))
        # Under the tenant's lock only a run's end can come in between; the constraint holds whoever forgets the lock.
        if active := MigrationRun.objects.active().filter(tenant=tenant).first():
            raise RunActive(tenant.tenant_id, active.pk)
        run = _run(tenant, _asked(request), batch=undo() if undo else None)
        run.expected_digest = expected_digest
        run.retry_of = retry_of
        run.lease_expires_at = lease_of(request.via)
        run.save(force_insert=True)
    return run


def lease_of(via: str) -> datetime | None:
    """A command carries out itself what it asks for; what the API asks for may wait for a coordinator, however long."""
    if via != RequestedVia.COMMAND:
        return None
    return timezone.now() + timedelta(seconds=load_conf().lease)


def prepare(request: Request, tenant_ids: Collection[str] | None = None) -> None:
    """Settle what dead workers left; for the API the coordinator does, so that no tenant's outage is waited for."""
    if request.via == RequestedVia.COMMAND:
        settle_abandoned(tenant_ids)
        return
    limit = load_conf().max_pending_runs
    waiting = MigrationRun.objects.filter(state=RunState.PENDING, requested_via=RequestedVia.API)
    if waiting.order_by()[:limit].count() >= limit:
        raise TooManyRuns


def request_rollout(
    tenants: Iterable[Tenant],
    request: Request,
    *,
    strategy: Strategy = DEFAULT_STRATEGY,
    selector: Selector = EVERYBODY,
    retry_of: Rollout | None = None,
    undoes: Rollout | None = None,
    undo: Callable[[Sequence[Tenant]], Mapping[str, "Batch"]] | None = None,
    confirmed: int | None = None,
) -> Rollout:
    """A rollout with a run for each tenant, pending, or skipped with the reason why it cannot be started.

    `tenants` are what select() gives for `selector`, which is kept for the record. A target has to exist for at least
    one kind of tenant and reaches only the kinds for which it does. `undo` is asked what rollbacks are to undo, by
    tenant; those of which it says nothing are left out. `confirmed` is for how many tenants somebody has agreed to it.
    Raises InvalidOptions, PlanError, TooManyRuns or ConfirmationRequired, and RunActive when every tenant has an
    unfinished run: the same was asked for already.
    """
    check_options(request)
    chosen = concerned_tenants(tenants, request.target)
    prepare(request)
    with transaction.atomic():
        kept = keep(chosen)
        batches = undo(kept) if undo else {}
        arranged = arrange(
            [tenant for tenant in kept if not undo or tenant.pk in batches], strategy, shared_last=goes_back(request)
        )
        _require_confirmed(arranged, confirmed)
        _require_somebody_free(arranged)
        rollout = Rollout.objects.create(
            selector=selector.as_dict(),
            strategy=strategy.as_dict(),
            total=arranged.total,
            last_wave=arranged.last_wave,
            retry_of=retry_of,
            undoes=undoes,
            foreground=request.via == RequestedVia.COMMAND,
            lease_expires_at=lease_of(request.via),
            **_asked(request),
        )
        _add_runs(rollout, arranged, request, batches)
    return rollout


def _require_confirmed(arranged: Arrangement, confirmed: int | None) -> None:
    if confirmed is not None and confirmed != arranged.total:
        raise ConfirmationRequired(f"It is for {arranged.total} tenants, and {confirmed} were confirmed.")


def _require_somebody_free(arranged: Arrangement) -> None:
    busy = [each for each in arranged.left_out if each.code == RunActive.code]
    if busy and len(busy) == arranged.total:
        first = min(busy, key=lambda each: each.tenant.tenant_id).tenant
        raise RunActive(first.tenant_id, MigrationRun.objects.active().get(tenant=first).pk)


def _add_runs(rollout: Rollout, arranged: Arrangement, request: Request, batches: Mapping[str, "Batch"]) -> None:
    asked = _asked(request)
    started = [(tenant, wave) for wave, tenants in arranged.waves.items() for tenant in tenants]
    if started and not batches:
        (first, wave), *others = started
        run = _run(first, asked, rollout, wave)
        run.save(force_insert=True)
        records.add_alike(run, [(tenant.pk, wave) for tenant, wave in others])
        started = []
    runs = [_run(tenant, asked, rollout, wave, batch=batches.get(tenant.pk)) for tenant, wave in started]
    for each in arranged.left_out:
        run = _run(each.tenant, asked, rollout, arranged.last_wave, batch=batches.get(each.tenant.pk))
        run.state, run.finished_at = RunState.SKIPPED, timezone.now()
        run.error_code, run.message = each.code, each.reason[:1000]
        runs.append(run)
    MigrationRun.objects.bulk_create(runs, batch_size=1000)


def _asked(request: Request) -> dict[str, Any]:
    return {
        "action": request.action,
        "app_label": request.target.app_label or "",
        "migration_name": request.target.migration_name or "",
        "options": {name: value for name, value in asdict(request.options).items() if value != getattr(Options, name)},
        "requested_by": request.by,
        "requested_via": request.via,
    }


def _run(
    tenant: Tenant,
    asked: Mapping[str, Any],
    rollout: Rollout | None = None,
    wave: int = 0,
    *,
    batch: "Batch | None" = None,
) -> MigrationRun:
    undo = {"undo": batch.as_dict(), "undoes_id": batch.undoes} if batch else {}
    return MigrationRun(tenant=tenant, rollout=rollout, wave=wave, **asked, **undo)


def goes_back(request: Request) -> bool:
    """Whether shared tenants come last: what the others have may rest upon them."""
    return request.action in {Action.ROLLBACK, Action.RESET}


def check_options(request: Request) -> None:
    """Raise InvalidOptions for what does not go together."""
    options, target = request.options, request.target
    if options.prune and not target.app_label:
        raise InvalidOptions("Migrations can be pruned only when an app is specified.")
    if options.prune and (target.migration_name or options.fake or options.fake_initial or options.run_syncdb):
        raise InvalidOptions("Pruning takes an app and nothing else.")
    if options.template and (target != Target() or options.fake or options.fake_initial or options.run_syncdb):
        raise InvalidOptions("A template is of all migrations, and takes no other option.")
    if options.fake and options.fake_initial:
        raise InvalidOptions("Choose one of fake and fake-initial.")
