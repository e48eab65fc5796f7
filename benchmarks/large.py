"""What a large fleet of schemas takes to be read: where it stands, its plan, and that there is nothing to do.

On an embedded server of its own: schemas with a table of migrations each, a tenth of them behind at four places. Cold:
nobody has looked at any of them, `manage.py serve` is started, and a client asks until an answer has all of them. From
cache: one client asks the same server, one question after the other; queries are those of a process that has answered
nothing before. Then whole processes of the commands, the last ones with all tenants up to date. Sessions and statements
are those with the tenants' server, where several statements in one message are one. Processor time is that of all
processes, the server's included, which a busy machine changes less; MiB is the peak of the largest process.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.bytecode import compiled_in
from benchmarks.peers import processes
from benchmarks.peers.databases import cursor_of, log_size
from benchmarks.processor import trees_time
from benchmarks.reads import ROOT, Api, at, served
from service.embedded_postgres import EmbeddedPostgres

PLANE, TENANTS = "plane", "shop"
MANAGE = [sys.executable, "manage.py"]
APPS = [
    *(f"django.contrib.{app}" for app in ("contenttypes", "auth")),
    *(f"examples.shop.{app}" for app in ("users", "products", "orders")),
]
LOGGED = 0.3  # seconds after which the server has written of the sessions that ended last
COMMANDS = {
    "showtenants": ["showtenants"],
    "migratealltenants --dry-run": ["migratealltenants", "--dry-run"],
}
# With every tenant up to date.
IDLE_COMMANDS = {
    f"nothing to do, {executor}": ["migratealltenants", "--no-input", f"--executor={executor}"]
    for executor in ("sequential", "parallel")
}
LOG = {"log_line_prefix": "%d ", "log_connections": "on", "log_disconnections": "on"}
STATEMENT, BEGIN, END = (
    f"{TENANTS} LOG:  {event}".encode() for event in ("statement: ", "connection authorized: ", "disconnection: ")
)


@dataclass(kw_only=True)
class Traffic:
    sessions: int = 0
    at_once: int = 0
    statements: int = 0
    processor: float = 0  # seconds of all processes, the server's included

    def __str__(self) -> str:
        return f"{self.sessions} sessions, at most {self.at_once} at once, {self.statements} statements"


@dataclass(frozen=True, kw_only=True)
class Bench:
    server: EmbeddedPostgres
    environment: Mapping[str, str]
    directory: Path

    def run(self, *arguments: str) -> processes.Cost:
        command = processes.Command(arguments=[*MANAGE, *arguments], environment=self.environment, cwd=ROOT)
        return processes.run(command, bytecode=self.directory / "bytecode")

    def fleet(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "benchmarks.large_fleet", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    @property
    def processor(self) -> float:
        return trees_time(os.getpid(), self.server.pid)

    @contextmanager
    def counted(self) -> Iterator[Traffic]:
        """What the block has sent to the tenants' server, once it is over."""
        traffic, since, used = Traffic(), log_size(self.server), self.processor
        yield traffic
        time.sleep(LOGGED)
        traffic.processor = self.processor - used
        with (self.server.directory / "log").open("rb") as log:
            log.seek(since)
            _count(log, traffic)


def _count(log: Iterable[bytes], traffic: Traffic) -> None:
    open_now = 0
    for line in log:
        open_now += line.startswith(BEGIN) - line.startswith(END)
        traffic.sessions += line.startswith(BEGIN)
        traffic.statements += line.startswith(STATEMENT)
        traffic.at_once = max(traffic.at_once, open_now)


def measure(*, tenants: int, answers: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedPostgres(Path(directory) / "server", durable=False)
        server.start(databases=[PLANE, TENANTS])
        try:
            bench = Bench(server=server, environment=_environment(server, directory), directory=Path(directory))
            _log(server)
            bench.run("migrate", "-v0")
            began = time.monotonic()
            made = json.loads(bench.fleet(f"--tenants={tenants}"))
            print(
                f"{tenants:,} schema tenants with {made['migrations']} migrations, {os.cpu_count()} processors,"
                f" load average {os.getloadavg()[0]:.1f}; made in {time.monotonic() - began:.0f} s\n",
                flush=True,
            )
            _answers(bench, made, answers)
            bench.run("showtenants", "--isolation-type=shared")  # whatever is to be compiled
            columns = f"{'seconds':>8}{'processor':>11}{'MiB':>6}{'sessions':>10}{'at once':>9}{'statements':>12}"
            print(f"\n{'whole processes':30}{columns}")
            _commands(bench, COMMANDS, rounds)
            bench.fleet("--finish")
            _commands(bench, IDLE_COMMANDS, rounds)
        finally:
            server.destroy()


def _environment(server: EmbeddedPostgres, directory: str) -> dict[str, str]:
    return {
        **compiled_in(Path(directory) / "bytecode"),
        "DATABASE_URL": server.url(PLANE),
        "TENANT_DATABASE_URLS": f"{TENANTS}={server.url(TENANTS)}",
        "TENANT_APPS": ",".join(APPS),
        "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
        "SECRET_KEY": "benchmark",
        "HTTPS": "false",
    }


def _log(server: EmbeddedPostgres) -> None:
    with cursor_of(server, "postgres") as cursor:
        for name, value in LOG.items():
            cursor.execute(f"ALTER SYSTEM SET {name} = %s", [value])
        cursor.execute(f"ALTER DATABASE {TENANTS} SET log_statement = 'all'")
        cursor.execute("SELECT pg_reload_conf()")


def _answers(bench: Bench, made: Mapping[str, Any], answers: int) -> None:
    urls = {name: url for name, (url, _) in made["asked"].items()}
    began = time.time()
    with bench.counted() as traffic, served(bench.environment, bench.directory / "log") as port:
        api = Api(port=port, token=made["token"])
        connection = api.connect()
        print(f"cold: it answers {time.time() - began:.2f} s after its start", flush=True)
        _wait_for_all(api, connection, urls["fleet"], began)
        used = {}
        for name, url in urls.items():
            first, before = _timed(api, connection, url), bench.processor
            times = [_timed(api, connection, url) for _ in range(answers)]
            used[name] = (first, times, (bench.processor - before) / answers * 1000)
        sizes = {name: len(api.ask(connection, url)) for name, url in urls.items()}
    print(f"the look: {traffic}\n")
    columns = ("first", "from cache", "p95", "processor", "queries", "bytes")
    print(f"{'milliseconds':20}{''.join(f'{column:>12}' for column in columns)}")
    for name, (first, times, processor) in used.items():
        figures = (first, statistics.median(times), at(times, 95), processor)
        told = "".join(f"{figure:12.1f}" for figure in figures)
        print(f"{name:20}{told}{made['asked'][name][1]:12}{sizes[name]:12,}")


def _wait_for_all(api: Api, connection: Any, url: str, began: float) -> None:
    fleet = json.loads(api.ask(connection, url))
    while fleet["by_status"]["unreachable"]:
        time.sleep(0.1)
        fleet = json.loads(api.ask(connection, url))
    ended = time.time()
    looked = ended - datetime.fromisoformat(fleet["oldest_observation"]).timestamp()
    print(f"/fleet has all of them {ended - began:.2f} s after its start, {looked:.2f} s after the look began")


def _timed(api: Api, connection: Any, url: str) -> float:
    began = time.perf_counter()
    api.ask(connection, url)
    return (time.perf_counter() - began) * 1000


def _commands(bench: Bench, commands: Mapping[str, list[str]], rounds: int) -> None:
    for name, arguments in commands.items():
        costs, processor = [], []
        for _ in range(rounds):
            with bench.counted() as traffic:
                costs.append(bench.run(*arguments))
            processor.append(traffic.processor)
        seconds, memory = statistics.median(cost.seconds for cost in costs), max(cost.mebibytes for cost in costs)
        print(
            f"{name:30}{seconds:8.2f}{statistics.median(processor):11.2f}{memory:6}"
            f"{traffic.sessions:10}{traffic.at_once:9}{traffic.statements:12}",
            flush=True,
        )
