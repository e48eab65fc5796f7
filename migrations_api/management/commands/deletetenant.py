from typing import Any

from django.core.management.base import CommandError, CommandParser

from migrations_api.management.base import EXIT_USAGE, ServiceCommand, tenant_id
from migrations_api.orchestrator.registration import forget
from migrations_api.orchestrator.requests import get_tenant


class Command(ServiceCommand):
    help = "Forget a tenant; its runs are kept, and so is its data unless --drop is given."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant-id", required=True, type=tenant_id, help="The tenant, as showtenants lists it.")
        parser.add_argument("--drop", action="store_true", help="Drop its schema or database with all its data.")
        parser.add_argument("--confirm", default="", metavar="TENANT_ID", help="The tenant id once more, for --drop.")

    def handle(self, *, tenant_id: str, drop: bool, confirm: str, **options: Any) -> None:
        tenant = get_tenant(tenant_id)
        if drop and confirm != tenant_id:
            raise CommandError(
                f"To drop all data of '{tenant_id}', repeat it: --confirm={tenant_id}", returncode=EXIT_USAGE
            )
        left = forget(tenant, drop=drop)
        self.stdout.write(f"Tenant '{tenant_id}' forgotten{' and its data dropped' if drop else ''}.")
        if left:
            self.stdout.write(f"Its role '{left}' stays: it has rights or objects beside the tenant's.")
