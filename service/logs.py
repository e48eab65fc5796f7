"""Log lines: JSON for machines, one readable line on a terminal; neither ever shows a configured password or a row."""

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

from migrations_api import log_context
from tenants.driver_errors import describe, redact

# What a record's `extra` may add to a line, beside the ids that the context gives.
EXTRA: Final = ("error_code", "method", "path", "status", "milliseconds", "remote_address", "user")
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class ContextFilter(logging.Filter):
    """Gives every record the ids of the request and the run that it was written in, unless it brings its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name in ("request_id", "run_id", "tenant_id"):
            if not hasattr(record, name):
                setattr(record, name, getattr(log_context, name).get())
        return True


class _RedactingFormatter(logging.Formatter):
    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - logging's name
        return "\n".join(redact(line) for line in _lines(ei[1]))

    def facts(self, record: logging.LogRecord) -> dict[str, Any]:
        names = ("request_id", "run_id", "tenant_id", *EXTRA)
        found = {name: getattr(record, name, None) for name in names}
        return {
            name: redact(value) if isinstance(value, str) else value
            for name, value in found.items()
            if value not in (None, "")
        }

    def trace(self, record: logging.LogRecord) -> str:
        if record.exc_info and not isinstance(record.exc_info, bool):
            return self.formatException(record.exc_info)
        return ""


def _lines(error: BaseException | None) -> Iterator[str]:
    """The traceback from the first cause on, with each error described as it may be shown."""
    if error is None:
        return
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    yield from _lines(cause)
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"{frame.filename}:{frame.lineno} in {frame.name}"
    yield f"{type(error).__name__}: {describe(error)}"


class JsonFormatter(_RedactingFormatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            **self.facts(record),
        }
        if trace := self.trace(record):
            line["exception"] = trace
        return json.dumps(line, ensure_ascii=False, default=str)


class HumanFormatter(_RedactingFormatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        facts = "".join(f" {name}={value}" for name, value in self.facts(record).items())
        trace = self.trace(record)
        return f"{time} {record.levelname.lower()}: {redact(record.getMessage())}{facts}" + (
            "\n" + trace if trace else ""
        )


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at the moment: commands and tests replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def logging_config(*, human: bool) -> dict[str, Any]:
    """For logging.config.dictConfig(); everything ends up in one handler."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"context": {"()": "service.logs.ContextFilter"}},
        "formatters": {
            "json": {"()": "service.logs.JsonFormatter"},
            "human": {"()": "service.logs.HumanFormatter"},
        },
        "handlers": {
            "stderr": {
                "()": "service.logs.StderrHandler",
                "filters": ["context"],
                "formatter": "human" if human else "json",
            }
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            # Django's own handlers would write each line once more.
            "django": {"handlers": [], "level": "WARNING", "propagate": True},
            "django.server": {"handlers": [], "level": "INFO", "propagate": True},
            # A client's mistake is in the access log.
            "django.request": {"level": "ERROR"},
        },
    }
