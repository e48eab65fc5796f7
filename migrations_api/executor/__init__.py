from importlib import import_module
from typing import TYPE_CHECKING, Any

from migrations_api.executor.outcome import End, Failure, Observer, Options, Outcome, StepResult

if TYPE_CHECKING:
    from migrations_api.executor.execution import execute, failure_of

__all__ = ["End", "Failure", "Observer", "Options", "Outcome", "StepResult", "execute", "failure_of"]


def __getattr__(name: str) -> Any:
    """What executes is loaded by whoever asks for it: that takes longer than finding that there is nothing to do."""
    if name in {"execute", "failure_of"}:
        return getattr(import_module("migrations_api.executor.execution"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
