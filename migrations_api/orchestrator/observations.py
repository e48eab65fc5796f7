"""The stored picture of where each tenant stands: written in batches, read without asking any tenant.

What a set of applied migrations means is decided by the code that reads it, so a deploy changes the picture at once.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

from django.db import connection
from django.db.models import Aggregate, Count, F, Field, Min, Q, QuerySet
from django.utils import timezone

from migrations_api.exceptions import PlanError
from migrations_api.models import AppliedSet, TenantObservation
from migrations_api.orchestrator.fleet import (
    AT_ONCE,
    Look,
    Observation,
    Place,
    Standing,
    TenantStatus,
    kind_of,
    looks,
    place_of,
    status_of,
    try_plan,
)
from migrations_api.orchestrator.sources import SourceKey, concerned_kinds, source_key
from migrations_api.plan import Applied, Plan, Target, fingerprint
from tenants.conf import load_conf
from tenants.exceptions import NotProvisioned
from tenants.models import Isolation, Tenant

NOT_YET = "Not looked at yet."
MAX_PLACES = 4096

# So many tenants are held in memory at a time; their schemas are read by a few sessions side by side.
TOGETHER: Final = 4 * AT_ONCE
# The lock keeps a tenant from being forgotten in between; in the order of the ids, two that store do not wait for each
# other crosswise.
STORE: Final = f"""
    INSERT INTO "{TenantObservation._meta.db_table}" AS stored
           (tenant_id, applied_id, partial, error_code, detail, observed_at)
    SELECT there.tenant_id, seen.applied, coalesce(%(partial)s, false), seen.code, seen.detail, %(at)s
      FROM unnest(%(tenants)s::text[], %(applied)s::text[], %(codes)s::text[], %(details)s::text[])
           seen (tenant, applied, code, detail)
      JOIN "{Tenant._meta.db_table}" there ON there.tenant_id = seen.tenant
     ORDER BY there.tenant_id FOR KEY SHARE OF there
    ON CONFLICT (tenant_id) DO UPDATE
       SET applied_id = excluded.applied_id, partial = coalesce(%(partial)s, stored.partial),
           error_code = excluded.error_code, detail = excluded.detail, observed_at = excluded.observed_at
     WHERE stored.observed_at <= excluded.observed_at
"""  # noqa: S608 - names of our own tables

Spot = tuple[str, str]  # the kind of tenant and the fingerprint of what it has applied
_places: dict[tuple[SourceKey, str], Place] = {}


def refresh(tenants: Iterable[Tenant] | None = None, *, older_than: float | None = None) -> int:
    """Look at the tenants, all of them without `tenants`, and store what was seen; returns how many.

    With `older_than`, only at those whose picture is older than so many seconds.
    """
    chosen = iter(due(older_than).iterator(chunk_size=1000) if tenants is None else tenants)
    looked = 0
    while batch := list(islice(chosen, TOGETHER)):
        for look in _gathered(looks(batch)):
            _store(look.seen, look.began)
        looked += len(batch)
    return looked


def _gathered(found: Iterable[Look]) -> Iterator[Look]:
    """As they come in, but no statement for each: a database of its own is a look of its own."""
    began, seen = timezone.now(), dict[str, Observation]()
    for look in found:
        began, seen = min(began, look.began) if seen else look.began, seen | look.seen
        if len(seen) >= load_conf().read_batch:
            yield Look(began=began, seen=seen)
            seen = {}
    if seen:
        yield Look(began=began, seen=seen)


def due(older_than: float | None) -> Any:
    """The tenants whose picture is older than so many seconds, those never looked at first."""
    tenants = Tenant.objects.order_by(F("observation__observed_at").asc(nulls_first=True), "pk")
    if older_than is None:
        return tenants
    limit = timezone.now() - timedelta(seconds=older_than)
    return tenants.filter(Q(observation=None) | Q(observation__observed_at__lt=limit))


def after_run(tenant_id: str, applied: Applied, *, partial: bool) -> None:
    """Store what a run that has ended left behind."""
    _store({tenant_id: Observation(applied=applied)}, timezone.now(), partial=partial)


def _store(seen: Mapping[str, Observation], at: datetime, *, partial: bool | None = None) -> None:
    """Keep each look unless a newer one is stored or the tenant is gone; None leaves what was known of `partial`."""
    names = {each.applied: fingerprint(each.applied) for each in seen.values() if each.applied is not None}
    errors = [each.error for each in seen.values()]
    # Before anything refers to them, and committed: whoever has to wait for a set must not wait for tenants as well.
    AppliedSet.objects.bulk_create(
        [AppliedSet(fingerprint=name, migrations=sorted(map(list, applied))) for applied, name in names.items()],
        ignore_conflicts=True,
    )
    values: dict[str, Any] = {
        "tenants": list(seen),
        "applied": [None if each.applied is None else names[each.applied] for each in seen.values()],
        "codes": [error.code if error else "" for error in errors],
        "details": [error.message[:500] if error else "" for error in errors],
        "partial": partial,
        "at": at,
    }
    with connection.cursor() as cursor:
        cursor.execute(STORE, values)


def stored_standings(tenants: Iterable[Tenant]) -> dict[str, Standing]:
    """Each tenant's standing by its id, as last looked at; two queries, however many tenants there are."""
    found = {tenant.tenant_id: tenant for tenant in tenants}
    seen = {row.pk: row for row in TenantObservation.objects.filter(pk__in=list(found))}
    spots = {(kind_of(found[row.pk].isolation), row.applied_id) for row in seen.values() if row.applied_id is not None}
    places = _places_of(spots)
    return {tenant_id: _standing(tenant, seen.get(tenant_id), places) for tenant_id, tenant in found.items()}


def _standing(tenant: Tenant, seen: TenantObservation | None, places: Mapping[Spot, Place]) -> Standing:
    if seen is not None and seen.applied_id is not None:
        place = places[kind_of(tenant.isolation), seen.applied_id]
        return place.standing(tenant, partial=seen.partial, observed_at=seen.observed_at)
    unseen = _unseen_status(seen.error_code if seen else "", was_provisioned=tenant.provisioned_at is not None)
    status = status_of(tenant, unseen)
    if seen is None:
        return Standing(tenant=tenant, status=status, detail=tenant.hold_reason or NOT_YET)
    return Standing(
        tenant=tenant, status=status, detail=tenant.hold_reason or seen.detail, observed_at=seen.observed_at
    )


def _unseen_status(error_code: str, *, was_provisioned: bool) -> TenantStatus:
    """The status of a tenant of which it is not known what it has applied."""
    if error_code == NotProvisioned.code or (not error_code and not was_provisioned):
        return TenantStatus.UNPROVISIONED
    return TenantStatus.UNREACHABLE


def _places_of(spots: Iterable[Spot]) -> dict[Spot, Place]:
    """What each set of applied migrations means, planned once per process; one query for those not met before."""
    keys = {spot: (source_key(spot[0]), spot[1]) for spot in spots}
    known = {spot: _places[key] for spot, key in keys.items() if key in _places}
    missing = keys.keys() - known.keys()
    sets = AppliedSet.objects.in_bulk({name for _, name in missing}) if missing else {}
    for kind, name in missing:
        applied = sets[name].keys
        known[kind, name] = place_of(try_plan(kind, applied, Target()), applied)
    if len(_places) > MAX_PLACES:
        _places.clear()
    _places.update({keys[spot]: known[spot] for spot in missing})
    return known


@dataclass(frozen=True, kw_only=True)
class FleetCounts:
    """How many tenants stand where, as last looked at."""

    total: int
    by_status: dict[str, int]
    by_database: dict[str, int]
    starting_states: int
    oldest_observation: datetime | None


def fleet_counts() -> FleetCounts:
    """Two queries, however many tenants there are."""
    groups = [_Group(**row) for row in _grouped()]
    places = _places_of({group.spot for group in groups if group.spot})
    by_status: Counter[str] = Counter(dict.fromkeys(map(str, TenantStatus), 0))
    by_database: Counter[str] = Counter()
    for group in groups:
        by_status[group.status(places)] += group.tenants
        by_database[group.database] += group.tenants
    return FleetCounts(
        total=sum(group.tenants for group in groups),
        by_status=dict(by_status),
        by_database=dict(sorted(by_database.items())),
        starting_states=len(places),
        oldest_observation=min((group.oldest for group in groups if group.oldest), default=None),
    )


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Tenants that nothing stored tells apart."""

    database: str
    isolation: str
    never_provisioned: bool
    held: bool
    observation__applied: str | None
    observation__error_code: str | None
    observation__partial: bool | None
    tenants: int
    oldest: datetime | None

    @property
    def spot(self) -> Spot | None:
        return (kind_of(self.isolation), self.observation__applied) if self.observation__applied else None

    def status(self, places: Mapping[Spot, Place]) -> TenantStatus:
        if self.held:
            return TenantStatus.HELD
        if self.spot is None:
            return _unseen_status(self.observation__error_code or "", was_provisioned=not self.never_provisioned)
        return TenantStatus.PARTIAL if self.observation__partial else places[self.spot].status


def _grouped() -> Any:
    return (
        Tenant.objects.order_by()
        .values(
            "database",
            "isolation",
            "observation__applied",
            "observation__error_code",
            "observation__partial",
            never_provisioned=Q(provisioned_at=None),
            held=Q(held_at__isnull=False),
        )
        .annotate(tenants=Count("pk"), oldest=Min("observation__observed_at"))
    )


def statuses_filter(status: str) -> Q:
    """Which tenants have that status, as a condition on Tenant; two queries, and none per tenant."""
    held = Q(held_at__isnull=False)
    return held if status == TenantStatus.HELD else ~held & _standing_filter(status)


def _standing_filter(status: str) -> Q:
    seen = Q(observation__applied__isnull=False)
    if status == TenantStatus.PARTIAL:
        return seen & Q(observation__partial=True)
    if status == TenantStatus.UNPROVISIONED:
        return Q(observation__error_code=NotProvisioned.code) | Q(observation=None, provisioned_at=None)
    if status == TenantStatus.UNREACHABLE:
        unreadable = Q(observation__error_code__gt="") & ~Q(observation__error_code=NotProvisioned.code)
        return unreadable | Q(observation=None, provisioned_at__isnull=False)
    return Q(observation__partial=False) & _at(status)


def _at(status: str) -> Q:
    rows = TenantObservation.objects.filter(applied__isnull=False).order_by()
    spots = {
        (kind_of(isolation), name) for isolation, name in rows.values_list("tenant__isolation", "applied").distinct()
    }
    fitting = [spot for spot, place in _places_of(spots).items() if place.status == status]
    shared = Q(isolation=Isolation.SHARED)
    own = [name for kind, name in fitting if kind != Isolation.SHARED]
    servers = [name for kind, name in fitting if kind == Isolation.SHARED]
    return (~shared & Q(observation__applied__in=own)) | (shared & Q(observation__applied__in=servers))


@dataclass(frozen=True, kw_only=True)
class FleetPlanGroup:
    plan: Plan
    tenant_ids: list[str]

    @property
    def tenant_count(self) -> int:
        return len(self.tenant_ids)


@dataclass(frozen=True, kw_only=True)
class FleetPlanProblem:
    tenant_id: str
    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """One plan per starting state, with the tenants that stand there; and those for which there is none.

    All of it is as old as `oldest_observation` says, the look longest ago; None where there was none.
    """

    groups: list[FleetPlanGroup]
    problems: list[FleetPlanProblem]
    oldest_observation: datetime | None


def fleet_plans(target: Target, *, among: Collection[str] | None = None) -> FleetPlan:
    """The whole fleet's plans from the stored picture, or those `among` it; the most frequent starting state first.

    A target concerns only the kinds of tenants that receive its app; raises PlanError where it does not exist.
    """
    kinds = concerned_kinds(set(Tenant.objects.order_by().values_list("isolation", flat=True).distinct()), target)
    tenants = Tenant.objects.filter(Q() if among is None else Q(pk__in=among), isolation__in=kinds)
    at: defaultdict[Spot, list[str]] = defaultdict(list)
    problems: list[FleetPlanProblem] = []
    together = list(_together(tenants))
    for isolation, applied, error_code, detail, was_provisioned, tenant_ids, _ in together:
        if applied is not None:
            at[kind_of(isolation), applied] += tenant_ids
        else:
            code = error_code or _unseen_status("", was_provisioned=was_provisioned)
            problems += _problems(code, NOT_YET if error_code is None else detail, tenant_ids)
    sets = AppliedSet.objects.in_bulk({name for _, name in at})
    groups = {((kind, name), target): (sets[name].keys, sorted(ids)) for (kind, name), ids in at.items()}
    problems.sort(key=lambda problem: problem.tenant_id)
    return _planned(groups, problems, min((oldest for *_, oldest in together if oldest), default=None))


def _together(tenants: QuerySet[Tenant]) -> Iterable[Any]:
    """The tenants that nothing stored tells apart, and the oldest look at one of them.

    By the server: to read a row for each took most of an answer's time.
    """
    same = ("isolation", "observation__applied", "observation__error_code", "observation__detail", "was_provisioned")
    ids = Aggregate("pk", function="array_agg", output_field=Field())
    known = tenants.order_by().annotate(was_provisioned=Q(provisioned_at__isnull=False))
    return known.values_list(*same).annotate(ids=ids, oldest=Min("observation__observed_at"))


def fleet_plans_of(goals: Iterable[tuple[Tenant, Target]]) -> FleetPlan:
    """The plan of each tenant to a goal of its own, from the stored picture; one for all that share place and goal."""
    wanted = list(goals)
    seen = TenantObservation.objects.in_bulk([tenant.pk for tenant, _ in wanted])
    sets = AppliedSet.objects.in_bulk({row.applied_id for row in seen.values() if row.applied_id is not None})
    at: defaultdict[tuple[Spot, Target], list[str]] = defaultdict(list)
    problems: list[FleetPlanProblem] = []
    for tenant, goal in wanted:
        row = seen.get(tenant.pk)
        if row is not None and row.applied_id is not None:
            at[(kind_of(tenant.isolation), row.applied_id), goal].append(tenant.pk)
        else:
            code = row.error_code if row else _unseen_status("", was_provisioned=tenant.provisioned_at is not None)
            problems += _problems(code, row.detail if row else NOT_YET, [tenant.pk])
    groups = {place: (sets[place[0][1]].keys, tenant_ids) for place, tenant_ids in at.items()}
    oldest = min((row.observed_at for row in seen.values()), default=None)
    return _planned(groups, problems, oldest)


def _planned(
    groups: Mapping[tuple[Spot, Target], tuple[Applied, list[str]]],
    problems: list[FleetPlanProblem],
    oldest: datetime | None,
) -> FleetPlan:
    found = []
    for ((kind, _), goal), (applied, tenant_ids) in groups.items():
        plan = try_plan(kind, applied, goal)
        if isinstance(plan, PlanError):
            problems += _problems(plan.code, plan.message, tenant_ids)
        else:
            found.append(FleetPlanGroup(plan=plan, tenant_ids=tenant_ids))
    ordered = sorted(found, key=lambda group: -group.tenant_count)
    return FleetPlan(groups=ordered, problems=problems, oldest_observation=oldest)


def _problems(code: str, detail: str, tenant_ids: Iterable[str]) -> Iterator[FleetPlanProblem]:
    for tenant_id in tenant_ids:
        yield FleetPlanProblem(tenant_id=tenant_id, code=code, detail=detail)
