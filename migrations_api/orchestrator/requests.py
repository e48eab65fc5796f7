"""What a caller asks for becomes rows; nothing is carried out here."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from migrations_api.exceptions import InvalidOptions, PlanChanged, RunActive, TooManyRuns
from migrations_api.executor import Options
from migrations_api.models import MigrationRun, RequestedVia, Rollout
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.fleet import plan_for
from migrations_api.orchestrator.sources import concerned_kinds, require_target
from migrations_api.plan import Target
from migrations_api.states import RunState
from tenants.conf import load_conf
from tenants.exceptions import TenantNotFound
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant, forget_tenant


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be done, and who asks for it."""

    target: Target = field(default_factory=Target)
    options: Options = field(default_factory=Options)
    by: str = ""
    via: str = RequestedVia.COMMAND


def get_tenant(tenant_id: str) -> Tenant:
    try:
        return Tenant.objects.get(pk=tenant_id)
    except (Tenant.DoesNotExist, ValueError) as error:
        raise TenantNotFound(tenant_id) from error


def create(**values: Any) -> Tenant:
    """create_tenant(), and a first look at where the new tenant stands."""
    tenant = create_tenant(**values)
    observations.refresh([tenant])
    return tenant


def forget(tenant: Tenant, *, drop: bool) -> None:
    """Forget a tenant that has no unfinished run; raises RunActive, or what forget_tenant() does."""
    settle_abandoned([tenant.tenant_id])
    with transaction.atomic():
        _keep([tenant])
        if active := MigrationRun.objects.active().filter(tenant=tenant).first():
            raise RunActive(tenant.tenant_id, active.pk)
        forget_tenant(tenant, drop=drop)


def _keep(tenants: Sequence[Tenant]) -> set[str]:
    """Lock the tenants' rows until the transaction ends: none is forgotten while it gets a run; returns who is left."""
    rows = Tenant.objects.select_for_update(no_key=True).filter(pk__in=[tenant.pk for tenant in tenants])
    return set(rows.order_by("pk").values_list("pk", flat=True))


def require_plan(tenant: Tenant, target: Target, digest: str) -> None:
    """Raise PlanChanged unless the tenant's plan is the one of that digest, or why it cannot be read."""
    plan = plan_for(tenant, target)
    if plan.digest != digest:
        raise PlanChanged(tenant.tenant_id, plan.digest)


def request_run(
    tenant: Tenant, request: Request, *, expected_digest: str = "", retry_of: MigrationRun | None = None
) -> MigrationRun:
    """A pending run; raises RunActive when the tenant has one that is not finished, InvalidOptions or TooManyRuns."""
    check_options(request)
    require_target(tenant.isolation, request.target)
    _prepare(request, [tenant.tenant_id])
    with transaction.atomic():
        if not _keep([tenant]):
            raise TenantNotFound(tenant.tenant_id)
        # Under the tenant's lock only a run's end can come in between; the constraint holds whoever forgets the lock.
        if active := MigrationRun.objects.active().filter(tenant=tenant).first():
            raise RunActive(tenant.tenant_id, active.pk)
        run = _run(tenant, request)
        run.expected_digest = expected_digest
        run.retry_of = retry_of
        run.lease_expires_at = _lease(request)
        run.save(force_insert=True)
    return run


def _lease(request: Request) -> datetime | None:
    """A command carries out itself what it asks for; what the API asks for may wait for a coordinator, however long."""
    if request.via != RequestedVia.COMMAND:
        return None
    return timezone.now() + timedelta(seconds=load_conf().lease)


def _prepare(request: Request, tenant_ids: Collection[str] | None = None) -> None:
    """Settle what dead workers left; for the API the coordinator does, so that no tenant's outage is waited for."""
    if request.via == RequestedVia.COMMAND:
        settle_abandoned(tenant_ids)
        return
    limit = load_conf().max_pending_runs
    waiting = MigrationRun.objects.filter(state=RunState.PENDING, requested_via=RequestedVia.API)
    if waiting.order_by()[:limit].count() >= limit:
        raise TooManyRuns


def request_rollout(
    tenants: Iterable[Tenant], request: Request, *, on_error: str = Rollout.OnError.CONTINUE
) -> Rollout:
    """A rollout with a pending run for each tenant, shared ones in the first wave, the rest in the order of their ids.

    A tenant that has an unfinished run gets one that is skipped and says so. A target has to exist for at least one
    kind of tenant and reaches only the kinds for which it does. Raises InvalidOptions, PlanError or TooManyRuns, and
    RunActive when every tenant has an unfinished run: the same was asked for already.
    """
    check_options(request)
    chosen = concerned_tenants(tenants, request.target)
    _prepare(request)
    with transaction.atomic():
        left = _keep(chosen)
        rollout = Rollout.objects.create(
            on_error=on_error, requested_by=request.by, lease_expires_at=_lease(request), **_asked(request)
        )
        chosen = [tenant for tenant in chosen if tenant.pk in left]
        busy = _insert_runs(rollout, chosen, request)
        if busy and len(busy) == len(chosen):
            raise RunActive(*min(busy.items()))
    return rollout


def _insert_runs(rollout: Rollout, tenants: Sequence[Tenant], request: Request) -> dict[str, int]:
    """A run for each tenant: pending, or skipped where another one is in the way; returns those, by tenant id."""
    runs = [_run(tenant, request, rollout) for tenant in tenants]
    MigrationRun.objects.bulk_create(runs, batch_size=1000, ignore_conflicts=True)
    created = set(rollout.runs.values_list("tenant_id", flat=True))
    left_out = [tenant for tenant in tenants if tenant.pk not in created]
    if not left_out:
        return {}
    busy = dict(MigrationRun.objects.active().filter(tenant__in=left_out).values_list("tenant_id", "pk"))
    skipped = [_skipped(tenant, request, rollout, busy[tenant.pk]) for tenant in left_out if tenant.pk in busy]
    MigrationRun.objects.bulk_create(skipped, batch_size=1000)
    # A run that was in the way has ended since.
    return busy | _insert_runs(rollout, [tenant for tenant in left_out if tenant.pk not in busy], request)


def _skipped(tenant: Tenant, request: Request, rollout: Rollout, active_run_id: int) -> MigrationRun:
    run = _run(tenant, request, rollout)
    error = RunActive(tenant.tenant_id, active_run_id)
    run.state, run.finished_at = RunState.SKIPPED, timezone.now()
    run.error_code, run.message = error.code, error.message
    return run


def _asked(request: Request) -> dict[str, object]:
    return {
        "app_label": request.target.app_label or "",
        "migration_name": request.target.migration_name or "",
        "options": {name: value for name, value in asdict(request.options).items() if value != getattr(Options, name)},
        "requested_via": request.via,
    }


def _wave(tenant: Tenant) -> int:
    return 0 if tenant.isolation == Isolation.SHARED else 1


def _run(tenant: Tenant, request: Request, rollout: Rollout | None = None) -> MigrationRun:
    wave = 0 if rollout is None else _wave(tenant)
    return MigrationRun(tenant=tenant, rollout=rollout, wave=wave, requested_by=request.by, **_asked(request))


def concerned_tenants(tenants: Iterable[Tenant], target: Target) -> list[Tenant]:
    """Those that a rollout to that target reaches, in its order; raises PlanError where no kind of them has it."""
    ordered = sorted(tenants, key=lambda tenant: (_wave(tenant), tenant.tenant_id))
    concerned = concerned_kinds({tenant.isolation for tenant in ordered}, target)
    return [tenant for tenant in ordered if tenant.isolation in concerned]


def check_options(request: Request) -> None:
    """Raise InvalidOptions for what does not go together."""
    options, target = request.options, request.target
    if options.prune and not target.app_label:
        raise InvalidOptions("Migrations can be pruned only when an app is specified.")
    if options.prune and (target.migration_name or options.fake or options.fake_initial or options.run_syncdb):
        raise InvalidOptions("Pruning takes an app and nothing else.")
    if options.fake and options.fake_initial:
        raise InvalidOptions("Choose one of fake and fake-initial.")
