#!/usr/bin/env python
# ruff: noqa: E402
import gc

# What is imported stays: to look for garbage in it takes a twentieth of the time until a command begins.
gc.disable()

import os
import sys

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import ManagementUtility
from django.core.management.base import BaseCommand

from service.embedded_postgres import EmbeddedPostgresError


class Utility(ManagementUtility):
    """Has garbage looked for once the apps and the command are loaded, and only in what comes then."""

    def fetch_command(self, subcommand: str) -> BaseCommand:
        try:
            return super().fetch_command(subcommand)
        finally:
            gc.freeze()
            gc.enable()


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "service.settings")
    try:
        if getattr(settings, "EMBEDDED_POSTGRES", None):
            settings.EMBEDDED_POSTGRES.start(databases=["control_plane", "shop"])
    except (ImproperlyConfigured, EmbeddedPostgresError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    Utility(sys.argv).execute()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        # Before a command listens for it, as while the apps are imported: nothing has been done yet.
        sys.exit("Interrupted.")
