from migrations_api.executor.execution import execute, failure_of
from migrations_api.executor.outcome import End, Failure, Observer, Options, Outcome, StepResult

__all__ = ["End", "Failure", "Observer", "Options", "Outcome", "StepResult", "execute", "failure_of"]
