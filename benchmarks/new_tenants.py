"""New tenants in one process of the service; for `template`, which it tells as JSON what they took."""

import argparse
import json
import sys
import time
from functools import partial

import django

django.setup()

from benchmarks.first_and_further import Cost, costs
from benchmarks.processor import processor_time
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.registration import create_from_template
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.sources import source_for
from migrations_api.orchestrator.work import work
from tenants.models import Isolation
from tenants.provisioning import create_tenant

KINDS = ("empty", "migrated", "copied")


def new_tenant(tenant_id: str, kind: str, *, isolation: str, server: int) -> Cost:
    """Created and brought up to date, as a worker does what the API was asked for."""
    began, used = time.perf_counter(), processor_time(server)
    run = _requested(kind, tenant_id=tenant_id, name="", isolation=isolation, database="shop")
    if run is not None:
        work(run.pk, emit=lambda event: None, should_stop=lambda: False)
    cost = (time.perf_counter() - began) * 1000, (processor_time(server) - used) * 1000
    if run is not None:
        run.refresh_from_db()
        assert (run.state, run.findings) == ("succeeded", []), (run.message, run.findings)
        assert MigrationRun.objects.get(pk=run.pk).steps.filter(state="done").exists()
    return cost


def _requested(kind: str, **values: str) -> MigrationRun | None:
    if kind == "copied":
        return create_from_template(provision=True, by="", via="api", **values)[1]
    tenant = create_tenant(**values)
    return request_run(tenant, Request(via="api")) if kind == "migrated" else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, required=True)
    parser.add_argument("--server", type=int, required=True, help="The pid of the PostgreSQL server.")
    parser.add_argument("isolation", choices=[Isolation.SCHEMA, Isolation.DATABASE])
    options = parser.parse_args()
    source_for(options.isolation)
    make = partial(new_tenant, isolation=options.isolation, server=options.server)
    json.dump(costs(make, KINDS, prefix=options.isolation, times=options.tenants), sys.stdout)


if __name__ == "__main__":
    main()
