"""Rows as a table, one line each."""

from collections.abc import Iterator, Sequence
from io import StringIO

from django.core.management.base import OutputWrapper
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table


def write_table(stdout: OutputWrapper, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    titles = [column.replace("_", " ") for column in columns]
    for line in _fitted(titles, rows) if stdout.isatty() else _wide([titles, *rows]):
        stdout.write(line.rstrip())


def _fitted(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    table = Table(*titles, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(file=StringIO(), highlight=False, markup=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def _wide(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """As wide as the content: a script or a file has no edge to wrap at. Thousands of rows take Rich seconds."""
    widths = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True))
