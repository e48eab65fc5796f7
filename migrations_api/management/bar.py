"""The bar itself, which is drawn by Rich; to be imported only where there is a terminal for it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.core.management.base import OutputWrapper
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from migrations_api.dispatch.base import Emit
from migrations_api.events import Event, RunEnded, StepStarted
from migrations_api.management.presenter import FleetPresenter

COLUMNS = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))


class AboveBar(OutputWrapper):
    """Writes whole lines above the bar; a line that is begun stays away until it ends, or the bar would cut it."""

    def __init__(self, console: Console) -> None:
        super().__init__(sys.stdout)
        self._console = console
        self._line = ""

    def write(  # type: ignore[override]  # as OutputWrapper has it
        self, msg: str = "", style_func: Callable[[str], str] | None = None, ending: str | None = None
    ) -> None:
        whole, newline, self._line = (self._line + msg).rpartition("\n")
        if newline:
            self._console.print(Text.from_ansi(whole), soft_wrap=True)


@contextmanager
def drawn(
    make: Callable[[OutputWrapper], FleetPresenter], stdout: OutputWrapper, total: int
) -> Iterator[tuple[FleetPresenter, Emit]]:
    console = Console(stderr=True)
    # Without a thread of its own: workers are forked from this process.
    with Progress(*COLUMNS, console=console, auto_refresh=False, transient=True) as bar:
        presenter = make(AboveBar(console) if stdout.isatty() else stdout)
        task = bar.add_task("", total=total)

        def emit(event: Event) -> None:
            presenter(event)
            if isinstance(event, RunEnded):
                bar.update(task, advance=1, description="")
            elif isinstance(event, StepStarted):
                bar.update(task, description=f"{event.tenant_id}: {event.file}")
            bar.refresh()

        yield presenter, emit
