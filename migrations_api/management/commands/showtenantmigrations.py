from collections import defaultdict
from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import ServiceCommand, failed, tenant_id
from migrations_api.orchestrator.batches import migration_status
from migrations_api.orchestrator.fleet import MigrationRecord
from migrations_api.orchestrator.requests import get_tenant


class Command(ServiceCommand):
    help = "List the migrations of one tenant, as showmigrations does: applied, pending, when and by which run."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_label", nargs="*", help="Only these apps.")
        parser.add_argument("--tenant-id", required=True, type=tenant_id, help="The tenant, as showtenants lists it.")
        parser.add_argument("--format", choices=["table", "json"], default="table")

    def handle(self, *, app_label: list[str], tenant_id: str, format: str, **options: Any) -> None:  # noqa: A002
        by_app: defaultdict[str, list[MigrationRecord]] = defaultdict(list)
        for record in migration_status(get_tenant(tenant_id)):
            by_app[record.app_label].append(record)
        if missing := [label for label in app_label if label not in by_app]:
            known = ", ".join(by_app) or "(none)"
            raise failed("unknown_app", f"No migrations of app '{missing[0]}'; tenant '{tenant_id}' has: {known}.")
        chosen = {label: records for label, records in by_app.items() if not app_label or label in app_label}
        if format == "json":
            self.write_json([record.as_dict() for records in chosen.values() for record in records])
            return
        for label, records in chosen.items():
            self.stdout.write(label)
            for record in records:
                self.stdout.write(f" {_line(record)}")


def _line(record: MigrationRecord) -> str:
    mark = "X" if record.applied else " "
    run = f", run {record.run_id}" if record.run_id else ""
    when = f" ({record.applied:%Y-%m-%d %H:%M:%S}{run})" if record.applied else ""
    unknown = "" if record.known else " (not in this code)"
    return f"[{mark}] {record.name}{when}{unknown}"
