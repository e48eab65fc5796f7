"""What a worker tells of its run while it works; small, picklable, and fit to be shown."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    run_id: int
    tenant_id: str


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    tenant_name: str


@dataclass(frozen=True, kw_only=True)
class RunPlanned(Event):
    """`target` is Django's line of what is going to be done; `unknown` are applied migrations not in this code."""

    target: str
    steps: int
    unknown: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunPruned(Event):
    migrations: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StepStarted(Event):
    file: str
    backwards: bool


@dataclass(frozen=True, kw_only=True)
class StepFinished(Event):
    file: str
    backwards: bool
    faked: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunWaiting(Event):
    cause: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    """`steps` counts everything that was changed: steps done, migrations pruned, tables made by run-syncdb."""

    state: str
    steps: int
    error_code: str
    failed_step: str
    message: str
