"""What a command loads: no more than the work that there is, and garbage is collected while it is done."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrations_api.models import MigrationRun
from tenants.models import Tenant
from tests.processes import GIVE_UP, Process, output, processes

# As manage.py does it, and then what that has come to.
PROGRAM = """
import gc, os, sys
forks = []
os.register_at_fork(before=lambda: forks.append(1))
from manage import Utility
Utility(["manage.py", *sys.argv[1:]]).execute()
print("loaded:", *sorted(name for name in sys.modules if name.startswith(("migrations_api.", "tenants.", "multiproc"))))
print("loads REST framework:", "rest_framework.serializers" in sys.modules)
print("forks:", len(forks))
print("collects:", gc.isenabled(), "spares what was there before:", gc.get_freeze_count() > 0)
"""
# What only those runs need that have something to do, and what only other requests need.
EXECUTES = {
    *(f"migrations_api.executor.{name}" for name in ("diagnosis", "execution", "migrator", "rehearsal", "template")),
    "migrations_api.executor.outcome",
    "migrations_api.executor.transcript",
    "migrations_api.orchestrator.work",
    "migrations_api.plan.risk",
    "migrations_api.schema.operations",
}
ASKED_FOR_ELSEWHERE = {
    *(f"migrations_api.orchestrator.{name}" for name in ("batches", "observations", "previews", "readiness")),
    "migrations_api.migrations.0001_initial",
    "migrations_api.orchestrator.reports",
    "migrations_api.orchestrator.rollbacks",
    "tenants.migrations.0001_initial",
    "tenants.provisioning",
    "tenants.sessions",
}


def loaded(told: str) -> set[str]:
    return set(next(line for line in told.splitlines() if line.startswith("loaded:")).split())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Run a command to its end in a process of its own; what it wrote."""
    with processes(tmp_path) as start:

        def finish(*arguments: str, **values: Any) -> str:
            process: Process = start(*arguments, program=("-c", PROGRAM), **values)
            assert process.wait(GIVE_UP) == 0, output(process)
            return output(process)

        yield finish


@pytest.mark.parametrize("executor", ["sequential", "parallel"])
def test_migrate_all__loads_what_executes_only_where_something_is_to_be_executed(
    executor: str, make_tenant: Callable[..., Tenant], run: Callable[..., str]
) -> None:
    make_tenant("acme")
    pending = run("migratealltenants", f"--executor={executor}")
    assert "1 tenant migrated" in pending
    # Of the parallel one, this is the process that the workers are forked from.
    assert {"migrations_api.executor.execution", "migrations_api.orchestrator.work"} <= loaded(pending)
    up_to_date = run("migratealltenants", f"--executor={executor}")
    assert "0 tenants migrated, 1 unchanged" in up_to_date
    assert not loaded(up_to_date) & (EXECUTES | ASKED_FOR_ELSEWHERE)


def test_migrate_all__starts_a_process_only_where_something_is_to_be_executed(
    make_tenant: Callable[..., Tenant], run: Callable[..., str]
) -> None:
    make_tenant("acme")
    assert "forks: 1" in run("migratealltenants", "--executor=parallel")
    assert "forks: 0" in run("migratealltenants", "--executor=parallel")


def test_migrate_all__of_one_executor_does_not_load_the_other(
    make_tenant: Callable[..., Tenant], run: Callable[..., str]
) -> None:
    make_tenant("acme")
    told = run("migratealltenants", "--executor=sequential")
    assert "1 tenant migrated" in told
    assert not loaded(told) & {"migrations_api.dispatch.parallel", "multiprocessing.context"}


def test_migrate_all__settles_what_was_abandoned_all_the_same(
    make_tenant: Callable[..., Tenant], run: Callable[..., str]
) -> None:
    """What settles is loaded with the first run that needs it."""
    tenant = make_tenant("acme")
    lost = MigrationRun.objects.create(
        tenant=tenant, state="running", attempt=1, lease_expires_at="2020-01-01T00:00:00Z", requested_via="command"
    )
    run("migratealltenants", "--executor=sequential")
    lost.refresh_from_db()
    assert (lost.state, lost.error_code) == ("failed", "worker_lost")


def test_command__collects_garbage_and_spares_what_was_imported(plane: None, run: Callable[..., str]) -> None:
    assert "collects: True spares what was there before: True" in run("showtenants")
    assert "collects: True" in run("check")


def test_createtenant__loads_nothing_that_executes_for_a_tenant_that_stays_empty(
    plane: None, run: Callable[..., str]
) -> None:
    given = ["--isolation=schema", "--database=shop", "--no-input", "--register-only"]
    assert not loaded(run("createtenant", "--tenant-id=acme", *given)) & EXECUTES


def test_createtenant__loads_rest_framework_only_for_json(plane: None, run: Callable[..., str]) -> None:
    """Else its start takes a third longer."""
    given = ["--isolation=schema", "--database=shop", "--no-input", "--register-only"]
    assert "loads REST framework: False" in run("createtenant", "--tenant-id=acme", *given)
    assert "loads REST framework: True" in run("createtenant", "--tenant-id=globex", *given, "--format=json")
