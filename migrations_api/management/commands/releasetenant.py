from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import ServiceCommand, tenant_id
from migrations_api.orchestrator.holds import release
from migrations_api.orchestrator.requests import get_tenant


class Command(ServiceCommand):
    help = "Let a tenant that is held be migrated again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant-id", required=True, type=tenant_id)

    def handle(self, *, tenant_id: str, **options: Any) -> None:
        release(get_tenant(tenant_id))
        self.stdout.write(f"Tenant '{tenant_id}' is released.")
