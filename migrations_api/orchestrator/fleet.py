"""Where each tenant stands, read in bounded batches: one statement for many schemas, a few databases at a time."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from math import ceil
from typing import Final

from django.db.backends.utils import CursorWrapper
from django.db.models import Exists, OuterRef
from django.utils import timezone
from psycopg2 import sql
from psycopg2.extensions import STRINGARRAY

from migrations_api.exceptions import PlanError
from migrations_api.executor.applied import TABLE
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import (
    Applied,
    Key,
    Plan,
    Target,
    TenantLoader,
    fingerprint,
    full_order,
    known_keys,
    plan_to,
)
from migrations_api.states import RunState
from tenants.backends import backend_for, refuse_control_plane
from tenants.backends.base import server_cursor
from tenants.conf import load_conf
from tenants.driver_errors import translated
from tenants.exceptions import IsControlPlane, NotProvisioned, ServerUnreachable, ServiceError
from tenants.models import Isolation, Tenant
from tenants.servers import DatabaseSettings

LOCK_TIMEOUT: Final = "1s"
# Schemas of one database that one session reads at most; further ones are read beside it.
AT_ONCE: Final = 1000
# Where two sessions share so many, both are done sooner than one; each has to begin with reading the catalog.
WORTH_TWO: Final = 150

# What was read of a table, and what it means.
Sets = dict[str, Applied]
# One value for each schema, which takes the server half as long as to aggregate, and rows of one VALUES, which it plans
# faster than a UNION. `applied` is named so that a table which lacks it is not taken for Django's.
APPLIED_SQL: Final = sql.SQL(
    "({}::text, ARRAY(SELECT ARRAY[app::text, name::text] FROM {} WHERE applied IS NULL OR true)::text)"
)


class TenantStatus(StrEnum):
    """Where a tenant stands.

    One that is held is that, wherever it stands. One that has never been looked at is `unprovisioned` when nothing was
    ever provisioned for it, else `unreachable`: nobody knows more.
    """

    UP_TO_DATE = "up_to_date"
    PENDING = "pending"
    AHEAD = "ahead"
    PARTIAL = "partial"
    UNREACHABLE = "unreachable"
    UNPROVISIONED = "unprovisioned"
    HELD = "held"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was read of one tenant: its applied migrations, or why they could not be read."""

    applied: Applied | None = None
    error: ServiceError | None = None


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was read of some tenants by one session, by tenant id, and since when."""

    began: datetime
    seen: dict[str, Observation]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One tenant against the code: `detail` says why where there is no plan, or no good one."""

    tenant: Tenant
    status: TenantStatus
    applied: int = 0
    pending: int = 0
    unknown: tuple[str, ...] = ()
    detail: str = ""
    observed_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one set of applied migrations means to this code, whichever tenant stands there."""

    status: TenantStatus
    applied: int
    pending: int = 0
    unknown: tuple[str, ...] = ()
    detail: str = ""
    observed_at: datetime | None = None

    def standing(self, tenant: Tenant, *, partial: bool, observed_at: datetime | None = None) -> Standing:
        return Standing(
            tenant=tenant,
            status=status_of(tenant, TenantStatus.PARTIAL if partial else self.status),
            applied=self.applied,
            pending=self.pending,
            unknown=self.unknown,
            detail=tenant.hold_reason or self.detail,
            observed_at=observed_at,
        )


def status_of(tenant: Tenant, otherwise: TenantStatus) -> TenantStatus:
    return TenantStatus.HELD if tenant.held_at is not None else otherwise


def observe(tenants: Iterable[Tenant], *, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Observation]:
    """Read what each tenant has applied, by tenant id; creates nothing, and an unreachable tenant is no error.

    `meanwhile` is called while the servers are at it.
    """
    return {tenant_id: seen for look in looks(tenants, meanwhile=meanwhile) for tenant_id, seen in look.seen.items()}


def looks(tenants: Iterable[Tenant], *, meanwhile: Callable[[], None] = lambda: None) -> Iterator[Look]:
    """observe() part by part, as they come in: a server that says nothing holds up none of the others."""
    groups: defaultdict[str, list[Tenant]] = defaultdict(list)
    settings: dict[str, DatabaseSettings] = {}
    unread: dict[str, Observation] = {}
    for tenant in tenants:
        try:
            refuse_control_plane(tenant)
            home = backend_for(tenant).connection_settings(tenant)
        except ServiceError as error:
            unread[tenant.tenant_id] = Observation(error=error)
            continue
        key = repr(sorted((name, str(home.get(name))) for name in ("HOST", "PORT", "NAME", "USER", "OPTIONS")))
        settings[key] = home
        groups[key].append(tenant)
    if unread:
        yield Look(began=timezone.now(), seen=unread)
    with ThreadPoolExecutor(max_workers=load_conf().read_concurrency) as pool:
        parts = [(settings[key], part) for key in settings for part in _parts(groups[key])]
        reading = [pool.submit(_observe_database, *part) for part in parts]
        meanwhile()
        for done in as_completed(reading):
            yield done.result()


def _parts(tenants: Sequence[Tenant]) -> Iterator[Sequence[Tenant]]:
    sessions = max(ceil(len(tenants) / AT_ONCE), 2 if len(tenants) >= WORTH_TWO else 1)
    size = ceil(len(tenants) / sessions)
    for start in range(0, len(tenants), size):
        yield tenants[start : start + size]


def _observe_database(settings: DatabaseSettings, tenants: Sequence[Tenant]) -> Look:
    began = timezone.now()
    try:
        with server_cursor(settings) as cursor:
            return Look(began=began, seen=dict(_observe_schemas(cursor, tenants)))
    except ServiceError as error:
        return Look(began=began, seen={tenant.tenant_id: Observation(error=error) for tenant in tenants})


def _observe_schemas(cursor: CursorWrapper, tenants: Sequence[Tenant]) -> Iterator[tuple[str, Observation]]:
    # A table that somebody has locked must not keep the rest of the fleet from being seen.
    cursor.execute(
        "SELECT set_config('lock_timeout', %s, false); "
        "SELECT n.nspname, array_remove(array_agg(c.relname::text), NULL) FROM pg_namespace n LEFT JOIN pg_class c"
        " ON c.relnamespace = n.oid AND c.relname = ANY(%s) AND c.relkind IN ('r', 'p') WHERE n.nspname = ANY(%s)"
        " GROUP BY n.nspname",
        [LOCK_TIMEOUT, [TABLE, Tenant._meta.db_table], [tenant.schema_name for tenant in tenants]],
    )
    present: dict[str, list[str]] = dict(cursor.fetchall())
    recorded = [tenant.schema_name for tenant in tenants if TABLE in present.get(tenant.schema_name, [])]
    size = load_conf().read_batch
    read: dict[str, Observation] = {}
    sets: Sets = {}
    for start in range(0, len(recorded), size):
        read |= _read_batch(cursor, recorded[start : start + size], sets)
    for tenant in tenants:
        yield tenant.tenant_id, _observation(tenant, present.get(tenant.schema_name), read)


def _observation(tenant: Tenant, tables: list[str] | None, read: dict[str, Observation]) -> Observation:
    if tables is None:
        return Observation(error=NotProvisioned(f"The schema '{tenant.schema_name}' does not exist."))
    if Tenant._meta.db_table in tables:
        return Observation(error=IsControlPlane(f"Tenant '{tenant.tenant_id}' is a control plane."))
    return read.get(tenant.schema_name, Observation(applied=frozenset()))


def _read_batch(cursor: CursorWrapper, schemas: Sequence[str], sets: Sets) -> dict[str, Observation]:
    """The rows of each schema by one statement; where that fails, by one for each, so that only its cause goes without.

    A statement over all of a fleet has run out of locks: each schema in it costs some. Thousands of tenants stand at a
    few places: `sets` has what was read before.
    """
    parts = [APPLIED_SQL.format(sql.Literal(schema), sql.Identifier(schema, TABLE)) for schema in schemas]
    try:
        with translated():
            cursor.execute(sql.SQL("VALUES {}").format(sql.SQL(", ").join(parts)))
            found = cursor.fetchall()
    except ServerUnreachable:
        raise
    except ServiceError as error:
        if len(schemas) == 1:
            return {schemas[0]: Observation(error=error)}
        return {name: seen for schema in schemas for name, seen in _read_batch(cursor, [schema], sets).items()}
    return {schema: Observation(applied=_set(rows, sets)) for schema, rows in found}


def _set(rows: str, sets: Sets) -> Applied:
    if rows not in sets:
        sets[rows] = frozenset((app_label, name) for app_label, name in STRINGARRAY(rows, None))
    return sets[rows]


def standings(tenants: Sequence[Tenant], target: Target | None = None) -> list[Standing]:
    """Each tenant's standing in the order given; a plan is made once for all tenants that stand at the same place."""
    seen = observe(tenants)
    partial = partial_runs()
    plans: dict[tuple[str, str], Plan | PlanError] = {}
    return [_standing(tenant, seen[tenant.tenant_id], partial, plans, target or Target()) for tenant in tenants]


def _standing(
    tenant: Tenant,
    observation: Observation,
    partial: Mapping[str, int],
    plans: dict[tuple[str, str], Plan | PlanError],
    target: Target,
) -> Standing:
    if observation.applied is None:
        unprovisioned = isinstance(observation.error, NotProvisioned)
        status = TenantStatus.UNPROVISIONED if unprovisioned else TenantStatus.UNREACHABLE
        return Standing(
            tenant=tenant,
            status=status_of(tenant, status),
            detail=observation.error.message if observation.error else "",
        )
    applied = observation.applied
    place = place_of(plan_once(tenant, applied, plans, target), applied)
    return place.standing(tenant, partial=tenant.tenant_id in partial)


def place_of(plan: Plan | PlanError, applied: Applied) -> Place:
    if isinstance(plan, PlanError):
        return Place(status=TenantStatus.PENDING, applied=len(applied), detail=plan.message)
    status = TenantStatus.PENDING if plan.steps else TenantStatus.UP_TO_DATE
    if plan.unknown:
        status = TenantStatus.AHEAD
    return Place(status=status, applied=len(plan.applied), pending=len(plan.steps), unknown=plan.unknown)


def plan_once(
    tenant: Tenant, applied: Applied, plans: dict[tuple[str, str], Plan | PlanError], target: Target
) -> Plan | PlanError:
    kind = kind_of(tenant.isolation)
    key = (kind, fingerprint(applied))
    if key not in plans:
        plans[key] = try_plan(kind, applied, target)
    return plans[key]


def kind_of(isolation: str) -> str:
    """Schema and database tenants receive the same migrations; shared ones others."""
    return Isolation.SHARED if isolation == Isolation.SHARED else Isolation.SCHEMA


def try_plan(kind: str, applied: Applied, target: Target) -> Plan | PlanError:
    try:
        return plan_to(source_for(kind), applied, target)
    except PlanError as error:
        return error


def how_to_repair(run_id: int) -> str:
    return f"manage.py repairtenant --run={run_id}, or /runs/{run_id}/repair"


def partial_runs(tenant_ids: Collection[str] | None = None) -> dict[str, int]:
    """By tenant, the newest run that left it between two boundaries; one that never reached its tenant says nothing."""
    # From the few partial runs on: asking each tenant for its newest run would take as long as there are tenants.
    newer = MigrationRun.objects.filter(
        tenant=OuterRef("tenant"), pk__gt=OuterRef("pk"), applied_after__isnull=False
    ).order_by()
    partial = MigrationRun.objects.filter(~Exists(newer), state=RunState.PARTIAL).order_by()
    if tenant_ids is not None:
        partial = partial.filter(tenant__in=tenant_ids)
    return dict(partial.values_list("tenant_id", "pk"))


def plan_for(tenant: Tenant, target: Target) -> Plan:
    """The plan of one tenant, read and made without changing anything; raises PlanError or why it cannot be read."""
    observation = observe([tenant])[tenant.tenant_id]
    if observation.applied is None:
        raise observation.error or ServiceError()
    return plan_to(source_for(tenant.isolation), observation.applied, target)


def plans_for(tenants: Sequence[Tenant], target: Target) -> Iterator[tuple[Tenant, Plan | ServiceError]]:
    """Each tenant with its plan, or with why there is none; made once for all that stand at the same place."""
    seen = observe(tenants)
    plans: dict[tuple[str, str], Plan | PlanError] = {}
    for tenant in tenants:
        observation = seen[tenant.tenant_id]
        if observation.applied is None:
            yield tenant, observation.error or ServiceError()
        else:
            yield tenant, plan_once(tenant, observation.applied, plans, target)


@dataclass(frozen=True, kw_only=True)
class MigrationRecord:
    """One migration of a tenant's apps; `known` is False for one that is applied and not in this code.

    `run_id` is the run that applied it, as far as this service did.
    """

    app_label: str
    name: str
    applied: datetime | None
    known: bool
    run_id: int | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def migration_records(tenant: Tenant) -> list[MigrationRecord]:
    """Every migration on disk in the order of a full plan, then those only the tenant knows; raises why not.

    No plan is made: whoever looks why there is none has to see what is applied.
    """
    source, times = source_for(tenant.isolation), _applied_times(tenant)
    own = frozenset(key for key in times if key[0] in source.labels)
    loader = source.loader(own)
    records = [
        MigrationRecord(app_label=app, name=name, applied=_applied_at(loader, (app, name), times), known=True)
        for app, name in full_order(loader)
    ]
    records += [
        MigrationRecord(app_label=app, name=name, applied=times[app, name], known=False)
        for app, name in sorted(own - known_keys(source))
    ]
    return records


def _applied_times(tenant: Tenant) -> dict[Key, datetime]:
    refuse_control_plane(tenant)
    statement = sql.SQL("SELECT app, name, applied FROM {}").format(sql.Identifier(tenant.schema_name, TABLE))
    with server_cursor(backend_for(tenant).connection_settings(tenant)) as cursor:
        [(_, observation)] = _observe_schemas(cursor, [tenant])
        if observation.applied is None:
            raise observation.error or ServiceError()
        if not observation.applied:
            return {}
        cursor.execute(statement)
        return {(app, name): applied for app, name, applied in cursor.fetchall()}


def _applied_at(loader: TenantLoader, key: Key, times: dict[Key, datetime]) -> datetime | None:
    """A squashed migration counts from when the last one that it replaces was applied, as in showmigrations."""
    if key in times:
        return times[key]
    replaced = [tuple(item) for item in loader.graph.nodes[key].replaces]
    if replaced and all(item in times for item in replaced):
        return max(times[app_label, name] for app_label, name in replaced)
    return None
