import csv
from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import ServiceCommand
from migrations_api.management.tables import write_table
from migrations_api.orchestrator.batches import LastBatch, last_batches
from migrations_api.orchestrator.fleet import Standing, TenantStatus, standings
from tenants.models import Isolation, Tenant

HOME = ("tenant_id", "name", "isolation", "database", "database_name", "schema_name")
COLUMNS = (*HOME, "status", "applied", "pending", "batch", "migrated_at")


class Command(ServiceCommand):
    help = "List the tenants and where each one stands."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--isolation-type", choices=Isolation.values, help="Only tenants of this kind.")
        parser.add_argument("--format", choices=["table", "json", "csv"], default="table")

    def handle(self, *, isolation_type: str | None, format: str, **options: Any) -> None:  # noqa: A002
        tenants = list(Tenant.objects.filter(**{"isolation": isolation_type} if isolation_type else {}))
        batches = last_batches([tenant.pk for tenant in tenants])
        rows = [_row(standing, batches.get(standing.tenant.pk)) for standing in standings(tenants)]
        if format == "json":
            self.write_json(rows)
        elif format == "csv":
            writer = csv.DictWriter(self.stdout, [*COLUMNS, "unknown", "detail", "suspended"])
            writer.writeheader()
            writer.writerows({**row, "unknown": " ".join(row["unknown"])} for row in rows)
        elif rows:
            self._write_table(rows)
        else:
            self.stdout.write("There are no tenants. Create one with: manage.py createtenant")

    def _write_table(self, rows: list[dict[str, Any]]) -> None:
        cells = [["" if row[column] is None else str(row[column]) for column in COLUMNS] for row in rows]
        write_table(self.stdout, COLUMNS, cells)
        for row in rows:
            unknown = f"applied, but unknown to this code: {', '.join(row['unknown'])}" if row["unknown"] else ""
            held = "held: " if row["status"] == TenantStatus.HELD else ""
            if remark := f"{held}{row['detail'] or unknown}":
                self.stdout.write(f"{row['tenant_id']}: {remark}")
            if row["suspended"]:
                self.stdout.write(f"{row['tenant_id']}: suspended: rollouts leave it out")


def _row(standing: Standing, batch: LastBatch | None) -> dict[str, Any]:
    tenant = standing.tenant
    return {
        "tenant_id": tenant.tenant_id,
        "name": tenant.name,
        "isolation": tenant.isolation,
        "database": tenant.database,
        "database_name": tenant.database_name,
        "schema_name": tenant.schema_name,
        "status": standing.status.value,
        "applied": standing.applied,
        "pending": standing.pending,
        "batch": batch.run_id if batch else None,
        "migrated_at": f"{batch.ended:%Y-%m-%d %H:%M:%S}" if batch and batch.ended else None,
        "unknown": list(standing.unknown),
        "detail": standing.detail,
        "suspended": tenant.suspended,
    }
