"""What something costs a worker that has not done it yet, and one that has."""

import gc
import multiprocessing
from collections.abc import Callable, Sequence
from itertools import count

# Milliseconds on the clock, and of the processors.
Cost = tuple[float, float]
Costs = dict[str, list[Cost]]  # by kind
Make = Callable[[str, str], Cost]  # of a name and a kind


def costs(make: Make, kinds: Sequence[str], *, prefix: str, times: int) -> dict[str, Costs]:
    """By case; a process is forked for each that is the `first` in its own, and has loaded what it needs.

    `making` is what the very first of each kind took.
    """
    # As manage.py does it: else each process makes a copy of what it looks through for garbage.
    gc.freeze()
    names = (f"{prefix}-{number}" for number in count())
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as fresh:
        making = {kind: [fresh.apply(make, (next(names), kind))] for kind in kinds}
        first = _in_turn(lambda kind: fresh.apply(make, (next(names), kind)), kinds, times)
    for kind in [*kinds, *kinds]:
        make(next(names), kind)
    further = _in_turn(lambda kind: make(next(names), kind), kinds, times)
    return {"making": making, "first": first, "further": further}


def _in_turn(measure: Callable[[str], Cost], kinds: Sequence[str], times: int) -> Costs:
    found: Costs = {kind: [] for kind in kinds}
    for number in range(times):
        for kind in kinds if number % 2 else reversed(kinds):
            found[kind].append(measure(kind))
    return found
