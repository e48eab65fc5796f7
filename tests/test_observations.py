import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from migrations_api.executor import Options
from migrations_api.models import AppliedSet, MigrationRun, TenantObservation
from migrations_api.orchestrator import fleet as fleet_reads
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.fleet import TenantStatus, standings
from migrations_api.orchestrator.holds import hold
from migrations_api.orchestrator.observations import (
    NOT_YET,
    after_run,
    fleet_counts,
    fleet_plans,
    refresh,
    statuses_filter,
    stored_standings,
)
from migrations_api.orchestrator.repairs import request_repair
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target
from tenants.models import Isolation, Tenant

MakeTenant = Callable[..., Tenant]
CLOSED = {"ENGINE": "django.db.backends.postgresql", "NAME": "x", "HOST": "127.0.0.1", "PORT": "1", "USER": "x"}


def migrate(tenant: Tenant, app_label: str | None = None, name: str | None = None, **options: bool) -> MigrationRun:
    target = Target(app_label=app_label, migration_name=name)
    run = request_run(tenant, Request(target=target, options=Options(**options)))
    work(run.pk, emit=lambda event: None, should_stop=lambda: False)
    run.refresh_from_db()
    return run


def registered(number: int, **values: Any) -> list[Tenant]:
    """Rows alone, with nothing on a server."""
    given = {"isolation": Isolation.SCHEMA, "database": "shop", **values}
    rows = [Tenant(tenant_id=f"t{i}", name=f"T{i}", schema_name=f"t{i}", **given) for i in range(number)]
    return Tenant.objects.bulk_create(rows)


def looked_at(tenant: Tenant, *applied: tuple[str, str], **values: Any) -> TenantObservation:
    values.setdefault("observed_at", timezone.now())
    if not values.get("error_code"):
        values["applied_id"] = AppliedSet.store(frozenset(applied))
    return TenantObservation.objects.create(tenant=tenant, **values)


@pytest.fixture
def fleet(make_tenant: MakeTenant, settings: Any) -> dict[TenantStatus, str]:
    """One tenant of each status, by status, none of them looked at."""
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "gone": CLOSED}
    migrate(make_tenant("done"))
    migrate(make_tenant("half"), "orders", "0002")
    ahead = make_tenant("ahead")
    migrate(ahead)
    after = AppliedSet.objects.get(pk=TenantObservation.objects.get(tenant=ahead).applied_id).keys
    after_run("ahead", after | {("orders", "0099_future")}, partial=False)
    migrate(make_tenant("broken"))
    TenantObservation.objects.filter(tenant="broken").update(partial=True)
    [gone] = registered(1, database="gone", provisioned_at=timezone.now())
    Tenant.objects.create(tenant_id="empty", isolation=Isolation.SCHEMA, database="shop", schema_name="empty")
    hold(make_tenant("held"), by="ops", reason="Frozen.")
    return {
        TenantStatus.UP_TO_DATE: "done",
        TenantStatus.PENDING: "half",
        TenantStatus.AHEAD: "ahead",
        TenantStatus.PARTIAL: "broken",
        TenantStatus.UNREACHABLE: gone.tenant_id,
        TenantStatus.UNPROVISIONED: "empty",
        TenantStatus.HELD: "held",
    }


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def by_status() -> dict[TenantStatus, str]:
    found = stored_standings(Tenant.objects.all())
    return {standing.status: tenant_id for tenant_id, standing in found.items()}


def filtered() -> dict[TenantStatus, str]:
    """What the condition finds for each status, joined: a second tenant would show."""
    return {
        status: " ".join(Tenant.objects.filter(statuses_filter(status)).values_list("pk", flat=True))
        for status in TenantStatus
    }


def test_statuses__before_and_after_a_look(fleet: dict[TenantStatus, str]) -> None:
    """A tenant never looked at is unprovisioned or unreachable, as is one that cannot be looked at."""
    assert by_status() == filtered() == fleet
    assert stored_standings(Tenant.objects.filter(pk="empty"))["empty"].detail == NOT_YET

    refresh(Tenant.objects.filter(pk__in=["t0", "empty"]))

    assert by_status() == filtered() == fleet
    details = {key: standing.detail for key, standing in stored_standings(Tenant.objects.all()).items()}
    assert details["t0"] == "The database server refused the connection."
    assert details["empty"] == "The schema 'empty' does not exist."


def test_fleet_counts__are_those_of_the_standings(fleet: dict[TenantStatus, str]) -> None:
    counts = fleet_counts()
    assert counts.by_status == dict.fromkeys(map(str, TenantStatus), 1)
    assert (counts.total, counts.by_database, counts.starting_states) == (7, {"gone": 1, "shop": 6}, 3)
    oldest = TenantObservation.objects.order_by("observed_at")[0]
    assert counts.oldest_observation == oldest.observed_at


def test_fleet_counts__without_tenants(plane: None) -> None:
    counts = fleet_counts()
    assert (counts.total, counts.by_database, counts.oldest_observation) == (0, {}, None)
    assert set(counts.by_status.values()) == {0}


def test_stored__agrees_with_what_is_read(make_tenant: MakeTenant) -> None:
    migrate(make_tenant("acme"))
    migrate(make_tenant("globex", Isolation.DATABASE), "users")
    make_tenant("shop", Isolation.SHARED)
    TenantObservation.objects.all().delete()
    refresh()

    live = {standing.tenant.tenant_id: standing for standing in standings(list(Tenant.objects.all()))}
    stored = stored_standings(Tenant.objects.all())

    assert {key: (s.status, s.applied, s.pending, s.unknown) for key, s in stored.items()} == {
        key: (s.status, s.applied, s.pending, s.unknown) for key, s in live.items()
    }
    assert all(standing.observed_at for standing in stored.values())


def test_queries__are_as_many_for_one_tenant_as_for_a_thousand(plane: None, django_assert_num_queries: Any) -> None:
    tenants = registered(1000, provisioned_at=timezone.now())
    names = [f"000{number}_x" for number in range(5)]
    for number, tenant in enumerate(tenants):
        looked_at(tenant, ("orders", names[number % 5]))
    for some in (tenants[:1], tenants):
        observations._places.clear()
        with django_assert_num_queries(2):
            stored_standings(some)
        observations._places.clear()
        with django_assert_num_queries(2):
            fleet_counts()
        observations._places.clear()
        with django_assert_num_queries(3):
            assert Tenant.objects.filter(statuses_filter("ahead")).count() == 1000


def test_code_that_changes__changes_the_picture_at_once(make_tenant: MakeTenant, broken: Callable[..., None]) -> None:
    migrate(make_tenant())
    assert by_status() == {TenantStatus.UP_TO_DATE: "acme"}
    broken(orders="orders_failing_data")
    assert by_status() == {TenantStatus.AHEAD: "acme"}


def test_refresh__looks_only_at_what_is_old(plane: None) -> None:
    fresh, old, _ = registered(3)
    at = timezone.now() - timedelta(seconds=100)
    looked_at(fresh)
    looked_at(old, observed_at=at)

    assert refresh(older_than=60) == 2
    assert refresh(older_than=60) == 0
    assert refresh() == 3


def test_due__those_never_looked_at_come_first(plane: None) -> None:
    old, new, _ = registered(3)
    looked_at(new, observed_at=timezone.now() - timedelta(seconds=100))
    looked_at(old, observed_at=timezone.now() - timedelta(seconds=200))
    assert [tenant.pk for tenant in observations.due(60)] == ["t2", "t0", "t1"]


def test_refresh__takes_as_many_queries_for_many_schemas_as_for_few(
    plane: None, settings: Any, monkeypatch: Any, django_assert_num_queries: Any
) -> None:
    """And one session with their server, whatever one statement reads."""
    settings.TENANT_MIGRATIONS = {"read_batch": 30}
    homes = []
    opened = fleet_reads.server_cursor
    monkeypatch.setattr(fleet_reads, "server_cursor", lambda home: homes.append(home["NAME"]) or opened(home))
    tenants = registered(140, provisioned_at=timezone.now())
    for some in (tenants[:2], tenants):
        homes.clear()
        with django_assert_num_queries(1):
            assert refresh(some) == len(some)
        assert len(homes) == 1
    assert set(TenantObservation.objects.values_list("error_code", flat=True)) == {"unprovisioned"}


def test_refresh__a_silent_server_keeps_no_other_tenant_waiting(
    make_tenant: MakeTenant, settings: Any, silent_port: int
) -> None:
    make_tenant("acme", Isolation.DATABASE)
    silent = {**CLOSED, "PORT": str(silent_port)}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "silent": silent}
    settings.TENANT_MIGRATIONS = {"connect_timeout": 2}
    registered(1, database="silent")
    found = fleet_reads.looks(Tenant.objects.order_by("-pk"))
    assert next(found).seen.keys() == {"acme"}
    assert next(found).seen["t0"].error is not None


def test_refresh__a_slow_look_does_not_replace_a_newer_one(make_tenant: MakeTenant, monkeypatch: Any) -> None:
    """A run that ends while its tenant is being looked at knows better."""
    tenant = make_tenant()
    read = observations.looks

    def overtaken(tenants: list[Tenant]) -> Any:
        seen = list(read(tenants))
        migrate(tenant)
        return seen

    monkeypatch.setattr(observations, "looks", overtaken)
    refresh()

    assert by_status() == {TenantStatus.UP_TO_DATE: "acme"}


def test_refresh__a_tenant_forgotten_meanwhile_spoils_nothing(plane: None, monkeypatch: Any) -> None:
    registered(2)
    read = observations.looks

    def forgetful(tenants: list[Tenant]) -> Any:
        seen = list(read(tenants))
        Tenant.objects.filter(pk="t0").delete()
        return seen

    monkeypatch.setattr(observations, "looks", forgetful)
    refresh()

    assert list(TenantObservation.objects.values_list("pk", flat=True)) == ["t1"]


def test_run__is_in_the_picture_when_it_ends(make_tenant: MakeTenant) -> None:
    run = migrate(make_tenant(), "orders", "0002")
    seen = TenantObservation.objects.get()
    assert (seen.applied_id, seen.error_code, seen.partial) == (run.applied_after_id, "", False)


def test_run__half_done_is_partial_until_another_ends_well(
    make_tenant: MakeTenant, broken: Callable[..., None]
) -> None:
    broken(orders="orders_failing_nonatomic")
    tenant = make_tenant("globex")
    assert migrate(tenant).state == "partial"
    assert by_status() == {TenantStatus.PARTIAL: "globex"}

    refresh()
    assert by_status() == {TenantStatus.PARTIAL: "globex"}

    run = MigrationRun.objects.get()
    marked = request_repair(run, "mark", reason="Seen to.", by="ann", via="command")
    work(marked.pk, emit=lambda event: None, should_stop=lambda: False)
    assert TenantStatus.PARTIAL not in by_status()


def test_fleet_plans__one_for_each_starting_state(make_tenant: MakeTenant) -> None:
    for tenant_id in ("acme", "globex"):
        migrate(make_tenant(tenant_id), "users", "0004")
    make_tenant("new")
    refresh()
    registered(1)

    found = fleet_plans(Target(app_label="users"))

    assert [(group.tenant_ids, len(group.plan.steps)) for group in found.groups] == [
        (["acme", "globex"], 1),
        (["new"], 5),
    ]
    assert [(each.tenant_id, each.code, each.detail) for each in found.problems] == [("t0", "unprovisioned", NOT_YET)]


def test_fleet_plans__tenants_without_a_plan_are_named(make_tenant: MakeTenant, broken: Callable[..., None]) -> None:
    make_tenant()
    refresh()
    broken(orders="orders_conflict")
    found = fleet_plans(Target())
    assert found.groups == []
    assert [(each.tenant_id, each.code) for each in found.problems] == [("acme", "conflicting_migrations")]
