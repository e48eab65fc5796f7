"""New tenants in one process; a process of its own, for `template`, which it tells as JSON what they took."""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count

import django

django.setup()

from benchmarks.processor import processor_time
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.registration import create_from_template
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.sources import source_for
from migrations_api.orchestrator.work import work
from tenants.models import Isolation
from tenants.provisioning import create_tenant

# Milliseconds on the clock, and of the processors.
Cost = tuple[float, float]
KINDS = ("migrated", "copied")


def new_tenant(tenant_id: str, isolation: str, *, kind: str, server: int) -> Cost:
    """Created and brought up to date, as a worker does what the API was asked for."""
    began, used = time.perf_counter(), processor_time(server)
    values = {"tenant_id": tenant_id, "name": "", "isolation": isolation, "database": "shop"}
    if kind == "copied":
        _, run = create_from_template(provision=True, by="", via="api", **values)
    else:
        run = request_run(create_tenant(**values), Request(via="api"))
    work(run.pk, emit=lambda event: None, should_stop=lambda: False)
    cost = (time.perf_counter() - began) * 1000, (processor_time(server) - used) * 1000
    run.refresh_from_db()
    assert (run.state, run.findings) == ("succeeded", []), (run.message, run.findings)
    assert MigrationRun.objects.get(pk=run.pk).steps.filter(state="done").exists()
    return cost


def costs(isolation: str, *, tenants: int, server: int) -> dict[str, dict[str, list[Cost]]]:
    """By case and kind; a process is forked for each that is the first in its own, and has loaded what it needs."""
    names = (f"{isolation}-{number}" for number in count())
    make = partial(new_tenant, isolation=isolation, server=server)
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as fresh:
        apply = partial(fresh.apply, make)
        # The copy makes the template.
        warm = {kind: [apply((next(names),), {"kind": kind})] for kind in KINDS}
        first = _in_turn(lambda kind: apply((next(names),), {"kind": kind}), tenants)
    for kind in KINDS * 2:
        make(next(names), kind=kind)
    return {"warm": warm, "first": first, "further": _in_turn(lambda kind: make(next(names), kind=kind), tenants)}


def _in_turn(measure: Callable[[str], Cost], tenants: int) -> dict[str, list[Cost]]:
    found: dict[str, list[Cost]] = {kind: [] for kind in KINDS}
    for number in range(tenants):
        for kind in KINDS if number % 2 else reversed(KINDS):
            found[kind].append(measure(kind))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, required=True)
    parser.add_argument("--server", type=int, required=True, help="The pid of the PostgreSQL server.")
    parser.add_argument("isolation", choices=[Isolation.SCHEMA, Isolation.DATABASE])
    options = parser.parse_args()
    source_for(options.isolation)
    json.dump(costs(options.isolation, tenants=options.tenants, server=options.server), sys.stdout)


if __name__ == "__main__":
    main()
