import os
from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import ServiceCommand
from migrations_api.plan.creator import new_migration, write


class Command(ServiceCommand):
    help = "Write a new migration of an app that tenants receive, with the schema builder."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_label", help="An app of TENANT_APPS or SHARED_APPS.")
        parser.add_argument("name", help="What it does, such as add_total; its number is put before it.")
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--create", default="", metavar="TABLE", help="A model that it makes, or the table of one.")
        what.add_argument("--table", default="", metavar="TABLE", help="A model that it changes, or the table of one.")
        what.add_argument("--empty", action="store_true", help="Without operations, as when nothing is said.")

    def handle(self, *, app_label: str, name: str, create: str, table: str, **options: Any) -> None:
        new = new_migration(app_label, name, create=create, table=table)
        write(new)
        self.stdout.write(f"Created {os.path.relpath(new.path)}")
