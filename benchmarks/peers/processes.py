"""A command as a process of its own, and what it has cost."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bytecode import compiled_in

TOLD = 4000  # characters of what a process has written before it failed


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


def run(command: Command, *, bytecode: Path) -> Cost:
    """`bytecode` is the folder of whatever it compiles.

    Raises CalledProcessError for anything but success, with the end of what it wrote as a note.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as given:
        given.write(command.given)
        given.seek(0)
        began = time.perf_counter()
        process = subprocess.Popen(
            command.arguments,
            cwd=command.cwd,
            env={**compiled_in(bytecode), **command.environment},
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
            written = output.read()
            arguments = [str(each) for each in command.arguments]
            error = subprocess.CalledProcessError(process.returncode, arguments, written)
            error.add_note(f"The end of what it wrote:\n{written[-TOLD:]}")
            raise error
    return Cost(seconds=seconds, mebibytes=usage.ru_maxrss // 1024)
