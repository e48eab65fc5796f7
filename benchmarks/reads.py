"""What an answer takes with a large control plane, while nothing else goes on and while tenants are migrated.

On an embedded server of its own: a fleet and its runs as rows, `manage.py serve` over them, and a few clients that ask
one question after the other. Prints the queries of an answer, and the milliseconds until a client has it.
"""

import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.servers import plane_and_shop

ROOT = Path(__file__).resolve().parent.parent
ENDED = {"succeeded", "failed", "canceled"}
Times = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Api:
    port: int
    token: str

    def ask(self, connection: http.client.HTTPConnection, url: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        content = json.dumps(body) if body is not None else None
        connection.request("GET" if body is None else "POST", url, content, headers)
        response = connection.getresponse()
        text = response.read()
        assert response.status < 300, (url, response.status, text)
        return text

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)


def measure(*, tenants: int, runs: int, migrated: int, clients: int, seconds: float) -> None:
    settings = {"DJANGO_SETTINGS_MODULE": "benchmarks.settings", "SECRET_KEY": "benchmark", "HTTPS": "false"}
    with plane_and_shop(**settings) as (_, environment, folder):
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=environment, check=True)
        plane = [f"--tenants={tenants}", f"--runs={runs}", f"--migrated={migrated}"]
        command = [sys.executable, "-m", "benchmarks.control_plane", *plane]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
        filled = json.loads(done.stdout)
        asked: dict[str, tuple[str, int]] = filled["asked"]
        urls = {name: url for name, (url, _) in asked.items()}
        with served(environment, folder / "log") as port:
            api = Api(port=port, token=filled["token"])
            idle = _idle(api, urls, clients, seconds)
            busy, took = _busy(api, urls, clients)
    print(
        f"{tenants:,} tenants, {runs:,} runs; {clients} clients, {os.cpu_count()} processors; milliseconds\n"
        f"busy: while migrate-all goes over {migrated} schemas, in {took:.0f} s\n\n"
        f"{'':20}{'queries':>8}{'idle p50':>10}{'p95':>8}{'busy p50':>10}{'p95':>8}{'answers':>9}"
    )
    for name, (_, queries) in asked.items():
        figures = "".join(f"{at(times[name], 50):10.1f}{at(times[name], 95):8.1f}" for times in (idle, busy))
        print(f"{name:20}{queries:8}{figures}{len(idle[name]) + len(busy[name]):9}")


@contextmanager
def served(environment: Mapping[str, str], log: Path) -> Iterator[int]:
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--port=0"], cwd=ROOT, env=environment, stdout=file, stderr=file
        )
    try:
        yield _port(process, log)
    finally:
        process.terminate()
        process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port that it listens on, once it is ready."""
    while process.poll() is None:
        if found := re.search(r"^API .*:(\d+)/", log.read_text(), re.M):
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(log.read_text())


def _idle(api: Api, urls: Mapping[str, str], clients: int, seconds: float) -> Times:
    _ask_until(api, urls, clients, _after(1.0))
    return _ask_until(api, urls, clients, _after(seconds))


def _after(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() >= deadline


def _busy(api: Api, urls: Mapping[str, str], clients: int) -> tuple[Times, float]:
    """What was measured until migrate-all had ended, and how many seconds that took."""
    connection = api.connect()
    rollout = json.loads(api.ask(connection, "/tenants/migrate-all", {"selector": {"isolation": "schema"}}))["id"]
    began = time.monotonic()
    looked_at = 0.0
    state = ""

    def is_over() -> bool:
        nonlocal looked_at, state
        if state not in ENDED and time.monotonic() - looked_at >= 0.5:
            looked_at = time.monotonic()
            state = json.loads(api.ask(api.connect(), f"/rollouts/{rollout}"))["state"]
        return state in ENDED

    times = _ask_until(api, urls, clients, is_over)
    assert state == "succeeded", state
    return times, time.monotonic() - began


def _ask_until(api: Api, urls: Mapping[str, str], clients: int, is_over: Callable[[], bool]) -> Times:
    """Milliseconds of each answer, by question. Each client begins at another question."""
    times: Times = defaultdict(list)

    def ask(client: int) -> None:
        connection = api.connect()
        names = list(urls)
        start = client * len(names) // clients
        for name in cycle(names[start:] + names[:start]):
            if is_over():
                break
            began = time.monotonic()
            api.ask(connection, urls[name])
            times[name].append((time.monotonic() - began) * 1000)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))
    return times


def at(times: list[float], percent: int) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1] if len(times) > 1 else times[0]
