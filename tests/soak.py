"""How large the tests of fleets and faults are: small in the ordinary suite, and whole where `make soak` says so.

SOAK=1 is the whole; SOAK=0.1 is a tenth of it, but never less than the ordinary suite has.
"""

import os
import signal
import statistics
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

SHARE = float(os.environ.get("SOAK") or 0)
IS_WHOLE = SHARE > 0
# Of the whole sizes, with other work on the machine.
LONG = 3600 if IS_WHOLE else 180  # seconds


def sized(small: float, whole: float) -> float:
    return max(small, whole * SHARE) if IS_WHOLE else small


def measured(record_property: Callable[[str, object], None], goal: str, figure: str, found: str) -> None:
    """One row of the table that pytest prints at the end of a soak."""
    record_property(goal, [figure, found])


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
