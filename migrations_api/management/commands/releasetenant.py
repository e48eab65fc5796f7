from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import ServiceCommand, reason, tenant_id
from migrations_api.orchestrator.holds import release, release_all
from migrations_api.orchestrator.requests import get_tenant


class Command(ServiceCommand):
    help = "Let a tenant that is held be migrated again."

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--tenant-id", type=tenant_id)
        which.add_argument("--reason", type=reason, help="Every tenant that is held with just this reason.")

    def handle(self, *, tenant_id: str | None, reason: str | None, **options: Any) -> None:
        if tenant_id is not None:
            release(get_tenant(tenant_id))
            self.stdout.write(f"Tenant '{tenant_id}' is released.")
        elif reason is not None:
            released = release_all(reason)
            self.stdout.write(f"{released} tenant{'' if released == 1 else 's'} released.")
