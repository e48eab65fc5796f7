from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandError

from migrations_api.management.base import ServiceCommand
from tenants.models import Tenant
from tenants.servers import server_aliases

TENANTS = {
    "shop": ["--name=Shop platform", "--isolation=shared"],
    "acme": ["--name=ACME Corporation", "--isolation=database"],
    "globex": ["--name=Globex", "--isolation=schema"],
    "dev": ["--name=Development", "--isolation=schema"],
}

NEXT = """
What to try next (python is .venv/bin/python):
  python manage.py showtenantmigrations --tenant-id=acme
  python manage.py migratetenant --tenant-id=globex orders 0002 --plan
  python manage.py migratetenant --tenant-id=globex orders 0002
  python manage.py migratealltenants --executor parallel --max-concurrency 4
  python manage.py createtenant
  make stop    # ends the embedded PostgreSQL; the data stays in var/
"""


class Command(ServiceCommand):
    help = "Create example tenants of every kind, migrate them and show where they stand. Can be run again."

    def handle(self, **options: Any) -> None:
        # The commands called below end their lines themselves.
        self.stdout.ending = ""
        if "shop" not in server_aliases():
            raise CommandError("The demo needs a database server 'shop': set TENANT_DATABASE_URLS=shop=postgresql://…")
        self._run("migrate", "--verbosity=0")
        for tenant_id, arguments in TENANTS.items():
            if Tenant.objects.filter(pk=tenant_id).exists():
                self.stdout.write(f"Tenant '{tenant_id}' is there already.\n")
            else:
                self._run("createtenant", f"--tenant-id={tenant_id}", *arguments, "--database=shop", "--no-input")
        self._run("migratetenant", "--tenant-id=acme", "--plan")
        self._run("migratealltenants")
        self._run("showtenants")
        self.stdout.write(NEXT)

    def _run(self, *arguments: str) -> None:
        shown = " ".join(f'"{argument}"' if " " in argument else argument for argument in arguments)
        self.stdout.write(f"\n$ python manage.py {shown}\n")
        call_command(*arguments, stdout=self.stdout, stderr=self.stderr)
