"""The events of runs as lines of a log, for processes that stay."""

import logging

from migrations_api.events import Event, RunEnded, RunStarted

logger = logging.getLogger(__name__)


def log_event(event: Event) -> None:
    about = {"run_id": event.run_id, "tenant_id": event.tenant_id}
    if isinstance(event, RunStarted):
        logger.info("run started", extra=about)
    elif isinstance(event, RunEnded):
        logger.info("run ended: %s", event.state, extra={**about, "error_code": event.error_code})
