"""`manage.py …` as a process of its own, on the control plane of the test that starts it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings as configured

ROOT = Path(__file__).resolve().parent.parent
GIVE_UP = 60  # seconds
# Short, so that what waits for a lease or a heartbeat does not make the suite wait.
CONF = {"lock_wait": 0.5, "backoff": 0.05, "attempts": 2, "lease": 2, "heartbeat": 0.5, "observe_every": 0.5}
Process = subprocess.Popen[str]


@contextmanager
def processes(folder: Path) -> Iterator[Callable[..., Process]]:
    """A function that starts `manage.py` with arguments, broken migrations by app, and settings of TENANT_MIGRATIONS.

    `program` is what Python runs instead of manage.py. What it started and what still runs at the end is killed. Their
    output goes to `<folder>/<number>.log`.
    """
    started: list[Process] = []

    def start(
        *arguments: str,
        program: Sequence[str] = ("manage.py",),
        broken: dict[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        own_session: bool = False,
        **conf: Any,
    ) -> Process:
        packages = {app: f"tests.broken.{package}" for app, package in (broken or {}).items()}
        module = f"chosen_{len(started)}"
        (folder / f"{module}.py").write_text(
            f"from tests.settings import *\nMIGRATION_MODULES = {packages}\nTENANT_MIGRATIONS = {CONF | conf}\n"
        )
        with (folder / f"{len(started)}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, *program, *arguments],
                cwd=ROOT,
                env={
                    **os.environ,
                    "DATABASE_URL": _url(configured.DATABASES["default"]["NAME"]),
                    "TEST_RUN": configured.SUFFIX,
                    "DJANGO_SETTINGS_MODULE": module,
                    "PYTHONPATH": str(folder),
                    **(environment or {}),
                },
                start_new_session=own_session,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        process.log = folder / f"{len(started)}.log"  # type: ignore[attr-defined]
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def _url(database: str) -> str:
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{database}").geturl()


def output(process: Process) -> str:
    return Path(process.log).read_text()  # type: ignore[attr-defined]


def wait_until(condition: Callable[[], object], *, give_up: float = GIVE_UP) -> None:
    deadline = time.monotonic() + give_up
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)
