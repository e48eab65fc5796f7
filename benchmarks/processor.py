"""Processor time of this process and of a whole tree: what a busy machine does not change."""

import os
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def processor_time(root: int) -> float:
    """Seconds that this process and the one with id `root` have used, with all that came from it, ended or not."""
    return time.process_time() + _of_tree(root)


def trees_time(*roots: int) -> float:
    """Seconds that the processes with these ids have used, with all that came from them."""
    return sum(map(_of_tree, roots))


def _of_tree(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended, and its time is its parent's
        return 0.0
    # user, system, and the same of children that have ended: the 14th to 17th field, of which two were cut off
    return sum(map(int, fields[11:15])) / TICK + sum(_of_tree(int(child)) for child in children)
