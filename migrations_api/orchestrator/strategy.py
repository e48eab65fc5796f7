"""How a rollout goes about its tenants: amounts, waves and budgets, as pure functions over numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from migrations_api.exceptions import InvalidOptions

_AMOUNT: Final = re.compile(r"(\d{1,9})(%?)")


class OnError(StrEnum):
    """What happens once more tenants have failed than `max_failures` allows."""

    CONTINUE = "continue"
    PAUSE = "pause"
    FAIL = "fail"


class BudgetMode(StrEnum):
    """`strict` never has more in flight than may still fail; `soft` may overshoot by what is in flight."""

    SOFT = "soft"
    STRICT = "strict"


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A number of tenants, or a share of all of them."""

    number: int
    percent: bool = False

    @classmethod
    def parse(cls, text: str | int) -> "Amount":
        """`5` or `"10%"`; raises InvalidOptions."""
        match = _AMOUNT.fullmatch(str(text).strip())
        if match is None or (match[2] and int(match[1]) > 100):
            raise InvalidOptions(f"{str(text)[:20]!r} is neither a number of tenants nor a percentage up to 100%.")
        return cls(number=int(match[1]), percent=bool(match[2]))

    def of(self, total: int) -> int:
        """As a budget: rounded down, so that 10% of 15 lets one tenant fail."""
        return self.number * total // 100 if self.percent else self.number

    def at_least_one_of(self, total: int) -> int:
        """As a size: rounded up, so that 1% of 15 is a tenant."""
        return max(1, -(-self.number * total // 100) if self.percent else self.number)

    def __str__(self) -> str:
        return f"{self.number}{'%' if self.percent else ''}"


@dataclass(frozen=True, kw_only=True)
class Wave:
    """The next so many tenants, or those with all of the labels. What no wave names is the last one."""

    size: Amount | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """`max_failures` None: any number. `bake_time`, `progress_deadline`: seconds; 0 is none."""

    waves: tuple[Wave, ...] = ()
    max_failures: Amount | None = None
    on_error: OnError = OnError.CONTINUE
    mode: BudgetMode = BudgetMode.SOFT
    bake_time: float = 0
    manual_promote: bool = False
    progress_deadline: float = 0


def assign_waves(strategy: Strategy, labels_by_tenant: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, int]:
    """The wave of each tenant, from 1 on, in the order given; wave 0 is that of shared tenants and not given out here.

    Sizes are of all tenants given. A wave that gets nobody is left out, so that none has to be waited for.
    """
    left = list(labels_by_tenant)
    assigned: dict[str, int] = {}
    number = 1
    for wave in [*strategy.waves, None]:
        chosen = left if wave is None else _chosen(wave, left, total=len(labels_by_tenant))
        if not chosen:
            continue
        assigned |= {tenant_id: number for tenant_id, _ in chosen}
        left = [row for row in left if row[0] not in assigned]
        number += 1
    return assigned


def _chosen(
    wave: Wave, left: Sequence[tuple[str, Mapping[str, Any]]], *, total: int
) -> list[tuple[str, Mapping[str, Any]]]:
    fitting = [row for row in left if all(row[1].get(key) == value for key, value in wave.labels.items())]
    return fitting if wave.size is None else fitting[: wave.size.at_least_one_of(total)]


def is_over_budget(strategy: Strategy, *, failed: int, total: int) -> bool:
    """Whether more have failed than may: no new tenant is started from then on."""
    return strategy.max_failures is not None and failed > strategy.max_failures.of(total)


def slots(strategy: Strategy, *, concurrency: int, in_flight: int, failed: int, total: int) -> int:
    """How many more tenants may be started now."""
    room = concurrency - in_flight
    if strategy.max_failures is not None and strategy.mode is BudgetMode.STRICT:
        room = min(room, strategy.max_failures.of(total) + 1 - failed - in_flight)
    return max(0, room)
