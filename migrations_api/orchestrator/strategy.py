"""How a rollout goes through its tenants: waves, budgets, caps. Over numbers alone; nothing here reads a row."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from re import compile as pattern
from typing import Any, ClassVar, Final, TypeVar

from migrations_api.exceptions import InvalidOptions
from migrations_api.orchestrator.stored import Stored

NUMBER: Final = pattern("[0-9]{1,7}")
PERCENT: Final = pattern(r"((?:100|[0-9]{1,2})(?:\.[0-9]{1,4})?)%")
MAX_WAVES: Final = 100
T = TypeVar("T")


class OnError(StrEnum):
    """What more failures than `max_failures` mean for the tenants that are not started yet.

    With `continue` there is no such limit unless one is given, and then it ends the rollout as `fail` does.
    """

    CONTINUE = "continue"
    PAUSE = "pause"
    FAIL = "fail"


class FailureMode(StrEnum):
    """`strict` starts no more tenants at once than could fail without overshooting `max_failures` by more than one."""

    SOFT = "soft"
    STRICT = "strict"


class Promotion(StrEnum):
    """Whether the next wave opens by itself, after its `bake_time`, or when somebody says so."""

    AUTO = "auto"
    MANUAL = "manual"


@dataclass(frozen=True)
class Amount:
    """A number of tenants, or a percentage of however many there are, of which the fraction is dropped."""

    number: int = 0
    percent: Decimal | None = None

    @classmethod
    def parse(cls, given: object) -> "Amount":
        """From 5, "5" or "10%"; raises InvalidOptions."""
        text = str(given) if isinstance(given, int | str) and not isinstance(given, bool) else ""
        if NUMBER.fullmatch(text):
            return cls(number=int(text))
        if (found := PERCENT.fullmatch(text)) and Decimal(found[1]) <= 100:
            return cls(percent=Decimal(found[1]))
        raise InvalidOptions(
            f"{str(given)[:20]!r} is neither a number of tenants, such as 5, nor a percentage, such as 10%."
        )

    def of(self, total: int) -> int:
        """10% of 59 is 5."""
        return self.number if self.percent is None else int(self.percent * total / 100)

    def at_least_one_of(self, total: int) -> int:
        return max(1, self.of(total))

    @property
    def is_nothing(self) -> bool:
        return not self.number and not self.percent

    @property
    def value(self) -> int | str:
        """As it was given."""
        return self.number if self.percent is None else f"{self.percent}%"


@dataclass(frozen=True)
class Group:
    """One wave: so many tenants, or those that have all of some labels."""

    size: Amount | None = None
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, given: object) -> "Group":
        """From 5, "10%" or {"labels": {"tier": "free"}}; raises InvalidOptions."""
        if isinstance(given, Mapping):
            labels = given.get("labels")
            if set(given) != {"labels"} or not isinstance(labels, Mapping) or not labels:
                raise InvalidOptions('A wave is a number, a percentage, or {"labels": {...}} with at least one label.')
            return cls(labels=tuple(sorted((str(key), str(value)) for key, value in labels.items())))
        size = Amount.parse(given)
        if size.is_nothing:
            raise InvalidOptions("A wave has at least one tenant.")
        return cls(size=size)

    def takes(self, labels: Mapping[str, str]) -> bool:
        return self.size is None and dict(self.labels).items() <= labels.items()

    @property
    def value(self) -> Any:
        """As it was given."""
        return self.size.value if self.size else {"labels": dict(self.labels)}


@dataclass(frozen=True, kw_only=True)
class Strategy(Stored):
    """How a rollout goes through its tenants. Times are in seconds; percentages are of all its tenants.

    `max_concurrency` limits the tenants in flight, `max_per_database` those of one database server. The tenants that
    `canary` and `waves` leave over are the last wave.
    """

    readers: ClassVar = {
        "max_concurrency": Amount.parse,
        "max_failures": Amount.parse,
        "canary": Group.parse,
        "waves": lambda given: tuple(map(Group.parse, given)),
    }

    max_concurrency: Amount | None = None
    max_per_database: int | None = None
    max_failures: Amount | None = None
    failure_mode: str = FailureMode.SOFT
    on_error: str = OnError.CONTINUE
    canary: Group | None = None
    waves: tuple[Group, ...] = ()
    bake_time: float = 0
    promotion: str = Promotion.AUTO
    progress_deadline: float | None = None

    def __post_init__(self) -> None:
        if len(self.waves) > MAX_WAVES:
            raise InvalidOptions(f"A rollout has at most {MAX_WAVES} waves.")
        if self.max_concurrency is not None and self.max_concurrency.is_nothing:
            raise InvalidOptions("max_concurrency is at least 1, or more than 0%.")
        if self.max_per_database is not None and self.max_per_database < 1:
            raise InvalidOptions("max_per_database is at least 1.")
        if self.progress_deadline is not None and self.progress_deadline <= 0:
            raise InvalidOptions("progress_deadline is more than 0 seconds.")
        if self.failure_mode == FailureMode.STRICT and self.max_failures is None and self.on_error == OnError.CONTINUE:
            raise InvalidOptions("failure_mode strict keeps to a max_failures, and none is given.")
        if (self.bake_time or self.promotion == Promotion.MANUAL) and not self.groups:
            raise InvalidOptions("bake_time and promotion come between waves; give a canary or waves as well.")

    @property
    def groups(self) -> tuple[Group, ...]:
        return (*([self.canary] if self.canary else []), *self.waves)

    @property
    def bounds_nothing(self) -> bool:
        """Whether any number may fail, and as many be in flight as there are workers."""
        return self.max_failures is None and self.on_error == OnError.CONTINUE and self.max_per_database is None

    def allowed_failures(self, total: int) -> int | None:
        """How many tenants may fail; None is any number."""
        if self.max_failures is not None:
            return self.max_failures.of(total)
        return None if self.on_error == OnError.CONTINUE else 0

    def is_over_budget(self, *, failed: int, total: int) -> bool:
        allowed = self.allowed_failures(total)
        return allowed is not None and failed > allowed

    def slots(self, *, failed: int, in_flight: int, total: int, limit: int) -> int:
        """How many more tenants may be started now, `limit` at most."""
        caps = [limit]
        if self.max_concurrency is not None:
            caps.append(self.max_concurrency.at_least_one_of(total) - in_flight)
        allowed = self.allowed_failures(total)
        if self.failure_mode == FailureMode.STRICT and allowed is not None:
            caps.append(allowed + 1 - failed - in_flight)
        return max(0, min(caps))


def split(tenants: Sequence[T], groups: Iterable[Group], *, labels: Callable[[T], Mapping[str, str]]) -> list[list[T]]:
    """The tenants in waves: one for each group, and a last one for the rest.

    A tenant is in the first group that takes it; a percentage is of all of them. Waves that nobody is in are left out.
    """
    left, waves = list(tenants), []
    for group in groups:
        if group.size is not None:
            size = group.size.at_least_one_of(len(tenants))
            waves.append(left[:size])
            left = left[size:]
        else:
            waves.append([each for each in left if group.takes(labels(each))])
            left = [each for each in left if not group.takes(labels(each))]
    return [wave for wave in (*waves, left) if wave]
