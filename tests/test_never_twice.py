"""Many who want the same tenants migrated at the same time, and workers that are taken for dead while they live."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from django.conf import settings as configured
from django.db.models import Q

from migrations_api.exceptions import RunActive
from migrations_api.models import MigrationRun, RunStep
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.plan import Target
from tenants.models import Tenant
from tests import oracle, soak
from tests.forks import expire, fork, join, work_on
from tests.http_api import carry_out

MakeTenant = Callable[..., Tenant]
TENANTS = int(soak.sized(3, 20))
RACERS = int(soak.sized(5, 50))
# With nothing that is not atomic: one who is taken for dead in the middle of that leaves it to be repaired.
TARGETS = [("orders", "0001_initial"), ("orders", "0002_ledger_entry"), ("orders", "0003_order_total")]
LEDGER = Q(app_label="orders", name="0002_ledger_entry", state="done")
FINISHED = 900 * (1 + soak.SHARE * 3)  # seconds


def race(tenants: list[Tenant], seed: int) -> None:
    """Ask for one run of each tenant, and until that is accepted work on whatever is asked for already."""
    chance = random.Random(seed)  # noqa: S311 - the same choices each time
    for tenant in tenants:
        app_label, name = chance.choice(TARGETS)
        request = Request(target=Target(app_label=app_label, migration_name=name), via="api")
        while not is_accepted(tenant, request):
            take_part(tenant, chance)
        take_part(tenant, chance)


def is_accepted(tenant: Tenant, request: Request) -> bool:
    try:
        request_run(tenant, request)
    except RunActive:
        return False
    return True


def take_part(tenant: Tenant, chance: random.Random) -> None:
    for run in MigrationRun.objects.active().filter(tenant=tenant):
        if chance.random() < 0.05:
            expire(run)
            settle_abandoned([tenant.tenant_id])
        work_on(run.pk)


@pytest.fixture
def patient(settings: object) -> None:
    # Whoever is taken for dead needs one attempt more, and everybody else has to wait for it.
    configured.TENANT_MIGRATIONS = {**configured.TENANT_MIGRATIONS, "attempts": 50, "max_backoff": 1}


def test_race__no_migration_is_applied_or_recorded_twice(
    make_tenant: MakeTenant, patient: None, record_property: Callable[[str, object], None]
) -> None:
    tenants = [make_tenant(f"tenant{number}") for number in range(TENANTS)]
    racers = [fork(race, tenants, seed) for seed in range(RACERS)]
    assert join(*racers, within=FINISHED) == [0] * RACERS
    for run in MigrationRun.objects.active():
        work_on(run.pk)

    runs = MigrationRun.objects.exclude(attempt=0)
    assert runs.count() == TENANTS * RACERS
    ended = Counter(runs.values_list("state", "error_code"))
    assert ended.keys() == {("succeeded", "")}, ended
    twice = {tenant.pk: found for tenant in tenants if (found := doubled(tenant))}
    soak.measured(record_property, "migrated twice", "0 in 1000 runs", f"{len(twice)} in {runs.count()} runs")
    assert twice == {}


def doubled(tenant: Tenant) -> str:
    """What tells of a migration that was carried out more than once: the ledger, the record or the runs."""
    before = oracle.truth(tenant)
    carry_out(request_run(tenant, Request(via="api")).pk)
    found = oracle.truth(tenant)
    steps = RunStep.objects.filter(LEDGER, run__tenant=tenant)
    forwards, backwards = steps.filter(backwards=False).count(), steps.filter(backwards=True).count()
    is_there = ("orders", "0002_ledger_entry") in before.applied
    told = {
        f"the ledger has {before.ledger}": before.ledger == is_there,
        f"the ledger has {found.ledger} in the end": found.ledger == 1,
        f"{forwards} runs applied it, {backwards} took it back": forwards - backwards == 1,
        "rows that are there twice": all(len(each.rows) == len(each.applied) for each in (before, found)),
    }
    return ", ".join(what for what, is_right in told.items() if not is_right)
