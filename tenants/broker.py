"""The Celery app that messages are sent with."""

from importlib import import_module
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string


def current_app() -> Any:
    """The project's own app, or else the one that TENANT_CELERY_APP names. Celery has to be installed.

    It is imported only here: that takes longer than a command that has nothing to do.
    """
    if path := getattr(settings, "TENANT_CELERY_APP", ""):
        # Having been made is what makes it the current one, unless there is another.
        import_string(path)
    return import_module("celery").current_app
