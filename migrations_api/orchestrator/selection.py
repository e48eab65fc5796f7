"""Which tenants a rollout is for, and in which wave each of them is."""

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import reduce
from operator import or_
from typing import ClassVar, Final

from django.db.models import QuerySet
from django.utils.module_loading import import_string

from migrations_api.exceptions import (
    InvalidOptions,
    RunActive,
    TenantHeld,
    TenantPartial,
    UnknownRollout,
    UnknownTenants,
    held_by,
)
from migrations_api.models import Action, MigrationRun, Rollout, TenantObservation
from migrations_api.orchestrator.endings import NOT_MIGRATED
from migrations_api.orchestrator.fleet import how_to_repair, partial_runs
from migrations_api.orchestrator.sources import concerned_kinds
from migrations_api.orchestrator.stored import Stored
from migrations_api.orchestrator.strategy import Amount, Strategy, split
from migrations_api.plan import Target
from migrations_api.states import FAILED_RUN_STATES
from tenants.models import Isolation, Tenant

SHARED_WAVE: Final = 0
# A tenant's row is committed some time after the moment that it has as its `created_at`.
SLACK: Final = timedelta(minutes=1)
MAX_SHOWN: Final = 100
# Loaded where tenants are selected by it.
_STATUSES_FILTER: Final = "migrations_api.orchestrator.observations.statuses_filter"


@dataclass(frozen=True)
class Shard:
    """Every tenant is in exactly one of `of` shards, and stays there however the fleet grows."""

    number: int
    of: int

    @classmethod
    def parse(cls, given: str) -> "Shard":
        """From "2/5"; raises InvalidOptions."""
        number, _, of = given.partition("/")
        if all(each.isascii() and each.isdigit() and len(each) < 6 for each in (number, of)):
            shard = cls(int(number), int(of))
            if 1 <= shard.number <= shard.of:
                return shard
        raise InvalidOptions(f"{given[:20]!r} is no shard: it takes K/N with 1 <= K <= N, such as 2/5.")

    def has(self, tenant_id: str) -> bool:
        return _hash(tenant_id) % self.of == self.number - 1

    @property
    def value(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, kw_only=True)
class Selector(Stored):
    """Which tenants: those that fit everything given. Without anything, all of them.

    `failed_in` and `unfinished_in` name an earlier rollout. Of those that fit, `shard` leaves one part and `sample` so
    many, chosen by `seed`.
    """

    readers: ClassVar = {
        "tenant_ids": tuple,
        "exclude": tuple,
        "status": tuple,
        "shard": Shard.parse,
        "sample": Amount.parse,
    }

    tenant_ids: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    isolation: str | None = None
    status: tuple[str, ...] = ()
    failed_in: int | None = None
    unfinished_in: int | None = None
    shard: Shard | None = None
    sample: Amount | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.tenant_ids is not None and not self.tenant_ids:
            raise InvalidOptions("tenant_ids is empty; leave it out to select by the rest.")
        if self.sample is not None and self.sample.is_nothing:
            raise InvalidOptions("A sample has at least one tenant.")
        if self.seed is not None and self.sample is None:
            raise InvalidOptions("A seed is for a sample, and none is asked for.")

    def seeded(self) -> "Selector":
        """With a seed, so that the same tenants can be chosen once more."""
        if self.sample is None or self.seed is not None:
            return self
        return replace(self, seed=secrets.randbelow(2**31))


def select(selector: Selector) -> list[Tenant]:
    """The tenants that fit now; raises UnknownTenants or UnknownRollout for what is named and not there."""
    for rollout_id in (selector.failed_in, selector.unfinished_in):
        if rollout_id is not None and not Rollout.objects.filter(pk=rollout_id).exists():
            raise UnknownRollout(f"Rollout {rollout_id} does not exist.")
    _require_known({*(selector.tenant_ids or ()), *selector.exclude})
    tenants = _fitting(selector)
    if selector.tenant_ids is not None:
        tenants = tenants.filter(pk__in=selector.tenant_ids)
    if selector.status:
        tenants = tenants.filter(reduce(or_, map(import_string(_STATUSES_FILTER), sorted(set(selector.status)))))
    if selector.failed_in is not None:
        failed = MigrationRun.objects.filter(rollout=selector.failed_in, state__in=FAILED_RUN_STATES)
        tenants = tenants.filter(pk__in=failed.values("tenant"))
    if selector.unfinished_in is not None:
        unfinished = MigrationRun.objects.filter(NOT_MIGRATED, rollout=selector.unfinished_in)
        tenants = tenants.filter(pk__in=unfinished.values("tenant"))
    return _part(selector, tenants.order_by("pk"))


def _require_known(tenant_ids: set[str]) -> None:
    known = Tenant.objects.filter(pk__in=tenant_ids).values_list("pk", flat=True) if tenant_ids else ()
    if unknown := sorted(tenant_ids.difference(known)):
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise UnknownTenants(f"These tenants do not exist: {', '.join(unknown[:10])}{more}.")


def _fitting(selector: Selector) -> QuerySet[Tenant]:
    """By what a tenant is, whatever happens to it."""
    tenants = Tenant.objects.exclude(pk__in=selector.exclude)
    if selector.isolation:
        tenants = tenants.filter(isolation=selector.isolation)
    if selector.labels:
        tenants = tenants.filter(labels__contains=dict(selector.labels))
    return tenants


def _part(selector: Selector, tenants: Iterable[Tenant]) -> list[Tenant]:
    chosen = [tenant for tenant in tenants if selector.shard is None or selector.shard.has(tenant.tenant_id)]
    if selector.sample is None:
        return chosen
    # By a hash and not by Python's generator, whose choice another version may make differently.
    shuffled = sorted(chosen, key=lambda tenant: _hash(f"{selector.seed}:{tenant.tenant_id}"))
    return shuffled[: selector.sample.at_least_one_of(len(chosen))]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def created_meanwhile(rollout: Rollout) -> QuerySet[Tenant]:
    """Tenants that the rollout's selector fits and that were not there yet when it was made."""
    selector = Selector.from_dict(rollout.selector)
    if rollout.action != Action.MIGRATE:
        return Tenant.objects.none()
    if selector.as_dict().keys() - {"exclude", "labels", "isolation"}:
        return Tenant.objects.none()  # what was chosen by name, by standing or by lot is not joined by others
    tenants = _fitting(selector).filter(created_at__gt=rollout.created_at - SLACK)
    if rollout.app_label:
        # It may be an app that only some kinds of tenants have.
        tenants = tenants.filter(isolation__in=rollout.runs.values("tenant__isolation"))
    if rollout.finished_at is not None:
        tenants = tenants.filter(created_at__lte=rollout.finished_at)
    return tenants.exclude(pk__in=rollout.runs.values("tenant")).order_by("pk")


def newcomers(rollout: Rollout) -> list[str]:
    """The ids of tenants that were created since, fit its selector and are not in it; the first hundred."""
    return list(created_meanwhile(rollout).values_list("pk", flat=True)[:MAX_SHOWN])


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A tenant that is selected and not started, and why."""

    tenant: Tenant
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """The selected tenants by wave; shared ones are wave 0, before all others, or the last one after them."""

    waves: dict[int, list[Tenant]]
    left_out: list[LeftOut]

    @property
    def total(self) -> int:
        return len(self.left_out) + sum(map(len, self.waves.values()))

    @property
    def last_wave(self) -> int:
        return max(self.waves, default=SHARED_WAVE)


def arrange(tenants: Sequence[Tenant], strategy: Strategy, *, shared_last: bool = False) -> Arrangement:
    """Put the tenants into waves, in the order of their ids, without those that cannot be started now."""
    left_out = _left_out(tenants)
    out = {each.tenant.pk for each in left_out}
    ordered = sorted((tenant for tenant in tenants if tenant.pk not in out), key=lambda tenant: tenant.tenant_id)
    shared = [tenant for tenant in ordered if tenant.isolation == Isolation.SHARED]
    own = [tenant for tenant in ordered if tenant.isolation != Isolation.SHARED]
    waves = dict(enumerate(split(own, strategy.groups, labels=lambda tenant: tenant.labels), SHARED_WAVE + 1))
    if shared:
        first_or_last = max(waves, default=SHARED_WAVE) + 1 if shared_last else SHARED_WAVE
        waves = dict(sorted({**waves, first_or_last: shared}.items()))
    return Arrangement(waves=waves, left_out=left_out)


def _left_out(tenants: Sequence[Tenant]) -> list[LeftOut]:
    """A few queries, however many tenants there are."""
    ids = [tenant.pk for tenant in tenants]
    busy = dict(MigrationRun.objects.active().filter(tenant__in=ids).values_list("tenant_id", "pk"))
    partial = set(TenantObservation.objects.filter(pk__in=ids, partial=True).values_list("pk", flat=True))
    broken = partial_runs(partial) if partial else {}
    found = ((tenant, _obstacle(tenant, busy, partial, broken)) for tenant in tenants)
    return [LeftOut(tenant=tenant, code=why[0], reason=why[1]) for tenant, why in found if why]


def _obstacle(
    tenant: Tenant, busy: Mapping[str, int], partial: set[str], broken: Mapping[str, int]
) -> tuple[str, str] | None:
    if tenant.held_at is not None:
        return TenantHeld.code, f"The tenant is {held_by(tenant.held_by, tenant.hold_reason)}."
    if tenant.suspended:
        return "suspended", "The tenant is suspended."
    if tenant.pk in busy:
        return RunActive.code, RunActive(tenant.tenant_id, busy[tenant.pk]).message
    if tenant.pk in partial:
        how = f": {how_to_repair(broken[tenant.pk])}" if tenant.pk in broken else ", or migrated by itself"
        return TenantPartial.code, f"The tenant stands between two migrations and has to be repaired{how}."
    return None


def concerned_tenants(tenants: Iterable[Tenant], target: Target) -> list[Tenant]:
    """Those that a rollout to that target reaches, shared ones first; raises PlanError where no kind of them has it."""
    ordered = sorted(tenants, key=lambda tenant: (tenant.isolation != Isolation.SHARED, tenant.tenant_id))
    concerned = concerned_kinds({tenant.isolation for tenant in ordered}, target)
    return [tenant for tenant in ordered if tenant.isolation in concerned]
