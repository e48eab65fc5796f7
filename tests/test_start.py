"""How a command starts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import GIVE_UP, Process, output, processes

# As manage.py does it, and then what that has come to.
PROGRAM = """
import gc, sys
from manage import Utility
Utility(["manage.py", *sys.argv[1:]]).execute()
print("collects:", gc.isenabled(), "spares what was there before:", gc.get_freeze_count() > 0)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Run a command to its end in a process of its own; what it wrote."""
    with processes(tmp_path) as start:

        def finish(*arguments: str, **values: Any) -> str:
            process: Process = start(*arguments, program=("-c", PROGRAM), **values)
            assert process.wait(GIVE_UP) == 0, output(process)
            return output(process)

        yield finish


def test_command__collects_garbage_and_spares_what_was_imported(plane: None, run: Callable[..., str]) -> None:
    assert "collects: True spares what was there before: True" in run("showtenants")
    assert "collects: True" in run("check")
