"""What migrating a fleet of schemas costs, and whether memory grows with it.

On an embedded server of its own: a loop of stock `migrate` over some schemas, then `migratealltenants` with each
executor over the whole fleet, from zero and with nothing to do; each over a few tenants first. Prints milliseconds per
tenant of whole processes, ratios to the loop, and the resident memory of the largest worker, or of a process without
workers, in each quarter of the fleet.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from benchmarks.bytecode import compiled_in
from service.embedded_postgres import EmbeddedPostgres

ROOT = Path(__file__).resolve().parent.parent
FEW = 2  # tenants of what is run only to be compiled
QUARTERS = 4
SAMPLES = 80  # of its memory, in one run
LOOP = 10  # schemas of the loop; its cost per schema does not depend on their number
EXECUTORS = ("sequential", "parallel")
APPS = ["examples.shop.users", "examples.shop.products", "examples.shop.orders"]
STOCK = (
    "import os, sys; from django.conf import settings; from django.core.management import execute_from_command_line;"
    "import dj_database_url; database = dj_database_url.parse(os.environ['DATABASE_URL']);"
    "database['OPTIONS']['options'] = '-c search_path=' + os.environ['SCHEMA'];"
    f"settings.configure(DATABASES={{'default': database}}, INSTALLED_APPS={APPS!r}, USE_TZ=True,"
    "DEFAULT_AUTO_FIELD='django.db.models.BigAutoField'); execute_from_command_line(['manage.py', 'migrate', '-v0'])"
)


def measure(*, tenants: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedPostgres(Path(directory) / "server", durable=False)
        around = compiled_in(Path(directory) / "bytecode")
        server.start(databases=["stock", *(f"{executor}{kind}" for executor in EXECUTORS for kind in ("", "_few"))])
        try:
            print(f"{tenants} schema tenants, {os.cpu_count()} processors; milliseconds per tenant, whole processes")
            _loop(server, around, "few", FEW)
            loop = _loop(server, around, "stock", LOOP)
            print(f"  stock migrate in a loop ({LOOP} schemas)       {loop:8.1f}")
            for executor in EXECUTORS:
                list(_costs(server, around, executor, f"{executor}_few", FEW))
                for case, cost, memory in _costs(server, around, executor, executor, tenants):
                    at = ", ".join(f"{size} MiB" for size in memory)
                    label = f"migratealltenants, {executor}, {case:<13}"
                    print(f"  {label} {cost:8.1f}  {loop / cost:5.1f} x  memory: {at}")
        finally:
            server.destroy()


def _loop(server: EmbeddedPostgres, around: Mapping[str, str], name: str, schemas: int) -> float:
    """Milliseconds per schema."""
    url = server.url("stock")
    started = time.monotonic()
    for number in range(schemas):
        schema = f"{name}_{number}"
        subprocess.run([server.bin / "psql", url, "-qc", f"CREATE SCHEMA {schema}"], check=True)
        environment = {**around, "DATABASE_URL": url, "SCHEMA": schema}
        subprocess.run([sys.executable, "-c", STOCK], cwd=ROOT, env=environment, check=True)
    return (time.monotonic() - started) / schemas * 1000


def _costs(
    server: EmbeddedPostgres, around: Mapping[str, str], executor: str, database: str, tenants: int
) -> Iterator[tuple[str, float, list[int]]]:
    environment = {**around, "DATABASE_URL": server.url(database), "TENANT_DATABASE_URLS": ""}
    manage = [sys.executable, "manage.py"]
    subprocess.run([*manage, "migrate", "-v0"], cwd=ROOT, env=environment, check=True)
    create = (
        "from tenants.provisioning import create_tenant\n"
        f"for n in range({tenants}):\n"
        "    create_tenant(tenant_id=f't{n}', name='', isolation='schema', database='default')"
    )
    subprocess.run([*manage, "shell", "-v0", "-c", create], cwd=ROOT, env=environment, check=True)
    for case in ("from zero", "nothing to do"):
        yield case, *migrate([*manage, "migratealltenants", f"--executor={executor}"], environment, tenants)


def migrate(command: list[str], environment: Mapping[str, str], tenants: int) -> tuple[float, list[int]]:
    """Milliseconds per tenant, and MiB of the largest worker, at its most in each quarter of the fleet.

    Without workers, it is the process itself.
    """
    started = time.monotonic()
    memory: list[int] = [0] * QUARTERS
    done = 0
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("✓ Tenant"):
                if done % max(tenants // SAMPLES, 1) == 0:
                    quarter = min(done * QUARTERS // tenants, QUARTERS - 1)
                    memory[quarter] = max(memory[quarter], _largest(process.pid))
                done += 1
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return (time.monotonic() - started) / tenants * 1000, memory


def _largest(pid: int) -> int:
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return max(map(_resident, workers or [str(pid)]))


def _resident(pid: str) -> int:
    """0 for one that has ended meanwhile."""
    with suppress(OSError):
        if found := re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) // 1024
    return 0
