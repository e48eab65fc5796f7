#!/usr/bin/env python
import os
import sys

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line

from service.embedded_postgres import EmbeddedPostgresError


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "service.settings")
    try:
        if getattr(settings, "EMBEDDED_POSTGRES", None):
            settings.EMBEDDED_POSTGRES.start(databases=["control_plane", "shop"])
    except (ImproperlyConfigured, EmbeddedPostgresError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        # Before a command listens for it, as while the apps are imported: nothing has been done yet.
        sys.exit("Interrupted.")
