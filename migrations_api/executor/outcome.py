"""What an execution tells while it runs, and what it comes to."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from psycopg2 import errorcodes

from migrations_api.executor.options import Options as Options  # noqa: PLC0414 - told to be for others as well
from migrations_api.plan import Applied, Plan, Step


class End(StrEnum):
    """How an execution ended; the orchestrator gives its run the state of the same name."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    PARTIAL = "partial"
    CANCELED = "canceled"


@dataclass(frozen=True, kw_only=True)
class StepResult:
    step: Step
    faked: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a run ended without success. `message` is fit to be shown; `step` is empty outside of a migration."""

    code: str
    error_class: str
    message: str
    sqlstate: str = ""
    step: str = ""
    # A server had no connection to spare.
    is_shortage: bool = False
    transient: bool = False

    @property
    def is_interruption(self) -> bool:
        """Whether the server canceled the statement: because it was asked to, or by its statement_timeout."""
        return self.sqlstate == errorcodes.QUERY_CANCELED


@dataclass(frozen=True, kw_only=True)
class Outcome:
    end: End
    before: Applied
    after: Applied
    results: tuple[StepResult, ...] = ()
    pruned: tuple[str, ...] = ()
    synced: tuple[str, ...] = ()
    # Constraints that the run has left NOT VALID, which may be what its migrations want.
    unvalidated: tuple[str, ...] = ()
    # Why a tenant that was to be copied from a template was migrated.
    not_copied: str = ""
    failure: Failure | None = None


class Observer(Protocol):
    """Is told of each step as it happens, from within the tenant's session.

    `planned` comes once, under the lock, before anything is changed; each `step_started` is followed by its
    `step_finished` unless the step fails. `should_stop` is asked before each step.
    What these raise ends the execution.
    """

    def planned(self, plan: Plan) -> None: ...

    def step_started(self, step: Step) -> None: ...

    def step_finished(self, result: StepResult) -> None: ...

    def should_stop(self) -> bool: ...

    def journal(self, step: Step, *, operation: int, statements: int) -> None:
        """How far a step that is not atomic has come: its operations before that one are done.

        Of that one, so many statements were begun and not refused. Told before each statement that changes something,
        so that whoever finds the tenant after a crash knows which one may or may not have been carried out.
        """


class Nobody:
    """The observer of what leaves no record."""

    def planned(self, plan: Plan) -> None: ...
    def step_started(self, step: Step) -> None: ...
    def step_finished(self, result: StepResult) -> None: ...
    def should_stop(self) -> bool:
        return False

    def journal(self, step: Step, *, operation: int, statements: int) -> None: ...


class StopRequested(Exception):
    """The observer asked to stop between two steps."""
