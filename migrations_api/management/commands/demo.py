from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser
from django.utils.crypto import get_random_string

from migrations_api.management.base import ServiceCommand
from migrations_api.models import ApiToken, Role
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
  make stop    # ends the service and the embedded PostgreSQL; the data stays in var/
"""
OVER_HTTP = """
The same over HTTP, at {base} (admin at /admin/ as user 'demo', password '{password}'; then docs at /docs):
  export TOKEN={token}
  curl -H "Authorization: Bearer $TOKEN" {base}/fleet
  curl -H "Authorization: Bearer $TOKEN" {base}/tenants/globex/plan
  curl -H "Authorization: Bearer $TOKEN" -H "Prefer: wait=30" -X POST {base}/tenants/globex/migrate
"""


class Command(ServiceCommand):
    help = "Create example tenants of every kind, migrate them and show where they stand. Can be run again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--port", type=int, default=8000, help="Where the service is going to listen.")

    def handle(self, *, port: int, **options: Any) -> None:
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
        # A login that is printed is for an example on this machine, never for a real control plane.
        if getattr(settings, "EMBEDDED_POSTGRES", None):
            self.stdout.write(OVER_HTTP.format(base=f"http://127.0.0.1:{port}", **_access()))

    def _run(self, *arguments: str) -> None:
        shown = " ".join(f'"{argument}"' if " " in argument else argument for argument in arguments)
        self.stdout.write(f"\n$ python manage.py {shown}\n")
        call_command(*arguments, stdout=self.stdout, stderr=self.stderr)


def _access() -> dict[str, str]:
    """A fresh password and token for the user `demo`; those of an earlier demo are no longer good."""
    password = get_random_string(16)
    user, _ = get_user_model().objects.get_or_create(username="demo", defaults={"is_staff": True, "is_superuser": True})
    user.set_password(password)
    user.save()
    ApiToken.objects.filter(user=user, revoked=False).update(revoked=True)
    _, token = ApiToken.objects.create_key(name="demo", user=user, scope=Role.ADMIN)
    return {"password": password, "token": token}
