"""What a new tenant costs that is copied from a template, and one that is migrated.

On an embedded server of its own, for both kinds of isolation and several sets of apps: the example shop, with it
Django's auth, content types, sessions and admin, the thirty migrations of `peers`, and if asked for wagtail, from PyPI.
`stock` is Django's own `migrate`, without the service, into a schema or database that is made for it; `migrated` what
the service does without a template. Prints medians of milliseconds on the clock and means of those of the processors,
which other work on the machine changes less, the server's included; and how many times less a copy takes than stock
`migrate` does:

- `command`: a process each, `createtenant --migrate` and `createtenant --template`; most of it is the process's start;
- `first`: in a worker that has everything loaded and has not yet migrated anybody;
- `further`: in a worker that has migrated and copied others, and shares between them what can be shared;
- `less home`: of these, without what making the empty schema or database takes, which nobody is spared.

The last column is what the first copy took, which makes the template.
"""

import json
import os
import resource
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import fmean, median
from typing import Final

from benchmarks.bytecode import compiled_in
from benchmarks.peers import app_set
from benchmarks.peers.tools import PROJECTS, plain_python
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
COMMANDS: Final = {"migrated": ["--migrate"], "copied": ["--template"]}
KINDS: Final = ("stock", *COMMANDS)
WORKERS: Final = ("first", "further")
# Milliseconds on the clock, and of the processors.
Cost = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A server and the environment of whoever works with one set of apps on it."""

    server: EmbeddedPostgres
    python: str | Path
    environment: Mapping[str, str]
    numbers: "count[int]"

    def costs(self, isolation: str, tenants: int) -> tuple[dict[str, dict[str, Cost]], float]:
        """By case and kind, and the milliseconds of the copy that makes the template."""
        stock, ours = (
            json.loads(self.run(["-m", module, f"--tenants={tenants}", f"--server={self.server.pid}", isolation]))
            for module in ("benchmarks.stock_tenants", "benchmarks.new_tenants")
        )
        commands: defaultdict[str, list[Cost]] = defaultdict(list)
        for _ in range(max(tenants // 3, 3)):
            for kind in KINDS:
                commands[kind].append(self._command(kind, isolation))
        found = {
            "command": _summed_up(commands),
            **{case: {**_summed_up(ours[case]), **_summed_up({"stock": stock[case]["stock"]})} for case in WORKERS},
        }
        homes = {**dict.fromkeys(COMMANDS, ours["further"]["empty"]), "stock": stock["further"]["empty"]}
        found["less home"] = {
            kind: _difference(found["further"][kind], home) for kind, home in _summed_up(homes).items()
        }
        return found, ours["making"]["copied"][0][0]

    def _command(self, kind: str, isolation: str) -> Cost:
        name = f"{kind}{next(self.numbers)}"
        command = ["-m", "benchmarks.stock_tenants", f"--once={name}", isolation]
        if kind != "stock":
            given = [f"--tenant-id={name}", f"--isolation={isolation}", "--database=shop", "--no-input"]
            command = ["manage.py", "createtenant", *given, *COMMANDS[kind]]
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
            heads = "".join(f"{kind:>9}" for kind in KINDS) + f"{'':7}"
            print(f"{tenants} new tenants of each, {os.cpu_count()} processors; milliseconds")
            print(f"{'':40}{'clock':>34}{'processors':>34}")
            print(f"{'':40}{heads}{heads}{'template':>10}")
            for name in apps:
                bench = Bench(
                    server=server,
                    python=plain_python(APP_SETS[name]),
                    environment={**around, **_environment(server, name, APP_SETS[name])},
                    numbers=numbers,
                )
                bench.run(["-m", "django", "migrate", "-v0"])
                for isolation in ISOLATIONS:
                    _show(f"{isolation}, {APP_SETS[name].name}", *bench.costs(isolation, tenants))
        finally:
            server.destroy()


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


def _show(label: str, costs: Mapping[str, Mapping[str, Cost]], making: float) -> None:
    for case, kinds in costs.items():
        clock, processors = (_columns(part) for part in zip(*(kinds[kind] for kind in KINDS), strict=True))
        print(f"  {label:<28}{case:<10}{clock}{processors}{making:10.0f}", flush=True)


def _columns(costs: Sequence[float]) -> str:
    stock, *_, copied = costs
    # Nothing where noise has made a difference negative.
    times = f"{stock / copied:.1f}x" if copied > 0 else "-"
    return "".join(f"{cost:9.0f}" for cost in costs) + f"{times:>7}"


def _summed_up(found: Mapping[str, Iterable[Cost]]) -> dict[str, Cost]:
    """The clock's medians; processors are counted in hundredths of a second, of which only the mean says more."""
    summed_up = {}
    for kind, costs in found.items():
        clock, processors = zip(*costs, strict=True)
        summed_up[kind] = median(clock), fmean(processors)
    return summed_up


def _difference(one: Cost, other: Cost) -> Cost:
    return one[0] - other[0], one[1] - other[1]
