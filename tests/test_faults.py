"""Whatever befalls a run, what it says is so, nothing is done twice, and somebody can go on."""

import logging
import os
import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.conf import settings as configured
from django.db import connections
from rest_framework.test import APIClient

from migrations_api.models import MigrationRun
from migrations_api.orchestrator.requests import Request, request_rollout
from tenants.models import Tenant
from tests import catalog, faults, fleets, oracle, roles, soak
from tests.faults import Case, Fault
from tests.http_api import carry_out
from tests.proxy import Proxy, proxy

logger = logging.getLogger(__name__)
MakeTenant = Callable[..., Tenant]
BYSTANDER = """
CREATE SCHEMA bystander;
CREATE TABLE bystander.customers (name text);
INSERT INTO bystander.customers VALUES ('ada'), ('grace');
"""
# Of the control plane, what the runs themselves are about.
OWN = ("migrations_api_", "tenants_")


@pytest.fixture
def proxies(plane: None, settings: Any, broken: Callable[..., None]) -> Iterator[tuple[Proxy, Proxy]]:
    """Those before the tenants' server and before the control plane."""
    broken(**faults.PACKAGES)
    settings.TENANT_MIGRATIONS = dict(faults.IMPATIENT)
    control_plane = settings.DATABASES["default"]
    impatient = {**control_plane, "OPTIONS": {**control_plane["OPTIONS"], "connect_timeout": 2}}
    with proxy(settings.TENANT_DATABASES["shop"]) as shop, proxy(impatient) as plane_proxy:
        yield shop, plane_proxy


@pytest.fixture
def bystander(plane: None) -> Iterator[None]:
    """What a fault must not change: another schema of the tenants' database, and the control plane."""
    shop = catalog.dsn(configured.TENANT_DATABASES["shop"])
    catalog.query(shop, BYSTANDER)
    try:
        yield
    finally:
        catalog.query(shop, "DROP SCHEMA bystander CASCADE")


def outside(*tenants: Tenant) -> list[Any]:
    """All but the tenants themselves, and what the control plane says of them."""
    mine = {tenant.schema_name for tenant in tenants}
    shop = catalog.fingerprint(catalog.dsn(configured.TENANT_DATABASES["shop"]))
    control_plane = catalog.fingerprint(catalog.dsn(configured.DATABASES["default"]))
    counted = [each for each in control_plane if not (len(each) == 3 and each[1].startswith(OWN))]
    return [each for each in shop if each[0] not in mine] + counted


@pytest.fixture
def case(make_tenant: MakeTenant, proxies: tuple[Proxy, Proxy], bystander: None) -> Iterator[Case]:
    """A tenant with a pending run; what is not its own is the same afterwards."""
    tenant = make_tenant()
    faults.begun(tenant)
    before = outside(tenant)
    boundaries = oracle.boundaries(**faults.PACKAGES)
    shop, plane = proxies
    case = Case(tenant=tenant, proxy=shop, plane=plane, random=random.Random(1), boundaries=boundaries)  # noqa: S311 - a test's dice
    yield case
    case.end()
    assert outside(tenant) == before


def judge(case: Case, fault: Fault) -> None:
    fault(case)
    assert case.lies == []
    assert case.injected


@pytest.mark.parametrize("fault", faults.CRASH_POINTS.values(), ids=faults.CRASH_POINTS)
def test_killed(case: Case, fault: Fault) -> None:
    judge(case, fault)


@pytest.mark.parametrize("fault", faults.CONNECTIONS.values(), ids=faults.CONNECTIONS)
def test_connection(case: Case, fault: Fault) -> None:
    judge(case, fault)


@pytest.mark.parametrize("fault", faults.PAUSES.values(), ids=faults.PAUSES)
def test_paused(case: Case, fault: Fault) -> None:
    judge(case, fault)


@pytest.mark.parametrize("fault", faults.SERVERS.values(), ids=faults.SERVERS)
def test_server(case: Case, fault: Fault) -> None:
    judge(case, fault)


@pytest.mark.parametrize("fault", faults.MIGRATIONS.values(), ids=faults.MIGRATIONS)
def test_migration(case: Case, fault: Fault) -> None:
    judge(case, fault)


@pytest.mark.parametrize("fault", faults.PLANE.values(), ids=faults.PLANE)
def test_control_plane(case: Case, fault: Fault) -> None:
    judge(case, fault)


def test_fleet__some_of_whose_servers_cannot_be_reached(
    make_tenant: MakeTenant, proxies: tuple[Proxy, Proxy], settings: Any
) -> None:
    """Each of those tenants fails for itself and stays as it was; the others are migrated."""
    shop = settings.TENANT_DATABASES["shop"]
    nowhere = {**shop, "HOST": "tenants.invalid", "OPTIONS": {}}
    closed = {**shop, "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    tenants = {alias: make_tenant(alias) for alias in ("shop", "nowhere", "closed", "wrong", "also")}
    for alias, tenant in tenants.items():
        faults.begun(tenant)
        if alias != "also":
            Tenant.objects.filter(pk=tenant.pk).update(database=alias)
    with roles.role() as user:
        wrong = {**user, "PASSWORD": "wrong"}
        settings.TENANT_DATABASES = {"shop": shop, "nowhere": nowhere, "closed": closed, "wrong": wrong}
        rollout = request_rollout(Tenant.objects.all(), Request(via="api"))
        for run in rollout.runs.order_by("tenant_id"):
            carry_out(run.pk)
        found = {run.tenant_id: (run.state, run.error_code) for run in rollout.runs.all()}
    settings.TENANT_DATABASES = {"shop": shop}

    assert found == {
        "also": ("succeeded", ""),
        "shop": ("succeeded", ""),
        "nowhere": ("failed", "unreachable"),
        "closed": ("failed", "unreachable"),
        "wrong": ("failed", "authentication_failed"),
    }
    boundaries = oracle.boundaries(**faults.PACKAGES)
    truths = {tenant_id: oracle.truth(tenant) for tenant_id, tenant in tenants.items()}
    runs = {run.tenant_id: run for run in rollout.runs.all()}
    assert [lie for each, truth in truths.items() for lie in oracle.lies(runs[each], truth, boundaries)] == []
    assert {truth.ledger for truth in truths.values()} == {1}


def test_posts__many_at_once_for_one_tenant(make_tenant: MakeTenant, operator: APIClient) -> None:
    """One of them gets a run, and everybody else is told which."""
    tenant = make_tenant()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: _post(operator), range(16)))
    run = MigrationRun.objects.get()
    assert sorted(status for status, _ in answers) == [202] + [409] * 15
    assert {told for _, told in answers} == {run.pk}
    assert carry_out(run.pk).state == "succeeded"
    assert oracle.truth(tenant).ledger == 1


def _post(client: APIClient) -> tuple[int, int]:
    try:
        response = client.post("/tenants/acme/migrate")
        body = response.json()
        return response.status_code, body.get("run_id") or body["id"]
    finally:
        connections.close_all()


FLEET = 20
# So that several processes can share the work.
PARTS = 4 if soak.IS_WHOLE else 1
INJECTIONS = int(soak.sized(6, 1000)) // PARTS


@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_soak__faults_by_chance(
    proxies: tuple[Proxy, Proxy], bystander: None, record_property: Callable[[str, object], None], part: int
) -> None:
    seed = int(os.environ.get("FAULT_SEED") or secrets.randbelow(10**6))
    chance, sums = random.Random(seed), Counter[str]()  # noqa: S311 - a test's dice
    failures: list[str] = []
    while sums["injected"] < INJECTIONS:
        fleet = min(FLEET, INJECTIONS)
        with fleets.fleet(fleets.named(f"soak{sums['tenants']}-", fleet)) as tenants:
            for tenant in tenants:
                faults.begun(tenant)
            before = outside(*tenants)
            for tenant in tenants:
                failures += inject(tenant, proxies, chance, sums)
            sums["outside"] += outside(*tenants) != before
    told = (
        (f"faults injected, part {part} of {PARTS}", "1000 in all", f"{sums['injected']}, seed {seed}"),
        (f"false successes, part {part}", "0", f"{sums['false successes']}"),
        (f"false failures, part {part}", "0", f"{sums['false failures']}"),
        (f"state equals oracle, part {part}", "100 %", f"{1 - sums['lied'] / sums['judged']:.2%} of {sums['judged']}"),
        (f"changes outside the tenant, part {part}", "0", f"{sums['outside']}"),
    )
    for goal, figure, found in told:
        soak.measured(record_property, goal, figure, found)
    assert failures == [], f"FAULT_SEED={seed}"
    assert sums["outside"] == 0


def inject(tenant: Tenant, proxies: tuple[Proxy, Proxy], chance: random.Random, sums: Counter[str]) -> list[str]:
    """One fault by chance into one run of the tenant; returns what was found to be wrong."""
    name, fault = faults.drawn(chance)
    shop, plane = proxies
    boundaries = oracle.boundaries(**faults.PACKAGES)
    case = Case(tenant=tenant, proxy=shop, plane=plane, random=chance, boundaries=boundaries)
    wrong = []
    logger.info("%s injected; now %s", sums["injected"], name)
    try:
        fault(case)
    except Exception as error:  # noqa: BLE001 - one that goes wrong is told of, and the others are tried
        wrong.append(f"{name}: {type(error).__name__}: {error}")
    finally:
        case.end()
    sums.update(
        {
            "tenants": 1,
            "injected": int(case.injected),
            "judged": case.judged,
            "lied": len({(lie.run_id, lie.state) for lie in case.lies}),
            "false successes": sum(lie.false_success for lie in case.lies),
            "false failures": sum(lie.false_failure for lie in case.lies),
        }
    )
    logger.info("states: %s; %s", " ".join(case.states), case.lies or "as the oracle says")
    return wrong + [f"{name}: {lie.text}" for lie in case.lies]
