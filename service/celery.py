"""The Celery app: `celery -A service worker`. A project that has an app of its own needs none of this."""

import logging
import os
from typing import Any

from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "service.settings")

# Where settings of the service are imported into another project, that project's app stays the current one.
app = Celery("service", set_as_current=False)
app.config_from_object("django.conf:settings", namespace="CELERY")
# Not those of every installed app: what a tenant's apps define is no business of these workers.
app.autodiscover_tasks(["migrations_api"])


@setup_logging.connect
def keep_logging(loglevel: int, **kwargs: Any) -> None:
    """Leave LOGGING as it is; a process that stays tells of its work, and of Celery's as much as -l says."""
    logging.getLogger("migrations_api").setLevel(logging.INFO)
    logging.getLogger("celery").setLevel(loglevel)
