from typing import Any

from django.core.management.base import CommandError, CommandParser

from migrations_api.executor.diagnosis import Diagnosis
from migrations_api.management.base import ServiceCommand, positive, reason, user
from migrations_api.management.commands.migratetenant import carry_out
from migrations_api.models import MigrationRun, RepairWay, RequestedVia
from migrations_api.orchestrator.repairs import diagnosis_of, request_repair
from migrations_api.serializers.repairs import DiagnosisSerializer

MARKS = {"done": "✓", "open": "-", "unclear": "?"}


class Command(ServiceCommand):
    help = "Show what a partial run has left of its step, and bring the tenant to one end of it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--run", required=True, type=positive, metavar="ID", help="The run that is partial.")
        parser.add_argument("--way", choices=RepairWay.values, help="Without it, what is there is shown.")
        parser.add_argument("--reason", type=reason, help="Why a mark is right; kept with the run.")
        parser.add_argument("--format", choices=["table", "json"], default="table")

    def handle(self, *, run: int, way: str | None, reason: str | None, **options: Any) -> None:
        found = MigrationRun.objects.filter(pk=run).first()
        if found is None:
            raise CommandError(f"Run {run} does not exist.")
        if way is None:
            self._show(found, diagnosis_of(found), output=options["format"])
            return
        repairing = request_repair(found, way, reason=reason or "", by=user(), via=RequestedVia.COMMAND)
        carry_out(self, repairing, **options)

    def _show(self, run: MigrationRun, diagnosis: Diagnosis, *, output: str) -> None:
        if output == "json":
            self.write_json(DiagnosisSerializer(diagnosis).data)
            return
        recorded = "recorded" if diagnosis.recorded else "not recorded"
        direction = "undoing " if diagnosis.backwards else ""
        self.stdout.write(f"Tenant '{run.tenant_id}' stopped {direction}{diagnosis.step}, which is {recorded}.")
        for operation in diagnosis.operations:
            self.stdout.write(f"  {MARKS[operation.standing]} {operation.description} ({operation.standing})")
        if diagnosis.invalid_indexes:
            self.stdout.write(f"  Invalid indexes: {', '.join(diagnosis.invalid_indexes)}")
        self.stdout.write("Ways out:")
        for way in diagnosis.ways:
            how = f"--way {way.name}" if way.possible else f"{way.name} is not possible"
            self.stdout.write(f"  {how}: {way.does}")
