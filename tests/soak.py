"""How large the tests of whole fleets are: small in the ordinary suite, and whole where `make soak` says so."""

import os
import signal
import statistics
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

IS_WHOLE = os.environ.get("SOAK", "") not in {"", "0"}
# Of the whole sizes, with other work on the machine.
LONG = 3600 if IS_WHOLE else 180  # seconds


def sized(small: float, whole: float) -> float:
    return whole if IS_WHOLE else small


def children(pid: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def resident(pid: int) -> float:
    """MiB of memory; 0 for a process that is gone."""
    with suppress(FileNotFoundError, ProcessLookupError, IndexError):
        return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
    return 0.0


def at(values: Iterable[float], percent: int) -> float:
    found = sorted(values)
    return statistics.quantiles(found, n=100, method="inclusive")[percent - 1] if len(found) > 1 else found[0]
