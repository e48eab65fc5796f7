"""Times new tenants that are migrated and ones that are copied; a process of its own, for `template`."""

import argparse
import statistics
import time

import django

django.setup()

from migrations_api.models import MigrationRun
from migrations_api.orchestrator.requests import Request, create, create_from_template, request_run
from migrations_api.orchestrator.work import work
from tenants.models import Isolation

Times = tuple[float, float]


def new_tenant(tenant_id: str, isolation: str, *, template: bool) -> Times:
    """Seconds of its provisioning and of its run."""
    began = time.perf_counter()
    values = {"tenant_id": tenant_id, "name": "", "isolation": isolation, "database": "shop"}
    if template:
        _, run = create_from_template(provision=True, by="", via="api", **values)
    else:
        run = request_run(create(**values), Request(via="api"))
    provisioned = time.perf_counter()
    work(run.pk, emit=lambda event: None, should_stop=lambda: False)
    ended = time.perf_counter()
    run.refresh_from_db()
    assert (run.state, run.findings) == ("succeeded", []), (run.message, run.findings)
    assert MigrationRun.objects.get(pk=run.pk).steps.filter(state="done").exists()
    return provisioned - began, ended - provisioned


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, required=True)
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    for isolation in (Isolation.SCHEMA, Isolation.DATABASE):
        # Both load what they need before they are measured.
        new_tenant(f"warm-{isolation}", isolation, template=False)
        first = sum(new_tenant(f"first-{isolation}", isolation, template=True))
        times: dict[bool, list[Times]] = {False: [], True: []}
        for number in range(options.tenants):
            for template in (False, True) if number % 2 else (True, False):
                name = f"{isolation}-{'copied' if template else 'migrated'}-{number}"
                times[template].append(new_tenant(name, isolation, template=template))
        migrated, copied = (statistics.median(map(sum, times[each])) * 1000 for each in (False, True))
        provisioned, ran = (statistics.median(part) * 1000 for part in zip(*times[True], strict=True))
        print(
            f"  {f'{isolation}, {options.name}':<26}{migrated:10.1f}{copied:10.1f}{migrated / copied:7.1f}x"
            f"{provisioned:11.1f}{ran:8.1f}{first * 1000:12.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
