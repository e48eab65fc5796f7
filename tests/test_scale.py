"""One rollout over a large fleet, through the API of a running service that is asked throughout."""

import json
import threading
import time
import urllib.error
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from migrations_api.models import ApiToken, Coordinator, Rollout
from migrations_api.states import ACTIVE_ROLLOUT_STATES
from tenants.models import Isolation, Tenant
from tests import oracle
from tests.fleets import bring, copy, fleet, named
from tests.live import download, post, serving
from tests.soak import IS_WHOLE, LONG, at, children, resident, sized

BROKEN = {"orders": "orders_failing_data"}
# Where the tenants stand before, so that two migrations are pending in each.
BEFORE = [("users", "0005_address"), ("products", "0005_label_to_tag"), ("orders", "0002_ledger_entry")]
SCHEMAS, DATABASES = int(sized(20, 1000)), int(sized(3, 50))
# 2 % in the whole size, of which one lives in a database.
FAILING = (int(sized(1, 20)), int(sized(0, 1)))
STRATEGY = {"canary": int(sized(2, 10)), "waves": ["10%", "30%"], "max_failures": "5%", "max_concurrency": 4}
SAMPLE_EVERY = sized(0.1, 1.0)  # seconds
Record = Callable[[str, object], None]


@pytest.fixture
def tenants(plane: None, broken: Callable[..., None]) -> Iterator[list[Tenant]]:
    broken(**BROKEN)
    with (
        fleet(named("s", SCHEMAS, failing=FAILING[0])) as schemas,
        fleet(named("d", DATABASES, failing=FAILING[1]), Isolation.DATABASE) as databases,
    ):
        for each in (schemas, databases):
            for target in BEFORE:
                bring(each[0], *target)
            copy(each[0], each[1:])
        yield [*schemas, *databases]


@dataclass
class Answers:
    """Milliseconds by path, and the statuses other than 200."""

    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: list[tuple[str, int]] = field(default_factory=list)


@contextmanager
def asked_throughout(address: str, token: str, paths: list[str]) -> Iterator[Answers]:
    """One client asks one question after the other, for as long as this lasts."""
    answers, over = Answers(), threading.Event()

    def ask() -> None:
        while not over.is_set():
            for path in paths:
                began = time.monotonic()
                try:
                    download(address + path, token)
                except urllib.error.HTTPError as error:
                    answers.refused.append((path, error.code))
                answers.times[path].append((time.monotonic() - began) * 1000)

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield answers
    finally:
        over.set()
        client.join()


@dataclass
class Memory:
    """MiB of the coordinator and of its largest worker, by quarters of the tenants; the first tenth is left out."""

    coordinator: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    worker: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def sample(self, done: float) -> None:
        names = Coordinator.objects.filter(leading=True).values_list("name", flat=True)
        if not 0.1 <= done < 1 or not names:
            return
        leader = int(names[0].rpartition(":")[2])
        quarter = int(done * 4)
        self.coordinator[quarter].append(resident(leader))
        self.worker[quarter].append(max(map(resident, children(leader)), default=0))

    @property
    def quarters(self) -> dict[str, list[float]]:
        return {
            "coordinator": [median(self.coordinator[quarter]) for quarter in sorted(self.coordinator)],
            "largest worker": [median(self.worker[quarter]) for quarter in sorted(self.worker)],
        }


def watch(rollout: Rollout) -> Memory:
    """Wait for the rollout's end, and look at what its processes need meanwhile."""
    memory, deadline = Memory(), time.monotonic() + LONG
    while rollout.state in ACTIVE_ROLLOUT_STATES:
        assert time.monotonic() < deadline, "the rollout does not end"
        memory.sample(rollout.runs.filter(finished_at__isnull=False).count() / rollout.total)
        time.sleep(SAMPLE_EVERY)
        rollout.refresh_from_db()
    return memory


def test_rollout__of_a_large_fleet(
    tenants: list[Tenant],
    token_of: Callable[..., tuple[ApiToken, str]],
    tmp_path: Path,
    record_property: Record,
) -> None:
    token = token_of("operator")[1]
    with serving(tmp_path, broken=BROKEN) as address:
        began = time.monotonic()
        rollout = Rollout.objects.get(pk=post(f"{address}/tenants/migrate-all", token, {"strategy": STRATEGY})["id"])
        paths = [f"/rollouts/{rollout.pk}", "/fleet", "/tenants"]
        with asked_throughout(address, token, paths) as answers:
            memory = watch(rollout)
        seconds = time.monotonic() - began
        shown = json.loads(download(f"{address}/rollouts/{rollout.pk}", token))
        failures = json.loads(download(f"{address}/rollouts/{rollout.pk}/failures", token))

    assert answers.refused == []
    assert min(map(len, answers.times.values())) > 0
    judge_counts(rollout, shown, failures)
    judge_tenants(rollout, tenants)
    record_property("rollout", f"{len(tenants)} tenants in {seconds:.0f} s: {len(tenants) / seconds * 60:.0f} a minute")
    for path, times in answers.times.items():
        record_property(f"GET {path}", f"p50 {at(times, 50):.0f} ms, p95 {at(times, 95):.0f} ms, {len(times)} answers")
    for name, quarters in memory.quarters.items():
        record_property(f"memory, {name}", " ".join(f"{each:.0f}" for each in quarters) + " MiB by quarters")
    # The first few tenants of a process are its warm-up.
    if IS_WHOLE:
        assert [name for name, quarters in memory.quarters.items() if quarters[-1] > 1.25 * quarters[0]] == []


def judge_counts(rollout: Rollout, shown: dict[str, Any], failures: list[dict[str, Any]]) -> None:
    total, failing = SCHEMAS + DATABASES, sum(FAILING)
    counts = {state: count for state, count in shown["runs"].items() if count}
    assert (shown["state"], shown["total"], shown["stop_code"]) == ("failed", total, "")
    assert counts == {"succeeded": total - failing, "failed": failing}
    assert (shown["progress"]["ended"], shown["progress"]["pending"]) == (total, 0)
    assert [wave["total"] for wave in shown["waves"]] == wave_sizes(total)
    assert [(each["count"], each["error_class"], each["failed_step"]) for each in failures] == [
        (failing, "ValueError", "orders.0003_channel")
    ]
    assert Counter(rollout.runs.values_list("attempt", flat=True)) == {1: total}


def wave_sizes(total: int) -> list[int]:
    given = [int(str(STRATEGY["canary"])), total // 10, total * 3 // 10]
    return [*given, total - sum(given)]


def judge_tenants(rollout: Rollout, tenants: list[Tenant]) -> None:
    boundaries = oracle.boundaries(*BEFORE, **BROKEN)
    runs = {run.tenant_id: run for run in rollout.runs.prefetch_related("steps").select_related("applied_after")}
    assert runs.keys() == {tenant.tenant_id for tenant in tenants}
    assert {name for name, run in runs.items() if run.state == "failed"} == {name for name in runs if "globex" in name}
    lies, ledgers = [], set()
    for tenant in tenants:
        found = oracle.truth(tenant)
        lies += oracle.lies(runs[tenant.tenant_id], found, boundaries)
        ledgers.add(found.ledger)
    assert (lies, ledgers) == ([], {1})
