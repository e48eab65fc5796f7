"""What a worker tells of its run while it works; small, picklable, and fit to be shown.

Named tuples: every command loads all of them, and they take a seventh of the time that dataclasses take to be made.
"""

from typing import NamedTuple


class RunStarted(NamedTuple):
    run_id: int
    tenant_id: str
    tenant_name: str


class RunPlanned(NamedTuple):
    """`target` is Django's line of what is going to be done; `unknown` are applied migrations not in this code."""

    run_id: int
    tenant_id: str
    target: str
    steps: int
    unknown: tuple[str, ...]


class RunPruned(NamedTuple):
    run_id: int
    tenant_id: str
    migrations: tuple[str, ...]


class StepStarted(NamedTuple):
    run_id: int
    tenant_id: str
    file: str
    backwards: bool


class StepFinished(NamedTuple):
    run_id: int
    tenant_id: str
    file: str
    backwards: bool
    faked: bool
    seconds: float


class RunWaiting(NamedTuple):
    """`is_shortage` when a server had no connection to spare for it."""

    run_id: int
    tenant_id: str
    cause: str
    seconds: float
    is_shortage: bool = False


class RunEnded(NamedTuple):
    """`steps` counts everything that was changed: steps done, migrations pruned, tables made by run-syncdb."""

    run_id: int
    tenant_id: str
    state: str
    steps: int
    error_code: str
    failed_step: str
    message: str


Event = RunStarted | RunPlanned | RunPruned | StepStarted | StepFinished | RunWaiting | RunEnded
