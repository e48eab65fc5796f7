"""Gunicorn's log in the service's own format."""

import logging
import logging.config
from datetime import timedelta
from typing import Any

from django.conf import settings
from gunicorn.glogging import Logger  # type: ignore[import-untyped]


class GunicornLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Hands everything on to the root logger, and writes one line per request, without its query: it may hold data."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        # Empty in a project that leaves it as Django has it.
        if settings.LOGGING:
            logging.config.dictConfig(settings.LOGGING)
        for logger in (self.error_log, self.access_log):
            logger.handlers.clear()
            logger.propagate = True

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        status = int(str(resp.status).split(" ", 1)[0])
        headers = {str(name).lower(): str(value) for name, value in resp.headers}
        self.access_log.info(
            "%s %s %s",
            req.method,
            req.path,
            status,
            extra={
                "method": req.method,
                "path": req.path,
                "status": status,
                "milliseconds": round(request_time.total_seconds() * 1000, 1),
                "remote_address": environ.get("REMOTE_ADDR"),
                "request_id": headers.get("x-request-id", ""),
            },
        )
