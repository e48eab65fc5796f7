"""The service beside django-tenants, django-pgschemas, stock `migrate` in a loop, and the SQL alone.

On one embedded server, the same apps for all: 4 apps, 12 models and 30 migrations, on auth and contenttypes. Each tool
is a whole process, from its start to its end, and takes its turn in each round. The peers come from PyPI into virtual
environments under var/peers; they set the search path only when it changes, which is their fastest setting. After each
run, the rows of django_migrations of each tenant are counted and one tenant is compared with what stock Django makes:
its dump and the number of rows of each table. All processes keep
their bytecode in one folder, which is empty at first, and each is started once before it is measured.

`x best peer`: how many times faster than the fastest executor of any peer. `x SQL alone`: how many times slower than
the statements themselves, with 4 connections. MiB: the peak of the largest process. Statements, as messages to the
server and counted in a run over 10 tenants of its own, and sessions are per tenant, of all databases.
"""

import datetime
import os
import platform
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers import app_set, databases
from benchmarks.peers.databases import Truth
from benchmarks.peers.environments import ROOT, versions
from benchmarks.peers.replay import Home
from benchmarks.peers.report import Figure, section, table
from benchmarks.peers.stages import Sample, Stage
from benchmarks.peers.tools import TOOLS, Bench, DjangoPgschemas, DjangoTenants, Tool, stock_migrate
from benchmarks.peers.workloads import SMALL, WAGTAIL, Workload
from service.embedded_postgres import EmbeddedPostgres

COUNTED = 10  # tenants of the run whose statements are counted
HEAVY = 20  # tenants with wagtail
FEW = 2  # tenants of what is run only to be warm
CASES = {
    "start": "start of the process, an empty fleet; milliseconds in all",
    "from-zero": "from zero",
    "pending": "one migration pending",
    "nothing": "nothing to do",
    "large": "nothing to do; of tables, only django_migrations, content types and permissions",
    "wagtail": "wagtail, from zero",
}
# The executors of the peers that were the fastest on two processors, or close to it, in each case.
BEST = {"django-tenants": "multiprocessing 2/2", "django-pgschemas": "parallel 2"}
ORDINARY = ("from-zero", "pending", "nothing")
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
Key = tuple[str, str, str]
Samples = Mapping[Key, Sequence[Sample]]


def measure(
    *,
    tenants: Sequence[int],
    in_databases: Sequence[int],
    large: int,
    cases: Sequence[str],
    tools: Sequence[str],
    rounds: int,
    best_only: bool,
    write: bool,
) -> None:
    chosen = [TOOLS[name] for name in tools]
    tables: list[str] = []
    with _bench(SMALL) as bench:
        facts = _facts(bench, chosen)
        if best_only:
            facts += [f"of {tool.name} only {BEST[tool.name]}" for tool in chosen if tool.name in BEST]
        print("; ".join(facts), flush=True)
        comparison = _Comparison(bench=bench, truth=_truth(bench), tools=chosen, rounds=rounds, best_only=best_only)
        if "start" in cases:
            comparison.warm(0, "start")
            tables += comparison.tables("schema", 0, ["start"])
        ordinary = [case for case in ORDINARY if case in cases]
        for isolation, sizes in (("schema", tenants), ("database", in_databases)):
            counts = comparison.counts(isolation, ordinary) if ordinary and sizes else {}
            for size in sizes:
                tables += comparison.tables(isolation, size, ordinary, counts)
        if "large" in cases:
            comparison.warm(FEW, "large")
            tables += comparison.tables("schema", large, ["large"])
    if "wagtail" in cases:
        with _bench(WAGTAIL) as bench:
            comparison = _Comparison(bench=bench, truth=_truth(bench), tools=chosen, rounds=rounds, best_only=best_only)
            comparison.warm(FEW, "wagtail")
            tables += comparison.tables("schema", HEAVY, ["wagtail"])
    if write:
        command = " ".join(["python -m benchmarks", *sys.argv[1:]])
        with RESULTS.open("a") as results:
            results.write(
                section(f"Beside the peers, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}", facts, command, tables)
            )


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    bench: Bench
    truth: Truth
    tools: Sequence[Tool]
    rounds: int
    best_only: bool

    def tables(self, isolation: str, size: int, cases: Sequence[str], counts: Samples | None = None) -> list[str]:
        """One for each case, printed as soon as its last round has ended."""
        tables = []
        for case, samples in self._samples(isolation, size, cases, self.rounds):
            figures = [self._figure(isolation, size, key, each, counts or {}) for key, each in samples.items()]
            title = f"{size:,} {isolation}s, {CASES[case]}" if size else CASES[case]
            tables.append(table(title, figures))
            print(f"\n{tables[-1]}", flush=True)
        return tables

    def counts(self, isolation: str, cases: Sequence[str]) -> Samples:
        """Samples whose statements are counted, and whose time is nobody's: everything is warm after them."""
        with databases.logged(self.bench.server):
            return {k: v for _, each in self._samples(isolation, COUNTED, cases, 1) for k, v in each.items()}

    def warm(self, size: int, case: str) -> None:
        """Start everything once where no counts() comes before it."""
        for _ in self._samples("schema", size, [case], 1):
            pass

    def _samples(
        self, isolation: str, size: int, cases: Sequence[str], rounds: int
    ) -> Iterator[tuple[str, dict[Key, list[Sample]]]]:
        tools = [tool for tool in self.tools if isolation in tool.isolations]
        stages = [Stage(self.bench, self.truth, tool, isolation=isolation, tenants=size) for tool in tools]
        for case in cases:
            samples: dict[Key, list[Sample]] = defaultdict(list)
            for _ in range(rounds):
                for stage in stages:
                    for variant in self._variants(stage.tool, case):
                        sample = stage.measure(variant, case)
                        samples[case, stage.tool.name, variant].append(sample)
                        told = f"{size} {isolation}s, {case}, {stage.tool.name}, {variant}: {sample.seconds:.2f} s"
                        print(told, file=sys.stderr, flush=True)
            yield case, samples
        for stage in stages:
            stage.discard()

    def _variants(self, tool: Tool, case: str) -> list[str]:
        best = BEST.get(tool.name) if self.best_only else None
        return [variant for variant in tool.variants(case) if best in {None, variant}]

    def _figure(self, isolation: str, size: int, key: Key, samples: Sequence[Sample], counts: Samples) -> Figure:
        _, name, variant = key
        tool = next(tool for tool in self.tools if tool.name == name)
        measured = min(size, tool.most or size)
        counted = min(COUNTED, tool.most or COUNTED)
        return Figure(
            tenants=size,
            measured=measured,
            tool=name,
            variant=variant,
            is_peer=tool.is_peer,
            seconds=[sample.seconds for sample in samples],
            mebibytes=max(sample.mebibytes for sample in samples),
            statements=counts[key][0].statements / counted if key in counts else None,
            sessions=samples[-1].sessions / max(measured, 1),
        )


@contextmanager
def _bench(workload: Workload) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as directory:
        apps = Path(directory) / "apps"
        app_set.write(apps)
        server = EmbeddedPostgres(Path(directory) / "server", durable=False)
        server.start()
        try:
            yield Bench(server=server, workload=workload, apps=apps, bytecode=Path(directory) / "bytecode")
        finally:
            server.destroy()


def _truth(bench: Bench) -> Truth:
    home = Home("stock", "t0")
    databases.recreate(bench.server, home.database)
    databases.make_empty(bench.server, [home])
    recording = bench.apps.parent / "recording"
    bench.run(stock_migrate(bench, home, recording=recording))
    return Truth(
        applied=databases.applied_counts(bench.server, [home])[0],
        dump=databases.dump(bench.server, home),
        rows=databases.row_counts(bench.server, home),
        statements=tuple(recording.read_text().split("\0")[:-1]),
    )


def _facts(bench: Bench, tools: Sequence[Tool]) -> list[str]:
    """The machine, and the versions of everything that matters."""
    with databases.cursor_of(bench.server, "postgres") as cursor:
        cursor.execute("SHOW server_version")
        (postgres,) = cursor.fetchone()
    installed = {"Django": version("django"), "psycopg2": version("psycopg2-binary")}
    for tool in tools:
        if isinstance(tool, DjangoTenants | DjangoPgschemas):
            installed |= versions(tool.python(bench.workload), [tool.name])
    return [
        f"{os.cpu_count()} processors ({_processor()}), load average {os.getloadavg()[0]:.1f}",
        f"PostgreSQL {postgres} without fsync",
        f"Python {platform.python_version()}",
        *(f"{name} {number}" for name, number in installed.items()),
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
