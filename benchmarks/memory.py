"""Whether a worker's memory grows with the tenants that it migrates.

On an embedded server of its own: copies of one schema, each with one migration pending, are migrated by one process,
and once more by two workers that nothing replaces. One of the migrations becomes a script, the other runs Python.
Prints the resident memory of the largest of them in each quarter of the fleet, what the last one is of the first, and
all sessions that were opened.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping

from benchmarks.fleet import ROOT, migrate
from benchmarks.peers.databases import cursor_of, sessions
from benchmarks.servers import plane_and_shop
from service.embedded_postgres import EmbeddedPostgres

MANAGE = [sys.executable, "manage.py"]
FIRST = "public_t0"
BEFORE = [("users", "0004"), ("products", "0005"), ("orders", "0002")]
PENDING = {"a script": ("users", "0005"), "Python": ("orders", "0003")}
BACK = (
    'DROP TABLE {home}."users_address"; ALTER TABLE {home}."orders_order" DROP COLUMN "total";'
    " DELETE FROM {home}.django_migrations WHERE (app, left(name, 4)) IN (('users', '0005'), ('orders', '0003'))"
)
EXECUTORS = ("sequential", "parallel")
# Nothing is to hide what adds up.
SETTINGS = {"max_concurrency": 2, "tenants_per_worker": 1_000_000}
CREATE = (
    "from tenants.provisioning import create_tenant\n"
    "for n in range({tenants}):\n"
    "    create_tenant(tenant_id=f't{{n}}', name='', isolation='schema', database='shop')"
)
COUNTED = 0.3  # seconds after which the server has counted the sessions that ended last


def measure(*, tenants: int) -> None:
    with plane_and_shop(TENANT_MIGRATIONS=json.dumps(SETTINGS)) as (server, environment, _):
        _prepare(server, environment, tenants)
        print(f"{tenants:,} schema tenants, one migration pending, {os.cpu_count()} processors; MiB")
        for executor in EXECUTORS:
            for kind, target in PENDING.items():
                print(f"  {f'{executor}, {kind}':34}", end="", flush=True)
                command = [*MANAGE, "migratealltenants", *target, f"--executor={executor}", "--no-input"]
                _tell(server, environment, command, tenants)
            _take_back(server, tenants)


def _prepare(server: EmbeddedPostgres, environment: Mapping[str, str], tenants: int) -> None:
    def run(*arguments: str) -> None:
        subprocess.run([*MANAGE, *arguments], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)

    run("migrate", "-v0")
    run("shell", "-v0", "-c", CREATE.format(tenants=tenants))
    for target in BEFORE:
        run("migratetenant", "--tenant-id=t0", *target, "--no-input")
    dump = [server.bin / "pg_dump", "--no-owner", "--inserts", "--quote-all-identifiers", f"--schema={FIRST}"]
    done = subprocess.run([*dump, server.url("shop")], check=True, capture_output=True, text=True)
    made = re.sub(r"^\\.*\n", "", done.stdout, flags=re.M)
    with cursor_of(server, "shop") as cursor:
        for number in range(1, tenants):
            cursor.execute(f"DROP SCHEMA public_t{number}")
            cursor.execute(made.replace(f'"{FIRST}"', f'"public_t{number}"'))
        cursor.execute("RESET ALL")
        cursor.execute("VACUUM ANALYZE")


def _tell(server: EmbeddedPostgres, environment: Mapping[str, str], command: list[str], tenants: int) -> None:
    before = sessions(server)
    cost, memory = migrate(command, environment, tenants)
    time.sleep(COUNTED)
    opened = sessions(server) - before
    at = ", ".join(map(str, memory))
    print(f"{at}  {memory[-1] / memory[0]:5.2f}  {opened:6} sessions  {cost:6.1f} ms/tenant", flush=True)


def _take_back(server: EmbeddedPostgres, tenants: int) -> None:
    with cursor_of(server, "shop") as cursor:
        for number in range(tenants):
            cursor.execute(BACK.format(home=f"public_t{number}"))
