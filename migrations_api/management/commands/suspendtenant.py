from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import ServiceCommand, tenant_id
from migrations_api.orchestrator.holds import suspend
from migrations_api.orchestrator.requests import get_tenant


class Command(ServiceCommand):
    help = "Leave a tenant out of rollouts, as one of a customer who is gone for a while; it can be migrated by itself."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant-id", required=True, type=tenant_id)
        parser.add_argument("--undo", action="store_true", help="Let rollouts reach it again.")

    def handle(self, *, tenant_id: str, undo: bool, **options: Any) -> None:
        suspend(get_tenant(tenant_id), suspended=not undo)
        again = f"Undo it with: manage.py suspendtenant --tenant-id={tenant_id} --undo"
        now = "no longer suspended." if undo else f"suspended: rollouts leave it out. {again}"
        self.stdout.write(f"Tenant '{tenant_id}' is {now}")
