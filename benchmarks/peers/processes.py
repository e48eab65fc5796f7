"""A command as a process of its own, and what it has cost."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.environments import CACHE


@dataclass(frozen=True, kw_only=True)
class Command:
    arguments: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path
    given: str = ""  # to its standard input


@dataclass(frozen=True, kw_only=True)
class Cost:
    seconds: float  # of the whole process, from its start to its end
    mebibytes: int  # of memory, at its peak, of the largest process that took part


def run(command: Command) -> Cost:
    """Raises CalledProcessError with what it wrote, for anything but success."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as given:
        given.write(command.given)
        given.seek(0)
        began = time.perf_counter()
        process = subprocess.Popen(
            command.arguments,
            cwd=command.cwd,
            env={**_environment(), **command.environment},
            stdin=given,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        # The peak of the process and of all that it has waited for.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.stderr.write(output.read()[-4000:])
            raise subprocess.CalledProcessError(process.returncode, [str(each) for each in command.arguments])
    return Cost(seconds=seconds, mebibytes=usage.ru_maxrss // 1024)


def _environment() -> dict[str, str]:
    """Ours, where Python may keep its bytecode: what pip has installed has some, a checkout perhaps none."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**own, "PYTHONPYCACHEPREFIX": str(CACHE / "bytecode")}
