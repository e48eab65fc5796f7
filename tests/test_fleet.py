from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql

from migrations_api.exceptions import ConflictingMigrations, InconsistentHistory
from migrations_api.models import MigrationRun
from migrations_api.orchestrator import fleet
from migrations_api.orchestrator.fleet import migration_records, observe, plan_for, plans_for, standings
from migrations_api.orchestrator.repairs import request_repair
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target
from tenants.exceptions import NotProvisioned, ServerError, ServerUnreachable, ServiceError
from tenants.models import Isolation, Tenant
from tests import catalog

MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]


def migrate(tenant: Tenant, app_label: str | None = None, name: str | None = None) -> None:
    run = request_run(tenant, Request(target=Target(app_label=app_label, migration_name=name)))
    work(run.pk, emit=lambda event: None, should_stop=lambda: False)


def record(tenant: Tenant, app_label: str, name: str) -> None:
    statement = sql.SQL("INSERT INTO {} (app, name, applied) VALUES (%s, %s, now())")
    table = sql.Identifier(tenant.schema_name, "django_migrations")
    catalog.query(catalog.tenant_dsn(tenant), statement.format(table), [app_label, name])


def make_unreachable(settings: Any, tenant_id: str = "lost") -> Tenant:
    shop = settings.TENANT_DATABASES["shop"]
    down = {**shop, "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "down": down}
    tenant = Tenant.at_home(tenant_id=tenant_id, isolation=Isolation.SCHEMA, name="Lost", database="down")
    tenant.save()
    return tenant


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many sessions the fleet is read by, and how many statements they execute."""
    counts = {"sessions": 0, "statements": 0}
    real = fleet.server_cursor

    def count(execute: Callable[..., Any], *arguments: Any) -> Any:
        counts["statements"] += 1
        return execute(*arguments)

    @contextmanager
    def counting(settings: dict[str, Any]) -> Iterator[Any]:
        counts["sessions"] += 1
        with real(settings) as cursor, cursor.db.execute_wrapper(count):
            yield cursor

    monkeypatch.setattr(fleet, "server_cursor", counting)
    return counts


@pytest.mark.parametrize(("read_batch", "reads"), [(1, 5), (2, 3), (5, 1), (200, 1)])
def test_observe__reads_schemas_in_batches(
    make_tenant: MakeTenant, settings: Any, counted: dict[str, int], read_batch: int, reads: int
) -> None:
    settings.TENANT_MIGRATIONS = {"read_batch": read_batch}
    tenants = [make_tenant(f"acme{number}") for number in range(5)]
    for tenant, name in zip(tenants, ["0001", "0002", "0001", "0003", "0004"], strict=True):
        migrate(tenant, "users", name)
    seen = observe(tenants)
    assert [len(seen[tenant.tenant_id].applied or ()) for tenant in tenants] == [1, 2, 1, 3, 4]
    assert counted == {"sessions": 1, "statements": 1 + reads}


def test_observe__costs_no_more_for_more_schemas(make_tenant: MakeTenant, counted: dict[str, int]) -> None:
    tenants = [make_tenant(f"acme{number}") for number in range(4)]
    for tenant in tenants:
        migrate(tenant, "users", "0001")
    costs = []
    for size in (1, 4):
        counted.update(sessions=0, statements=0)
        standings(tenants[:size])
        costs.append(dict(counted))
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ("schemas", "shares"),
    [(1, [1]), (149, [149]), (150, [75, 75]), (1000, [500, 500]), (2001, [667, 667, 667]), (4000, 4 * [1000])],
)
def test_observe__shares_many_schemas_of_a_database_between_sessions(schemas: int, shares: list[int]) -> None:
    tenants = [Tenant(tenant_id=f"t{number}") for number in range(schemas)]
    parts = list(fleet._parts(tenants))
    assert [len(part) for part in parts] == shares
    assert [tenant for part in parts for tenant in part] == tenants


def test_observe__takes_one_session_for_each_database(make_tenant: MakeTenant, counted: dict[str, int]) -> None:
    tenants = [make_tenant("acme"), make_tenant("globex", Isolation.DATABASE), make_tenant("shop", Isolation.SHARED)]
    observe(tenants)
    assert counted["sessions"] == 2


@pytest.mark.parametrize("read", [observe, standings, lambda tenants: list(plans_for(tenants, Target()))])
def test_reading__changes_nothing(make_tenant: MakeTenant, read: Callable[[Sequence[Tenant]], object]) -> None:
    tenants = [make_tenant("acme"), make_tenant("globex", Isolation.DATABASE), make_tenant("ghost", provision=False)]
    before = [catalog.fingerprint(catalog.tenant_dsn(tenant)) for tenant in tenants]
    there = catalog.schemas(catalog.tenant_dsn(tenants[0])), catalog.databases()
    read(tenants)
    assert [catalog.fingerprint(catalog.tenant_dsn(tenant)) for tenant in tenants] == before
    assert (catalog.schemas(catalog.tenant_dsn(tenants[0])), catalog.databases()) == there


def test_observe__of_a_tenant_without_a_table_of_migrations(make_tenant: MakeTenant) -> None:
    assert observe([make_tenant()])["acme"].applied == frozenset()


def test_observe__only_the_schema_of_the_tenant_itself(make_tenant: MakeTenant) -> None:
    empty, full = make_tenant("acme"), make_tenant("shop", Isolation.SHARED)
    migrate(full)
    seen = observe([empty, full])
    assert seen["acme"].applied == frozenset()
    assert len(seen["shop"].applied or ()) == 2


def test_observe__of_no_tenants(plane: None) -> None:
    assert observe([]) == {}
    assert standings([]) == []


def test_observe__tells_what_cannot_be_read_beside_the_rest(make_tenant: MakeTenant, settings: Any) -> None:
    tenants = [make_tenant("acme"), make_tenant("ghost", provision=False), make_unreachable(settings)]
    tenants.append(make_tenant("phantom", Isolation.DATABASE, provision=False))
    kinds = {tenant_id: type(each.error) for tenant_id, each in observe(tenants).items()}
    assert kinds == {
        "acme": type(None),
        "ghost": NotProvisioned,
        "lost": ServerUnreachable,
        "phantom": NotProvisioned,
    }


def test_standings__each_status(make_tenant: MakeTenant, settings: Any) -> None:
    tenants = {name: make_tenant(name) for name in ("ahead", "behind", "done", "torn")}
    for name in ("ahead", "done", "torn"):
        migrate(tenants[name])
    migrate(tenants["behind"], "users", "0002")
    record(tenants["ahead"], "users", "0099_future")
    MigrationRun.objects.filter(tenant_id="torn").update(state="partial")
    tenants["ghost"] = make_tenant("ghost", provision=False)
    tenants["lost"] = make_unreachable(settings)
    found = {each.tenant.tenant_id: each for each in standings(list(tenants.values()))}
    assert {name: str(each.status) for name, each in found.items()} == {
        "ahead": "ahead",
        "behind": "pending",
        "done": "up_to_date",
        "ghost": "unprovisioned",
        "lost": "unreachable",
        "torn": "partial",
    }
    assert found["ahead"].unknown == ("users.0099_future",)
    assert (found["behind"].applied, found["behind"].pending) == (2, 13)
    assert found["lost"].detail == "The database server refused the connection."
    assert "public_ghost" in found["ghost"].detail


def test_standings__come_in_the_order_given(make_tenant: MakeTenant) -> None:
    tenants = [make_tenant("globex"), make_tenant("acme", Isolation.DATABASE), make_tenant("initech")]
    assert [each.tenant for each in standings(tenants)] == tenants


def test_standings__partial_until_a_newer_run_succeeds(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    MigrationRun.objects.update(state="partial")
    assert standings([tenant])[0].status == "partial"
    run = MigrationRun.objects.get()
    marked = request_repair(run, "mark", reason="Seen to.", by="ann", via="command")
    work(marked.pk, emit=lambda event: None, should_stop=lambda: False)
    assert standings([tenant])[0].status == "pending"
    migrate(tenant)
    assert standings([tenant])[0].status == "up_to_date"


def test_standings__conflict_is_told_and_hides_no_other_kind(broken: Choose, make_tenant: MakeTenant) -> None:
    broken(orders="orders_conflict")
    acme, shared = standings([make_tenant("acme"), make_tenant("shop", Isolation.SHARED)])
    assert (acme.status, shared.status) == ("pending", "pending")
    assert "0003_channel, 0003_note in orders" in acme.detail
    assert (shared.detail, shared.pending) == ("", 2)


def test_plans_for__one_plan_for_all_that_stand_at_the_same_place(make_tenant: MakeTenant) -> None:
    tenants = [make_tenant("acme"), make_tenant("globex", Isolation.DATABASE), make_tenant("initech")]
    migrate(tenants[2], "users", "0001")
    plans = [plan for _, plan in plans_for(tenants, Target())]
    assert plans[0] is plans[1]
    assert plans[2] is not plans[0]


def test_plans_for__shared_tenants_have_plans_of_their_own(make_tenant: MakeTenant) -> None:
    tenants = [make_tenant("acme"), make_tenant("shop", Isolation.SHARED)]
    labels = []
    for _, plan in plans_for(tenants, Target()):
        assert not isinstance(plan, ServiceError)
        labels.append({step.app_label for step in plan.steps})
    assert labels == [{"users", "products", "orders"}, {"plans"}]


def test_plans_for__says_why_there_is_none(make_tenant: MakeTenant, settings: Any) -> None:
    torn = make_tenant("torn")
    migrate(torn, "users", "0001")
    record(torn, "users", "0003_full_name")
    tenants = [torn, make_tenant("ghost", provision=False), make_unreachable(settings)]
    kinds = [type(plan) for _, plan in plans_for(tenants, Target())]
    assert kinds == [InconsistentHistory, NotProvisioned, ServerUnreachable]


def test_plan_for__raises_why_there_is_none(broken: Choose, make_tenant: MakeTenant) -> None:
    with pytest.raises(NotProvisioned):
        plan_for(make_tenant("ghost", provision=False), Target())
    broken(orders="orders_conflict")
    with pytest.raises(ConflictingMigrations):
        plan_for(make_tenant(), Target())


def test_plan_for__is_the_plan_that_a_run_carries_out(tenant: Tenant) -> None:
    digest = plan_for(tenant, Target()).digest
    migrate(tenant)
    assert MigrationRun.objects.get().plan_digest == digest
    assert plan_for(tenant, Target()).steps == ()


def test_migration_records__applied_then_pending_then_unknown(tenant: Tenant) -> None:
    migrate(tenant, "users", "0002")
    record(tenant, "users", "0099_future")
    records = migration_records(tenant)
    assert len(records) == 16
    assert {each.name for each in records if each.applied} == {"0001_initial", "0002_email_unique", "0099_future"}
    assert [(each.app_label, each.name) for each in records if not each.known] == [("users", "0099_future")]
    assert records[-1].name == "0099_future"
    assert all(each.applied.tzinfo for each in records if each.applied)


def test_migration_records__are_read_in_one_session(make_tenant: MakeTenant, counted: dict[str, int]) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    assert migration_records(tenant)[0].applied
    assert counted["sessions"] == 1


def test_migration_records__of_a_table_that_is_locked_are_not_waited_for(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0001")
    with closing(psycopg2.connect(**catalog.tenant_dsn(tenant))) as other:
        other.cursor().execute("LOCK TABLE public_acme.django_migrations IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(ServerError, match="lock timeout"):
            migration_records(tenant)


def test_migration_records__squashed_counts_from_its_last_part(broken: Choose, make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "products")
    newest = max(each.applied for each in migration_records(tenant) if each.app_label == "products" and each.applied)
    broken(products="products_squashed")
    found = [each for each in migration_records(tenant) if each.app_label == "products"]
    assert [(each.name, each.applied) for each in found] == [("0001_squashed_0005_label_to_tag", newest)]


def test_migration_records__of_a_tenant_that_cannot_be_read(make_tenant: MakeTenant) -> None:
    with pytest.raises(NotProvisioned):
        migration_records(make_tenant("ghost", provision=False))


def test_observe__one_table_that_cannot_be_read_hides_no_other(make_tenant: MakeTenant) -> None:
    tenants = [make_tenant("acme"), make_tenant("globex"), make_tenant("initech")]
    for tenant in tenants:
        migrate(tenant, "users", "0001")
    catalog.query(
        catalog.tenant_dsn(tenants[1]), "ALTER TABLE public_globex.django_migrations RENAME COLUMN applied TO was"
    )
    seen = observe(tenants)
    assert [len(seen[tenant_id].applied or ()) for tenant_id in ("acme", "globex", "initech")] == [1, 0, 1]
    assert "UndefinedColumn" in str(seen["globex"].error)


def test_observe__one_table_that_is_locked_hides_no_other(make_tenant: MakeTenant) -> None:
    tenants = [make_tenant("acme"), make_tenant("globex")]
    for tenant in tenants:
        migrate(tenant, "users", "0001")
    with closing(psycopg2.connect(**catalog.tenant_dsn(tenants[1]))) as other:
        other.cursor().execute("LOCK TABLE public_globex.django_migrations IN ACCESS EXCLUSIVE MODE")
        seen = observe(tenants)
    assert seen["acme"].applied
    assert "lock timeout" in str(seen["globex"].error)


def test_migration_records__of_a_history_for_which_there_is_no_plan(broken: Choose, make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant, "users", "0003")
    statement = "DELETE FROM public_acme.django_migrations WHERE name = '0002_email_unique'"
    catalog.query(catalog.tenant_dsn(tenant), statement)
    broken(orders="orders_conflict")
    with pytest.raises(InconsistentHistory):
        plan_for(tenant, Target())
    records = migration_records(tenant)
    assert {each.name for each in records if each.applied} == {"0001_initial", "0003_full_name"}
    assert {"0003_channel", "0003_note"} < {each.name for each in records}
