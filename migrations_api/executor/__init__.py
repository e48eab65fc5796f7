from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from migrations_api.executor.options import Options

if TYPE_CHECKING:
    from migrations_api.executor.execution import execute
    from migrations_api.executor.failures import failure_of
    from migrations_api.executor.outcome import End, Failure, Observer, Outcome, StepResult

__all__ = ["End", "Failure", "Observer", "Options", "Outcome", "StepResult", "execute", "failure_of"]
_MODULES: Final = {"execute": "execution", "failure_of": "failures"} | dict.fromkeys(
    ("End", "Failure", "Observer", "Outcome", "StepResult"), "outcome"
)


def __getattr__(name: str) -> Any:
    """What executes is loaded by whoever asks for it: that takes longer than finding that there is nothing to do."""
    if name in _MODULES:
        return getattr(import_module(f"migrations_api.executor.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
