"""Whatever is asked for, done, broken off and repaired, in whatever order: what is told of each tenant is true."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import pytest
from django.db import connection
from hypothesis import HealthCheck, Phase, strategies
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from migrations_api.exceptions import InvalidTransition, RepairImpossible, RunActive, TenantHeld
from migrations_api.models import AppliedSet, MigrationRun, Rollout, TenantObservation
from migrations_api.orchestrator import holds, rollout_verbs
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.advance import advance
from migrations_api.orchestrator.fleet import partial_runs, plan_for
from migrations_api.orchestrator.repairs import diagnosis_of, request_repair
from migrations_api.orchestrator.requests import Request, request_rollout, request_run
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.orchestrator.verbs import cancel_run, retry_run
from migrations_api.plan import Target
from migrations_api.states import ACTIVE_ROLLOUT_STATES, ROLLOUT_TRANSITIONS, RUN_TRANSITIONS
from tenants.backends import backend_for
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant
from tests import oracle, soak
from tests.forks import dying_worker, expire, join, work_on
from tests.processes import wait_until

EXAMPLES, STEPS = int(soak.sized(15, 400)), int(soak.sized(15, 30))
WHOLE = Target()
TARGETS = [WHOLE, *(Target(app_label="orders", migration_name=f"000{n}") for n in (1, 2, 3, 4))]
LEDGER = ("orders", "0002_ledger_entry")
CAREFUL = Strategy.from_dict({"canary": 1, "promotion": "manual"})

# PostgreSQL itself writes down each change of a state, whoever makes it.
WATCHED = """
CREATE TABLE moves (kind text, id bigint, state text, became text, attempt int, next_attempt int);
CREATE FUNCTION note_run() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO moves VALUES ('run', OLD.id, OLD.state, NEW.state, OLD.attempt, NEW.attempt); RETURN NEW; END $$;
CREATE FUNCTION note_rollout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO moves VALUES ('rollout', OLD.id, OLD.state, NEW.state, 0, 0); RETURN NEW; END $$;
CREATE TRIGGER note AFTER UPDATE ON migrations_api_migrationrun FOR EACH ROW
  WHEN (OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt) EXECUTE FUNCTION note_run();
CREATE TRIGGER note AFTER UPDATE ON migrations_api_rollout FOR EACH ROW
  WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION note_rollout();
"""
UNWATCHED = """
DROP TRIGGER note ON migrations_api_migrationrun; DROP TRIGGER note ON migrations_api_rollout;
DROP FUNCTION note_run; DROP FUNCTION note_rollout; DROP TABLE moves
"""
TABLES = {"run": RUN_TRANSITIONS, "rollout": ROLLOUT_TRANSITIONS}
number = strategies.integers(0, 2)
targets = strategies.sampled_from(TARGETS)
# Where a worker is killed: before the first statement with that text, or before one of its statements, by number.
deaths = strategies.sampled_from(["CONCURRENTLY", "ADD COLUMN", "VIEW"]) | strategies.integers(1, 120)
Death = int | str


@contextmanager
def watched() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute(WATCHED)
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(UNWATCHED)


def moves() -> list[tuple[str, str, str, int, int]]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT kind, state, became, attempt, next_attempt FROM moves")
        found: list[tuple[str, str, str, int, int]] = cursor.fetchall()
        cursor.execute("DELETE FROM moves")
    return found


def is_allowed(kind: str, state: str, became: str) -> bool:
    return state == became or any(state in row.sources and row.to == became for row in TABLES[kind].values())


class Service(RuleBasedStateMachine):
    """One to three tenants. Whoever works is killed at some statement or comes through; nobody works beside another."""

    stock: ClassVar[oracle.Boundaries]
    made: ClassVar[int] = 0
    ended: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.tenants: list[Tenant] = []
        self.goals: dict[int, oracle.Keys] = {}
        self.touched: set[str] = set()

    def teardown(self) -> None:
        self.ended.update(MigrationRun.objects.values_list("state", flat=True))
        self.ended["repairs"] += MigrationRun.objects.filter(repair_of__isnull=False, state="succeeded").count()
        self.ended["settled"] += MigrationRun.objects.filter(attempt__gt=1).count()
        for tenant in self.tenants:
            backend_for(tenant).drop(tenant)
        for model in (MigrationRun, Rollout, TenantObservation, AppliedSet, Tenant):
            model.objects.all().delete()
        moves()

    def tenant(self, n: int) -> Tenant:
        tenant = self.tenants[n % len(self.tenants)]
        self.touched.add(tenant.pk)
        tenant.refresh_from_db()
        return tenant

    def newest(self, n: int) -> MigrationRun | None:
        return MigrationRun.objects.filter(tenant=self.tenant(n)).order_by("-pk").first()

    def active(self, n: int, *states: str) -> MigrationRun | None:
        runs = MigrationRun.objects.active().filter(tenant=self.tenant(n))
        return runs.filter(state__in=states).first() if states else runs.first()

    @initialize(state=strategies.sampled_from([WHOLE, *TARGETS]), more=strategies.integers(0, 1))
    def begin(self, state: Target, more: int) -> None:
        """Somebody was here before."""
        for _ in range(1 + more):
            self.create()
        self.migrate(0, state)
        self.work(0)

    @precondition(lambda self: len(self.tenants) < 3)
    @rule()
    def create(self) -> None:
        Service.made += 1
        name = f"machine{Service.made}"
        self.tenants.append(create_tenant(tenant_id=name, name="", isolation=Isolation.SCHEMA, database="shop"))

    @precondition(lambda self: self.tenants)
    @rule(n=number, towards=targets)
    def plan(self, n: int, towards: Target) -> None:
        tenant = self.tenant(n)
        before = oracle.truth(tenant)
        self.goal(tenant, towards)
        assert oracle.truth(tenant) == before

    def goal(self, tenant: Tenant, target: Target) -> oracle.Keys | None:
        """Where the target leads; None if on the way stands something that stock Django was not asked for."""
        plan = plan_for(tenant, target)
        keys = frozenset(plan.applied)
        for step in plan.steps:
            key = {(step.app_label, step.name)}
            keys = keys - key if step.backwards else keys | key
            if keys not in self.stock:
                return None
        return keys

    @precondition(lambda self: self.tenants)
    @rule(
        n=number,
        towards=targets,
        death=strategies.none() | deaths,
        after=strategies.booleans(),
    )
    def migrate_at_once(self, n: int, towards: Target, death: Death | None, after: bool) -> None:
        self.migrate(n, towards)
        if death is None:
            self.work(n)
        else:
            self.kill(n, death, after)

    @precondition(lambda self: self.tenants)
    @rule(n=number, towards=targets)
    def migrate(self, n: int, towards: Target) -> None:
        tenant, active = self.tenant(n), self.active(n)
        if partial_runs([tenant.pk]):
            # It has to be repaired first.
            return
        if active is None and (goal := self.goal(tenant, towards)) is None:
            return
        request = Request(target=towards, via="api")
        if tenant.held_at is not None:
            with pytest.raises(TenantHeld):
                request_run(tenant, request)
        elif active is not None:
            with pytest.raises(RunActive):
                request_run(tenant, request)
        else:
            self.goals[request_run(tenant, request).pk] = goal

    @precondition(lambda self: self.tenants)
    @rule(n=number)
    def work(self, n: int) -> None:
        if run := self.active(n, "pending"):
            work_on(run.pk)

    @precondition(lambda self: self.tenants)
    @rule(n=number, death=deaths, after=strategies.booleans())
    def kill(self, n: int, death: Death, after: bool) -> None:
        if run := self.active(n, "pending"):
            (code,) = join(dying_worker(run.pk, statement=death, after=after))
            assert code in {0, -9}

    @precondition(lambda self: MigrationRun.objects.filter(state="running").exists())
    @rule()
    def reap(self) -> None:
        running = MigrationRun.objects.filter(state="running")
        self.touched |= set(running.values_list("tenant_id", flat=True))

        def is_settled() -> bool:
            for run in running.all():
                expire(run)
            settle_abandoned()
            return not running.all().exists()

        wait_until(is_settled)

    @precondition(lambda self: self.tenants)
    @rule(n=number)
    def cancel(self, n: int) -> None:
        run = self.newest(n)
        if run is None:
            return
        if run.is_active:
            cancel_run(run)
        else:
            with pytest.raises(InvalidTransition):
                cancel_run(run)

    @precondition(lambda self: self.tenants)
    @rule(n=number)
    def retry(self, n: int) -> None:
        run = self.newest(n)
        if run is None or run.app_label or run.repair_of_id or self.goal(run.tenant, WHOLE) is None:
            return
        with suppress(InvalidTransition, RunActive, TenantHeld):
            retry_run(run, by="ann")

    @precondition(lambda self: self.tenants)
    @rule(n=number)
    def hold(self, n: int) -> None:
        tenant = self.tenant(n)
        holds.hold(tenant, by="ann", reason="an audit")
        assert self.active(n, "pending") is None

    @precondition(lambda self: self.tenants)
    @rule(n=number)
    def release(self, n: int) -> None:
        if self.tenant(n).held_at is not None:
            holds.release(self.tenant(n))

    @precondition(lambda self: self.tenants)
    @rule()
    def roll_out(self) -> None:
        free = [each for each in self.tenants if not MigrationRun.objects.active().filter(tenant=each).exists()]
        if free and all(self.goal(each, WHOLE) is not None for each in free):
            self.touched |= {each.pk for each in free}
            request_rollout(self.tenants, Request(via="api"), strategy=CAREFUL)

    @precondition(lambda self: Rollout.objects.filter(state__in=ACTIVE_ROLLOUT_STATES).exists())
    @rule(death=strategies.none() | deaths)
    def advance(self, death: Death | None) -> None:
        for rollout in Rollout.objects.filter(state__in=ACTIVE_ROLLOUT_STATES):
            for run_id in advance(rollout, limit=2, lease=30):
                self.touched.add(MigrationRun.objects.get(pk=run_id).tenant_id)
                if death is None:
                    work_on(run_id)
                else:
                    join(dying_worker(run_id, statement=death, after=True))

    @precondition(lambda self: Rollout.objects.exists())
    @rule(verb=strategies.sampled_from(["pause", "resume", "promote", "cancel_rollout"]))
    def steer(self, verb: str) -> None:
        rollout = Rollout.objects.latest("pk")
        reason = {"reason": "a look"} if verb == "pause" else {}
        with suppress(InvalidTransition):
            getattr(rollout_verbs, verb)(rollout, **reason)

    @precondition(lambda self: MigrationRun.objects.filter(state="partial").exists())
    @rule(n=number, choice=number, death=strategies.none() | strategies.integers(1, 40))
    def repair(self, n: int, choice: int, death: int | None) -> None:
        partial = MigrationRun.objects.filter(state="partial")
        run = partial.order_by("-pk")[n % partial.count()]
        self.touched.add(run.tenant_id)
        try:
            ways = [way.name for way in diagnosis_of(run).ways if way.possible and way.name != "mark"]
        except (InvalidTransition, RepairImpossible):
            return
        if not ways or MigrationRun.objects.active().filter(tenant=run.tenant).exists():
            return
        asked = request_repair(run, ways[choice % len(ways)], reason="", by="ann", via="api")
        if death is None:
            work_on(asked.pk)
        else:
            join(dying_worker(asked.pk, statement=death, after=False))

    @invariant()
    def one_active_run_for_each_tenant(self) -> None:
        active = list(MigrationRun.objects.active().values_list("tenant_id", flat=True))
        assert len(active) == len(set(active))

    @invariant()
    def states_move_along_the_table_and_attempts_grow(self) -> None:
        for kind, state, became, attempt, following in moves():
            assert is_allowed(kind, state, became), (kind, state, became)
            assert following >= attempt

    @invariant()
    def what_is_told_is_true(self) -> None:
        for tenant in self.tenants:
            if tenant.pk in self.touched and not MigrationRun.objects.active().filter(tenant=tenant).exists():
                self.check(tenant)
        self.touched.clear()

    def check(self, tenant: Tenant) -> None:
        found = oracle.truth(tenant)
        assert len(found.rows) == len(found.applied)
        assert found.ledger == (LEDGER in found.applied)
        last = MigrationRun.objects.filter(tenant=tenant, applied_after__isnull=False).order_by("-pk").first()
        if last is None:
            assert not found.applied
            return
        assert last.applied_after is not None
        assert last.applied_after.keys == found.applied, last.state
        # Where nothing was begun, there may be not even Django's own table.
        if last.state != "partial" and (found.applied or found.catalog):
            assert (found.invalid, found.catalog) == ((), self.stock[found.applied]), last.state
        if last.state == "succeeded" and last.pk in self.goals:
            assert found.applied == self.goals[last.pk]
        if last.state != "partial" and not (last.app_label or last.repair_of_id):
            assert oracle.lies(last, found, self.stock) == []


@pytest.fixture
def stock(plane: None) -> oracle.Boundaries:
    """From nothing to the whole, and from nothing but the orders to the whole."""
    return {**oracle.boundaries(), **oracle.boundaries(("products", "0005_label_to_tag"), ("users", "0005_address"))}


def test_service__in_any_order(
    stock: oracle.Boundaries, settings: Any, record_property: Callable[[str, object], None]
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "attempts": 4, "lock_wait": 5}
    Service.stock = stock
    thorough = [Phase.explicit, Phase.reuse, Phase.generate, Phase.target]
    with watched():
        run_state_machine_as_test(
            Service,
            settings=hypothesis_settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                derandomize=not soak.IS_WHOLE,
                # Each try of a shrinker would take seconds; the steps that led there are printed as they are.
                phases=thorough,
                suppress_health_check=list(HealthCheck),
            ),
        )
    told = f"in {EXAMPLES} sequences of up to {STEPS} actions"
    soak.measured(record_property, "state machine: state equals oracle", "always", told)
