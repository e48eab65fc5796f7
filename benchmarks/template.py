"""What a new tenant costs that is copied from a template, and one that is migrated.

On an embedded server of its own, for both kinds of isolation and several sets of apps: the example shop, with it
Django's auth, content types, sessions and admin, the thirty migrations of `peers`, and if asked for wagtail, from PyPI.
Prints medians of milliseconds on the clock and, which other work on the machine changes less, of the processors, the
server's included; and the ratios of migrated to copied:

- `command`: a process each, `createtenant --migrate` and `createtenant --template`; beside them a process that creates
  the schema or database and runs Django's own `migrate`;
- `less start`: without what `createtenant` takes that leaves the new tenant empty, which is the start of a process, the
  row and the schema or database;
- `first`: in a worker that has everything loaded and has not yet migrated anybody;
- `further`: in a worker that has migrated and copied others, and shares between them what can be shared.

The last column is what the first copy took, which makes the template.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.bytecode import compiled_in
from benchmarks.peers import app_set
from benchmarks.peers.environments import environment, own_requirements
from benchmarks.peers.tools import PROJECTS
from benchmarks.peers.workloads import SMALL, WAGTAIL, Workload
from benchmarks.processor import processor_time
from service.embedded_postgres import EmbeddedPostgres

ROOT: Final = Path(__file__).resolve().parent.parent
SHOP: Final = ["examples.shop.users", "examples.shop.products", "examples.shop.orders"]
CONTRIB: Final = [f"django.contrib.{app}" for app in ("contenttypes", "auth", "sessions", "admin")]
APP_SETS: Final = {
    "shop": Workload(name="shop", apps=tuple(SHOP)),
    "contrib": Workload(name="shop and contrib", apps=(*CONTRIB, *SHOP)),
    "thirty": Workload(name="thirty migrations", apps=SMALL.apps),
    "wagtail": WAGTAIL,
}
ORDINARY: Final = ("shop", "contrib", "thirty")
# What RunPython writes, is the same in every tenant.
TEMPLATE_DATA: Final = [
    *("users", "products", "orders"),
    *app_set.APPS,
    *(
        f"wagtail{app}"
        for app in ("core", "admin", "docs", "embeds", "forms", "images", "redirects", "search", "users")
    ),
]
ISOLATIONS: Final = ("schema", "database")
COMMANDS: Final = {"empty": [], "migrated": ["--migrate"], "copied": ["--template"]}
STOCK: Final = """
import json, os, sys
import dj_database_url, psycopg2
from django.conf import settings
from django.core.management import execute_from_command_line

database = dj_database_url.parse(os.environ["SHOP_URL"])
connection = psycopg2.connect(os.environ["SHOP_URL"])
connection.autocommit = True
kind, name = sys.argv[1:]
connection.cursor().execute(f'CREATE {kind} "{name}"')
connection.close()
if kind == "schema":
    database["OPTIONS"]["options"] = f"-c search_path={name}"
else:
    database["NAME"] = name
settings.configure(
    DATABASES={"default": database},
    INSTALLED_APPS=os.environ["TENANT_APPS"].split(","),
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    **json.loads(os.environ["PEERS"])["settings"],
)
execute_from_command_line(["manage.py", "migrate", "-v0", "--skip-checks"])
"""
# Milliseconds on the clock, and of the processors; by kind of tenant.
Costs = Mapping[str, Iterable[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A server and the environment of whoever works with one set of apps on it."""

    server: EmbeddedPostgres
    python: str | Path
    environment: Mapping[str, str]
    numbers: "count[int]"

    def costs(self, isolation: str, tenants: int) -> dict[str, Costs]:
        """By case."""
        command = ["-m", "benchmarks.new_tenants", f"--tenants={tenants}", isolation]
        told = self.run([*command, f"--server={self.server.pid}"])
        commands: dict[str, list[tuple[float, float]]] = {kind: [] for kind in ("stock", *COMMANDS)}
        for _ in range(max(tenants // 3, 3)):
            for kind, found in commands.items():
                found.append(self._command(kind, isolation))
        return {"command": commands, **json.loads(told)}

    def _command(self, kind: str, isolation: str) -> tuple[float, float]:
        name = f"{kind}{next(self.numbers)}"
        command = ["-c", STOCK, isolation, name]
        if kind != "stock":
            given = [f"--tenant-id={name}", f"--isolation={isolation}", "--database=shop", "--no-input"]
            command = ["-m", "django", "createtenant", *given, *COMMANDS[kind]]
        began, used = time.perf_counter(), self._processors()
        self.run(command)
        return (time.perf_counter() - began) * 1000, (self._processors() - used) * 1000

    def _processors(self) -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return processor_time(self.server.pid) + children.ru_utime + children.ru_stime

    def run(self, arguments: list[str]) -> str:
        command = [self.python, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout


def measure(*, tenants: int, apps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedPostgres(Path(directory) / "server", durable=False)
        server.start(databases=[f"{role}_{name}" for role in ("plane", "shop") for name in apps])
        app_set.write(Path(directory) / "apps")
        around = {
            **compiled_in(Path(directory) / "bytecode"),
            "PYTHONPATH": f"{ROOT}:{PROJECTS}:{Path(directory) / 'apps'}",
        }
        numbers = count()
        try:
            print(f"{tenants} new tenants of each, {os.cpu_count()} processors; median milliseconds")
            print(f"{'':42}{'clock':>33}{'processors':>26}")
            print(f"{'':42}{'stock':>8}{'migrated':>10}{'copied':>8}{'':8}{'migrated':>10}{'copied':>8}{'':8}template")
            for name in apps:
                bench = Bench(
                    server=server,
                    python=_python(APP_SETS[name]),
                    environment={**around, **_environment(server, name, APP_SETS[name])},
                    numbers=numbers,
                )
                bench.run(["-m", "django", "migrate", "-v0"])
                for isolation in ISOLATIONS:
                    _show(f"{isolation}, {APP_SETS[name].name}", bench.costs(isolation, tenants))
        finally:
            server.destroy()


def _python(workload: Workload) -> str | Path:
    if not workload.requirements:
        return sys.executable
    return environment(f"own-{workload.name}", [*own_requirements(), *workload.requirements])


def _environment(server: EmbeddedPostgres, name: str, workload: Workload) -> dict[str, str]:
    return {
        "DATABASE_URL": server.url(f"plane_{name}"),
        "SHOP_URL": server.url(f"shop_{name}"),
        "TENANT_DATABASE_URLS": f"shop={server.url(f'shop_{name}')}",
        "TENANT_APPS": ",".join(workload.apps),
        "TENANT_DATABASE_TEMPLATE": f"{{tenant_id}}_{name}",
        "TENANT_MIGRATIONS": json.dumps({"template_data": TEMPLATE_DATA}),
        "PEERS": json.dumps({"settings": dict(workload.settings)}),
        "DJANGO_SETTINGS_MODULE": "own_settings",
    }


def _show(label: str, cases: Mapping[str, Costs]) -> None:
    costs = {case: {kind: _medians(found) for kind, found in kinds.items()} for case, kinds in cases.items()}
    empty = costs["command"]["empty"]
    costs["less start"] = {
        kind: tuple(whole - part for whole, part in zip(cost, empty, strict=True))
        for kind, cost in costs["command"].items()
    }
    [(making, _)] = cases["warm"]["copied"]
    for case in ("command", "less start", "first", "further"):
        migrated, copied = costs[case]["migrated"], costs[case]["copied"]
        stock = f"{costs[case]['stock'][0]:8.0f}" if case == "command" else f"{'':8}"
        clock, processors = (
            f"{one:10.0f}{other:8.0f}{_times(one, other):>8}" for one, other in zip(migrated, copied, strict=True)
        )
        print(f"  {label:<28}{case:<12}{stock}{clock}{processors}{making:9.0f}", flush=True)


def _times(one: float, other: float) -> str:
    """Nothing where noise has made a difference negative."""
    return f"{one / other:.1f}x" if other > 0 else "-"


def _medians(found: Iterable[tuple[float, float]]) -> tuple[float, ...]:
    return tuple(map(median, zip(*found, strict=True)))
