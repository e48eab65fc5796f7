"""How much faster a rollout is with more workers.

On an embedded server of its own: schemas with one pending migration, a new column and what is computed for it, are
migrated by each executor in turn and taken back in between. Prints tenants per second, from the rollout's start to its
end, and how many times those of the sequential executor and of one worker that is.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import psycopg2

from benchmarks.bytecode import compiled_in
from service.embedded_postgres import EmbeddedPostgres

ROOT = Path(__file__).resolve().parent.parent
MANAGE = [sys.executable, "manage.py"]
PENDING, BEFORE = ("orders", "0003_order_total"), ("orders", "0002_ledger_entry")
CASES = {"sequential": ("sequential", 1), "1 worker": ("parallel", 1), "2 workers": ("parallel", 2)}
TOOK = "SELECT extract(epoch FROM finished_at - started_at) FROM migrations_api_rollout ORDER BY id DESC LIMIT 1"


def measure(*, tenants: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedPostgres(Path(directory) / "server", durable=False)
        server.start(databases=["plane"])
        try:
            environment = {
                **compiled_in(Path(directory) / "bytecode"),
                "DATABASE_URL": server.url("plane"),
                "TENANT_DATABASE_URLS": "",
            }
            _prepare(environment, tenants)
            times: dict[str, list[float]] = {case: [] for case in CASES}
            # In turn, so that what else goes on on the machine slows each of them down.
            for _ in range(rounds):
                for case, (executor, workers) in CASES.items():
                    times[case].append(_migrate(environment, PENDING, executor, workers))
                    _migrate(environment, BEFORE, "parallel", 4)
        finally:
            server.destroy()
    speeds = {case: tenants / min(found) for case, found in times.items()}
    print(f"{tenants} schema tenants, one pending migration each, {os.cpu_count()} processors; best of {rounds}")
    print(f"{'':14}{'tenants/s':>10}{'x sequential':>14}{'x 1 worker':>12}")
    for case, speed in speeds.items():
        print(f"{case:14}{speed:10.1f}{speed / speeds['sequential']:14.2f}{speed / speeds['1 worker']:12.2f}")


def _prepare(environment: Mapping[str, str], tenants: int) -> None:
    _run(["migrate", "-v0"], environment)
    create = (
        "from tenants.provisioning import create_tenant\n"
        f"for n in range({tenants}):\n"
        "    create_tenant(tenant_id=f't{n}', name='', isolation='schema', database='default')"
    )
    _run(["shell", "-v0", "-c", create], environment)
    _migrate(environment, BEFORE, "parallel", 4)


def _migrate(environment: Mapping[str, str], target: tuple[str, str], executor: str, workers: int) -> float:
    """Seconds from the start to the end of the rollout."""
    settings = {"TENANT_MIGRATIONS": json.dumps({"max_concurrency": workers})}
    arguments = ["migratealltenants", *target, f"--executor={executor}", "--no-input", "-v0"]
    _run(arguments, {**environment, **settings})
    with closing(psycopg2.connect(environment["DATABASE_URL"])) as connection, connection.cursor() as cursor:
        cursor.execute(TOOK)
        return float(cursor.fetchone()[0])


def _run(arguments: list[str], environment: Mapping[str, str]) -> None:
    subprocess.run([*MANAGE, *arguments], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
