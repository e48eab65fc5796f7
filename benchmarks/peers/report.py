"""Figures as tables: no clock and no database here."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HEADER = ("", "ms/tenant", "x best peer", "x SQL alone", "seconds", "MiB", "statements", "sessions")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One tool with one executor in one case. `tenants` is the fleet, of which `measured` were really migrated.

    `seconds` are of whole processes, one for each round. `statements` and `sessions` are per tenant.
    """

    tenants: int
    measured: int
    tool: str
    variant: str
    is_peer: bool
    seconds: Sequence[float]
    mebibytes: int
    statements: float | None
    sessions: float

    @property
    def label(self) -> str:
        return f"{self.tool}, {self.variant}"

    @property
    def milliseconds(self) -> float:
        """Per tenant, the median of the rounds; of an empty fleet, in all."""
        return statistics.median(self.seconds) * 1000 / max(self.measured, 1)

    @property
    def whole(self) -> float:
        """Seconds for the whole fleet."""
        return self.milliseconds * max(self.tenants, 1) / 1000


def best_peer(figures: Iterable[Figure]) -> float | None:
    """Milliseconds per tenant of the fastest executor of any peer."""
    return min((each.milliseconds for each in figures if each.is_peer), default=None)


def sql_alone(figures: Iterable[Figure]) -> float | None:
    return min((each.milliseconds for each in figures if each.tool == "SQL alone"), default=None)


def table(title: str, figures: Sequence[Figure]) -> str:
    """`x best peer` is how many times faster, `x SQL alone` how many times slower."""
    peer, alone = best_peer(figures), sql_alone(figures)
    rows = [HEADER, *(_row(each, peer, alone) for each in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([title, *lines])


def _row(figure: Figure, peer: float | None, alone: float | None) -> tuple[str, ...]:
    own = figure.milliseconds
    return (
        figure.label,
        _number(own),
        _number(peer / own) if peer else "",
        _number(own / alone) if alone else "",
        f"{figure.whole:.2f}",
        str(figure.mebibytes),
        "" if figure.statements is None else f"{figure.statements:.1f}",
        f"{figure.sessions:.2f}",
    )


def _number(value: float) -> str:
    """Three digits where there are so many."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def section(date: str, facts: Sequence[str], command: str, tables: Sequence[str]) -> str:
    """A part of RESULTS.md."""
    body = "\n\n".join(tables)
    return f"\n## {date}\n\n{'; '.join(facts)}.\n\n`{command}`\n\n```\n{body}\n```\n"
