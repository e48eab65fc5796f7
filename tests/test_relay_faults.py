"""Faults at each statement of a session that is passed on: what the run says is so, and nothing is done twice."""

import os
import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import pytest
from django.conf import settings as configured
from django.db import migrations
from psycopg2 import sql

from migrations_api.models import MigrationRun
from migrations_api.states import RunState
from tenants.models import Tenant
from tests import catalog, faults, soak
from tests.faults import Case, Fault, nothing
from tests.processes import wait_until
from tests.proxy import Moment, Proxy, proxy
from tests.small_app import Code, MakeTenant, add_field, migrate, migration, query, standing_at_first


def add_order(apps: Any, editor: Any) -> None:
    apps.get_model("orders", "Order").objects.create(number="made")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Two migrations, and what a worker says to the tenants' server of its first tenant, and of the next one."""

    last: tuple[Any, ...]
    new: int
    passed_on: int
    # What each migration makes.
    made: dict[str, set[str]]


PLANS: Final = {
    "script": Plan(last=(add_field("size"),), new=8, passed_on=5, made={"m2": {"one", "two"}, "m3": {"size"}}),
    "code": Plan(
        last=(add_field("size"), migrations.RunPython(add_order)),
        new=17,
        passed_on=12,
        made={"m2": {"one", "two"}, "m3": {"size", "made"}},
    ),
}
KINDS: Final[dict[str, Callable[..., Fault]]] = {
    "killed": faults.killed,
    "cut": faults.cut,
    "ended by the server": faults.ended_by_server,
    "paused": faults.paused,
}
CASES: Final = [
    (name, kind, moment, nth)
    for name, plan in PLANS.items()
    for kind, moment, nth in product(KINDS, Moment, range(1, plan.new + plan.passed_on + 1))
]
# So that several processes can share the work.
PARTS: Final = 4 if soak.IS_WHOLE else 1
INJECTIONS: Final = int(soak.sized(6, len(CASES)))
ALL: Final = ["0001_initial", "m2", "m3"]


@dataclass(kw_only=True)
class Relayed(Case):
    """Of an app with two migrations; `first` is the tenant that the session comes from."""

    plan: Plan
    first: Tenant | None

    def start(self, **options: Any) -> None:
        super().start(prepare=self._serve_first, **options)

    def _serve_first(self) -> None:
        if self.first is not None:
            migrate(self.first)

    def judge(self) -> None:
        run = MigrationRun.objects.select_related("applied_after").get(pk=self.run.pk)
        self.judged += 1
        self.states.append(run.state)
        for text in lies(run, self.tenant, self.plan):
            has_succeeded = run.state == RunState.SUCCEEDED
            has_failed = run.state in {RunState.FAILED, RunState.PARTIAL}
            told = faults.Lie(
                run_id=run.pk,
                state=run.state,
                text=f"{text}; {run.error_code} in {run.failed_step}: {run.message}",
                false_success=has_succeeded,
                false_failure=has_failed,
            )
            self.lies.append(told)

    def carry_on(self, heal: Callable[[], None] = nothing) -> None:
        self.settle()
        self.judge()
        heal()
        for _ in range(4):
            if self.run.state == RunState.PENDING:
                self._work()
            elif self.run.state != RunState.SUCCEEDED:
                self.run = self._next()
        assert self.run.state == RunState.SUCCEEDED, f"{self.run.state}: {self.run.message}"


def recorded(tenant: Tenant) -> list[str]:
    return [name for (name,) in query(tenant, "SELECT name FROM django_migrations ORDER BY id")]


def made(tenant: Tenant) -> set[str]:
    columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'orders_order'::regclass AND NOT attisdropped"
    orders = "SELECT number FROM orders_order"
    return {name for (name,) in query(tenant, f"{columns} UNION ALL {orders}")} & {"one", "two", "size", "made"}


def lies(run: MigrationRun, tenant: Tenant, plan: Plan) -> list[str]:
    """What is not so of the tenant, or is not what the run says of it."""
    rows = recorded(tenant)
    applied = set(rows) - {"0001_initial"}
    done = {step.name for step in run.steps.all() if step.state == "done"}
    after = run.applied_after.keys if run.applied_after else None
    expected: set[str] = set().union(*(plan.made[name] for name in applied))
    claims = {
        f"one row for each: {rows}": rows == ALL[: len(rows)],
        f"recorded is what is there: {rows}, {made(tenant)}": made(tenant) == expected,
        f"its steps: {done} of {rows}": done == applied,
        f"what is applied now: {after} of {rows}": after is None or {name for _, name in after} == set(rows),
        f"it has ended, or is carried on with: {run.state}": not run.is_active or run.state == RunState.PENDING,
        "it is not between two migrations": run.state != RunState.PARTIAL,
        f"succeeded: {rows}": run.state != RunState.SUCCEEDED or rows == ALL,
        f"not succeeded: {rows}": run.state not in {RunState.FAILED, RunState.PARTIAL} or rows != ALL,
    }
    return [claim for claim, holds in claims.items() if not holds]


Known = Callable[[int, Plan], list[Tenant]]


@pytest.fixture
def shop(plane: None, settings: Any) -> Iterator[Proxy]:
    settings.TENANT_MIGRATIONS = dict(faults.IMPATIENT)
    with proxy(settings.TENANT_DATABASES["shop"]) as shop:
        yield shop


@pytest.fixture
def known(make_tenant: MakeTenant, code: Code) -> Known:
    """So many tenants that stand at the first migration, when two others have gone through the rest."""

    def make(count: int, plan: Plan) -> list[Tenant]:
        code(m2=migration("m2", add_field("one"), add_field("two")), m3=migration("m3", *plan.last, after="m2"))
        tenants = standing_at_first(make_tenant, count + 2)
        assert [migrate(tenant).state for tenant in tenants[:2]] == ["succeeded"] * 2
        return tenants[2:]

    return make


def case_of(tenants: Iterator[Tenant], shop: Proxy, plan: Plan, *, is_new: bool) -> Relayed:
    first = None if is_new else next(tenants)
    dice = random.Random(1)  # noqa: S311 - a test's dice
    return Relayed(tenant=next(tenants), proxy=shop, plane=shop, random=dice, boundaries={}, plan=plan, first=first)


def advisory_locks() -> int:
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
    held += " (SELECT oid FROM pg_database WHERE datname = current_database())"
    [(count,)] = catalog.query(catalog.dsn(configured.TENANT_DATABASES["shop"]), held)
    return int(count)


def others(*tenants: Tenant) -> list[Any]:
    """The columns of every other schema of the tenants' database, and what is recorded there."""
    server = catalog.dsn(configured.TENANT_DATABASES["shop"])
    columns = catalog.query(
        server,
        "SELECT n.nspname, c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_|^information_schema$'"
        " AND n.nspname <> ALL(%s) ORDER BY 1, 2, 3",
        [[tenant.schema_name for tenant in tenants]],
    )
    tables = {schema for schema, table, _ in columns if table == "django_migrations"}
    each = sql.SQL("SELECT {}, id, name FROM {}")
    rows = sql.SQL(" UNION ALL ").join(
        each.format(sql.Literal(schema), sql.Identifier(schema, "django_migrations")) for schema in tables
    )
    return [*columns, *sorted(catalog.query(server, rows))]


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_faults__are_of_every_statement(known: Known, shop: Proxy, plan: Plan, is_new: bool) -> None:
    case = case_of(iter(known(2, plan)), shop, plan, is_new=is_new)
    case.start()
    case.wait()
    assert case.run.state == RunState.SUCCEEDED
    said = shop.statements[0 if is_new else plan.new :]
    assert len(said) == (plan.new if is_new else plan.passed_on), said
    # What it was told to be, a message for each that has no code, and as new again.
    assert sum("set_config('search_path'" in each for each in said) == 1
    assert sum("ADD COLUMN" in each and "INSERT INTO" in each for each in said) == (1 if plan is PLANS["code"] else 2)
    assert said[-1] == "DISCARD ALL"


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_lost__behind_the_last_migration(known: Known, shop: Proxy, plan: Plan, is_new: bool) -> None:
    """The run that has applied them says so, though its session is lost before it could look."""
    case = case_of(iter(known(2, plan)), shop, plan, is_new=is_new)
    assert inject(case, faults.cut("^SELECT app, name", Moment.BEFORE, nth=2 if is_new else 4)) == []


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_faults__at_any_statement(
    known: Known, shop: Proxy, record_property: Callable[[str, object], None], part: int, name: str
) -> None:
    seed = int(os.environ.get("FAULT_SEED") or secrets.randbelow(10**6))
    chance, sums, plan = random.Random(seed), Counter[str](), PLANS[name]  # noqa: S311 - a test's dice
    cases = [each for each in CASES if each[0] == name]
    mine = cases[part - 1 :: PARTS]
    chosen = chance.sample(mine, min(len(mine), INJECTIONS // PARTS))
    tenants = iter(known(sum(1 if nth <= plan.new else 2 for *_, nth in chosen), plan))
    failures: list[str] = []
    for _, kind, moment, nth in chosen:
        case = case_of(tenants, shop, plan, is_new=nth <= plan.new)
        found = inject(case, KINDS[kind]("", moment, nth=nth))
        failures += [f"{kind}, {moment} statement {nth}: {each}" for each in found]
        sums.update(summed(case))
    which = f"relayed {name}, part {part} of {PARTS}"
    told = (
        (f"{which}: faults injected", f"{len(cases)} in all", f"{sums['injected']}"),
        (f"{which}: false successes", "0", f"{sums['false successes']}"),
        (f"{which}: false failures", "0", f"{sums['false failures']}"),
        (f"{which}: told is so", "100 %", f"{1 - sums['lied'] / sums['judged']:.2%} of {sums['judged']}"),
    )
    for goal, figure, measured in told:
        soak.measured(record_property, goal, figure, measured)
    assert not failures, "\n".join([f"FAULT_SEED={seed}", *failures])
    assert sums["injected"] == len(chosen)


def inject(case: Relayed, fault: Fault) -> list[str]:
    """One fault into one run of the tenant; returns what was found to be wrong."""
    concerned = [tenant for tenant in (case.tenant, case.first) if tenant is not None]
    before = others(*concerned)
    wrong = []
    try:
        fault(case)
        wait_until(lambda: advisory_locks() == 0)
    except Exception as error:  # noqa: BLE001 - one that goes wrong is told of, and the others are tried
        wrong.append(f"{type(error).__name__}: {error}")
    finally:
        case.end()
    wrong += [lie.text for lie in case.lies]
    wrong += [f"{each} stands at {recorded(each)}" for each in concerned if recorded(each) != ALL]
    wrong += ["another tenant has changed"] if others(*concerned) != before else []
    return wrong


def summed(case: Relayed) -> dict[str, int]:
    return {
        "injected": int(case.injected),
        "judged": case.judged,
        "lied": len({(lie.run_id, lie.state) for lie in case.lies}),
        "false successes": sum(lie.false_success for lie in case.lies),
        "false failures": sum(lie.false_failure for lie in case.lies),
    }
