"""What a rollout would be, as the tenants were last looked at; nothing is asked for."""

from collections.abc import Iterable
from dataclasses import dataclass

from migrations_api.orchestrator import observations
from migrations_api.orchestrator.requests import DEFAULT_STRATEGY, EVERYBODY, Request, check_options, goes_back
from migrations_api.orchestrator.selection import Arrangement, Selector, arrange, concerned_tenants
from migrations_api.orchestrator.strategy import Strategy
from tenants.models import Tenant


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a rollout would be; `plan` is as the tenants were last looked at."""

    arrangement: Arrangement
    selector: Selector
    max_failures: int | None
    max_concurrency: int | None
    plan: observations.FleetPlan


def preview_rollout(
    tenants: Iterable[Tenant],
    request: Request,
    *,
    strategy: Strategy = DEFAULT_STRATEGY,
    selector: Selector = EVERYBODY,
) -> Preview:
    """What request_rollout() would make of it now; raises what that does but for TooManyRuns and RunActive."""
    check_options(request)
    arranged = arrange(concerned_tenants(tenants, request.target), strategy, shared_last=goes_back(request))
    started = [tenant.tenant_id for wave in arranged.waves.values() for tenant in wave]
    plan = observations.fleet_plans(request.goal, among=started)
    return preview_of(arranged, strategy=strategy, selector=selector, plan=plan)


def preview_of(
    arranged: Arrangement, *, strategy: Strategy, selector: Selector, plan: observations.FleetPlan
) -> Preview:
    cap = strategy.max_concurrency
    return Preview(
        arrangement=arranged,
        selector=selector,
        max_failures=strategy.allowed_failures(arranged.total),
        max_concurrency=cap.at_least_one_of(arranged.total) if cap else None,
        plan=plan,
    )
