"""Register a fleet that another tool has made. What is found is only read; nothing in a tenant is ever touched here."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from migrations_api.exceptions import InvalidOptions, NotAdoptable
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.fleet import (
    Observation,
    Place,
    Standing,
    kind_of,
    observe,
    partial_runs,
    place_of,
    try_plan,
)
from migrations_api.plan import Target, fingerprint
from tenants import discovery, names
from tenants.backends import refuse_control_plane
from tenants.discovery import Found, TenantTable
from tenants.exceptions import InvalidName, IsControlPlane, NotProvisioned, TenantExists
from tenants.models import Isolation, Tenant
from tenants.servers import server_settings

# Why an adopted tenant is held; who has looked at the fleet releases all of them by this word.
ADOPTED: Final = "adopted"
SHOWN: Final = 20
# Of so many tenants at once, every applied migration is in memory.
AT_ONCE: Final = 2000


class Adoption(StrEnum):
    """What can be done with a schema or database that was found."""

    NEW = "new"
    ADOPTED = "adopted"
    REGISTERED = "registered"
    CONTROL_PLANE = "control_plane"
    SERVER_DATABASE = "server_database"
    NO_RECORD = "no_record"
    MISSING = "missing"
    UNREACHABLE = "unreachable"
    INVALID_NAME = "invalid_name"
    INVALID_ID = "invalid_id"
    TAKEN = "taken"


# Of these nothing can be registered for now, and the others can without them.
LEFT_OUT: Final = frozenset({Adoption.NO_RECORD, Adoption.MISSING, Adoption.UNREACHABLE})
# These say that it was asked for in a wrong way; with one of them, none is registered.
REFUSED: Final = frozenset({Adoption.INVALID_NAME, Adoption.INVALID_ID, Adoption.TAKEN})


@dataclass(frozen=True, kw_only=True)
class Search:
    """Where to look, and which ids the tenants get.

    `schemas` and `databases` are patterns as a shell has them (`*`, `?`, `[ab]`), and so are those of `exclude`. Of the
    three places to look just one is given. `id_pattern` is a template like TENANT_SCHEMA_TEMPLATE, which stands in for
    it where it is empty; with `fit_ids`, what a tenant id may not hold becomes a hyphen. With `without_record`, one in
    which no migration is recorded counts as a tenant, too: what another tool than Django's has made.
    """

    database: str
    schemas: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()
    table: TenantTable | None = None
    exclude: tuple[str, ...] = ()
    id_pattern: str = ""
    fit_ids: bool = False
    without_record: bool = False

    def __post_init__(self) -> None:
        if sum(map(bool, (self.schemas, self.databases, self.table))) != 1:
            raise InvalidOptions("Give either patterns of schemas, or patterns of databases, or a table.")
        if self.table and self.table.id_column and self.id_pattern:
            raise InvalidOptions("The ids come from a column of the table or from a pattern, not from both.")
        if self.id_pattern:
            names.fill_template(self.id_pattern, "acme")

    @property
    def isolation(self) -> str:
        return Isolation.DATABASE if self.databases else Isolation.SCHEMA


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`tenant` is not saved: what it is, or would be, registered as. `standing` is None where nobody has looked."""

    tenant: Tenant
    adoption: Adoption
    detail: str = ""
    standing: Standing | None = None

    @property
    def home(self) -> str:
        return self.tenant.database_name or self.tenant.schema_name


def find(search: Search) -> list[Finding]:
    """What is there, and where each stands; changes nothing anywhere.

    Raises InvalidOptions when nothing fits, InvalidName, ServerNotConfigured or what the server answers.
    """
    candidates = [_candidate(search, found) for found in _found(search)]
    checked = list(_checked(search, candidates))
    partial = partial_runs([each.tenant.tenant_id for each in checked if each.adoption == Adoption.REGISTERED])
    places: dict[tuple[str, str], Place] = {}
    looked: list[Finding] = []
    for start in range(0, len(checked), AT_ONCE):
        batch = checked[start : start + AT_ONCE]
        seen = observe([each.tenant for each in batch if each.adoption in {Adoption.NEW, Adoption.REGISTERED}])
        looked += [
            _looked_at(each, seen[each.tenant.tenant_id], partial, places) if each.tenant.tenant_id in seen else each
            for each in batch
        ]
    return looked if search.without_record else [_with_record(each) for each in looked]


def register(findings: Sequence[Finding], *, by: str, labels: Mapping[str, str] | None = None) -> list[Finding]:
    """Register those that are new, in one transaction and held: nothing migrates them until they are released.

    Returns the findings as they are now. Raises NotAdoptable, naming each that is in the way, or TenantExists when
    somebody else was faster; then nothing is registered.
    """
    if wrong := [each for each in findings if each.adoption in REFUSED]:
        raise NotAdoptable(_refusal(wrong))
    now = timezone.now()
    adopted: list[Tenant] = []
    for finding in findings:
        if finding.adoption == Adoption.NEW:
            tenant = copy(finding.tenant)
            tenant.labels = dict(labels or {})
            tenant.provisioned_at = tenant.held_at = now
            tenant.held_by, tenant.hold_reason = by, ADOPTED
            adopted.append(tenant)
    try:
        with transaction.atomic():
            Tenant.objects.bulk_create(adopted, batch_size=1000)
    except IntegrityError as error:
        raise TenantExists("Somebody else has just registered one of them; nothing was registered.") from error
    observations.refresh(adopted)
    return [replace(each, adoption=Adoption.ADOPTED) if each.adoption == Adoption.NEW else each for each in findings]


def _refusal(wrong: Sequence[Finding]) -> str:
    lines = [f"  {each.home!r}: {each.detail}" for each in wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        lines.append(f"  … and {len(wrong) - SHOWN} more")
    return "\n".join([f"Nothing was registered, since {len(wrong)} of what was found cannot be:", *lines])


def _found(search: Search) -> list[Found]:
    if search.table:
        found = discovery.listed(search.database, search.table)
    elif search.databases:
        found = discovery.databases(search.database)
    else:
        found = discovery.schemas(search.database)
    patterns = search.schemas or search.databases or ("*",)
    chosen = [each for each in found if _fits(each.home, patterns) and not _fits(each.home, search.exclude)]
    if not chosen:
        raise InvalidOptions(
            f"Nothing on server '{search.database}' fits. Patterns are those of a shell, such as 'tenant_*', in quotes."
        )
    return chosen


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _candidate(search: Search, found: Found) -> Finding:
    is_shared = search.isolation == Isolation.SCHEMA and found.home == "public"
    tenant = Tenant(
        isolation=Isolation.SHARED if is_shared else search.isolation,
        database=search.database,
        database_name=found.home if search.databases else "",
        schema_name="public" if search.databases else found.home,
    )
    finding = Finding(tenant=tenant, adoption=Adoption.NEW)
    try:
        tenant.tenant_id = _tenant_id(search, found, is_shared=is_shared)
        tenant.name = found.name or tenant.tenant_id
        names.validate_tenant_id(tenant.tenant_id)
    except InvalidName as error:
        return replace(finding, adoption=Adoption.INVALID_ID, detail=error.message)
    return finding


def _tenant_id(search: Search, found: Found, *, is_shared: bool) -> str:
    if search.table and search.table.id_column:
        text = found.tenant_id
    elif is_shared:
        return found.home
    else:
        text = _stem(search, found.home)
    return names.fitted_tenant_id(text) if search.fit_ids else text


def _stem(search: Search, home: str) -> str:
    if search.id_pattern:
        stem = names.tenant_id_in(search.id_pattern, home)
        if stem is None:
            raise InvalidName(f"{home!r} does not fit the pattern '{search.id_pattern}'.")
        return stem
    template = settings.TENANT_DATABASE_TEMPLATE if search.databases else settings.TENANT_SCHEMA_TEMPLATE
    return names.tenant_id_in(template, home) or home


def _checked(search: Search, candidates: Sequence[Finding]) -> Iterator[Finding]:
    """Each candidate against the others and against what is registered; three queries, however many there are."""
    whole_server = search.isolation == Isolation.DATABASE
    aliases = discovery.aliases_of(search.database, whole_server=whole_server)
    servers = {str(server_settings(alias)["NAME"]): alias for alias in reversed(aliases)} if whole_server else {}
    registered = {_home(row): row for row in Tenant.objects.filter(database__in=aliases)}
    ids = [each.tenant.tenant_id for each in candidates]
    taken = set(Tenant.objects.filter(pk__in=ids).values_list("pk", flat=True))
    doubles = Counter(ids), Counter(_home(each.tenant) for each in candidates)
    for each in candidates:
        if each.tenant.database_name in servers:
            alias = servers[each.tenant.database_name]
            yield replace(each, adoption=Adoption.SERVER_DATABASE, detail=f"It is that of server '{alias}' itself.")
        elif (row := registered.get(_home(each.tenant))) is not None and _same_home(row, each.tenant):
            yield _known(each, row)
        elif reason := _control_plane(each.tenant):
            yield replace(each, adoption=Adoption.CONTROL_PLANE, detail=reason)
        else:
            yield _judged(each, registered, taken, doubles)


def _home(tenant: Tenant) -> tuple[str, str]:
    """As the constraint on tenants compares homes."""
    return tenant.database_name.lower(), tenant.schema_name.lower()


def _same_home(one: Tenant, other: Tenant) -> bool:
    return (one.database_name, one.schema_name) == (other.database_name, other.schema_name)


def _control_plane(tenant: Tenant) -> str:
    """Why the tenant would be the control plane, as far as settings tell; before its id is found to be taken."""
    if tenant.isolation == Isolation.SHARED:
        try:
            refuse_control_plane(tenant)
        except IsControlPlane as error:
            return error.message
    return ""


def _known(finding: Finding, row: Tenant) -> Finding:
    differs = finding.adoption == Adoption.NEW and finding.tenant.tenant_id != row.tenant_id
    tenant = copy(row)
    # Where it stands is asked for, not that it is held.
    tenant.held_at, tenant.hold_reason = None, ""
    detail = f"It is registered as '{row.tenant_id}', not as '{finding.tenant.tenant_id}'." if differs else ""
    return replace(finding, tenant=tenant, adoption=Adoption.REGISTERED, detail=detail)


def _judged(
    finding: Finding,
    registered: Mapping[tuple[str, str], Tenant],
    taken: set[str],
    doubles: tuple[Counter[str], Counter[tuple[str, str]]],
) -> Finding:
    tenant, (ids, homes) = finding.tenant, doubles
    if not finding.home:
        return replace(finding, adoption=Adoption.MISSING, detail="The row names no schema.")
    try:
        _validate_names(tenant)
    except InvalidName as error:
        return replace(finding, adoption=Adoption.INVALID_NAME, detail=error.message)
    if finding.adoption != Adoption.NEW:
        return finding
    if tenant.tenant_id in taken:
        detail = f"Another tenant has the id '{tenant.tenant_id}'."
    elif ids[tenant.tenant_id] > 1:
        detail = f"{ids[tenant.tenant_id]} of what was found would get the id '{tenant.tenant_id}'."
    elif homes[_home(tenant)] > 1 or _home(tenant) in registered:
        detail = "It is there twice, or another name differs from it only in upper and lower case."
    else:
        return finding
    return replace(finding, adoption=Adoption.TAKEN, detail=detail)


def _validate_names(tenant: Tenant) -> None:
    if tenant.isolation == Isolation.DATABASE:
        names.validate_database_name(tenant.database_name)
    elif tenant.isolation == Isolation.SCHEMA:
        names.validate_schema_name(tenant.schema_name)
    names.validate_name(tenant.name)


def _looked_at(
    finding: Finding, seen: Observation, partial: Mapping[str, int], places: dict[tuple[str, str], Place]
) -> Finding:
    is_known = finding.adoption == Adoption.REGISTERED
    if seen.applied is None:
        adoption = _unseen(seen)
        detail = finding.detail or (seen.error.message if seen.error else "")
        return replace(finding, adoption=finding.adoption if is_known else adoption, detail=detail)
    kind, applied = kind_of(finding.tenant.isolation), seen.applied
    key = (kind, fingerprint(applied))
    if key not in places:
        places[key] = place_of(try_plan(kind, applied, Target()), applied)
    standing = places[key].standing(finding.tenant, partial=finding.tenant.tenant_id in partial)
    return replace(finding, standing=standing, detail=finding.detail or standing.detail)


def _with_record(finding: Finding) -> Finding:
    if finding.adoption != Adoption.NEW or finding.standing is None or finding.standing.applied:
        return finding
    return replace(finding, adoption=Adoption.NO_RECORD, detail="No migration of its apps is recorded there.")


def _unseen(seen: Observation) -> Adoption:
    if isinstance(seen.error, IsControlPlane):
        return Adoption.CONTROL_PLANE
    return Adoption.MISSING if isinstance(seen.error, NotProvisioned) else Adoption.UNREACHABLE
