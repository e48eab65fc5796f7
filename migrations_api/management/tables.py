"""Rows as a table, one line each."""

from collections.abc import Sequence
from io import StringIO

from django.core.management.base import OutputWrapper
from rich.console import Console
from rich.table import Table


def write_table(stdout: OutputWrapper, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*[column.replace("_", " ") for column in columns], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    # Piped, the width is that of the content: a script or a file has no edge to wrap at.
    width = None if stdout.isatty() else 10_000
    console = Console(file=StringIO(), width=width, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        stdout.write(line.rstrip())
