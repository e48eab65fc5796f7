from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import ServiceCommand, reason, tenant_id, user
from migrations_api.orchestrator.holds import hold
from migrations_api.orchestrator.requests import get_tenant


class Command(ServiceCommand):
    help = "Leave a tenant out of every migration until it is released."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant-id", required=True, type=tenant_id)
        parser.add_argument("--reason", required=True, type=reason, help="Shown to whoever asks why.")

    def handle(self, *, tenant_id: str, reason: str, **options: Any) -> None:
        hold(get_tenant(tenant_id), by=user(), reason=reason)
        self.stdout.write(
            f"Tenant '{tenant_id}' is held. Release it with: manage.py releasetenant --tenant-id={tenant_id}"
        )
