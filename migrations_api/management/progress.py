"""A bar for long work: below the lines on a terminal, alone on stderr when stdout is piped, nowhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.core.management.base import OutputWrapper

from migrations_api.dispatch.base import Emit
from migrations_api.management.presenter import FleetPresenter

Make = Callable[[OutputWrapper], FleetPresenter]


def without_bar(make: Make, stdout: OutputWrapper) -> tuple[FleetPresenter, Emit]:
    presenter = make(stdout)
    return presenter, presenter


@contextmanager
def with_bar(make: Make, stdout: OutputWrapper, count: Callable[[], int]) -> Iterator[tuple[FleetPresenter, Emit]]:
    """The presenter, and where to send a rollout's events; how many runs it has is asked only for a bar."""
    if not sys.stderr.isatty():
        yield without_bar(make, stdout)
        return
    from migrations_api.management import bar  # noqa: PLC0415 - a pipeline has no terminal and needs no Rich

    with bar.drawn(make, stdout, count()) as shown:
        yield shown
