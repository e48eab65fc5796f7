from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import (
    EXIT_FAILED,
    ServiceCommand,
    add_migrate_arguments,
    exit_with,
    failed,
    plan_digest,
    request_of,
    tenant_id,
)
from migrations_api.management.interrupt import graceful_stop
from migrations_api.management.plans import check_pretence, check_question, write_plan, write_sql
from migrations_api.management.presenter import Presenter, describe, describe_finding
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.fleet import plan_for
from migrations_api.orchestrator.pretending import pretend as show_sql
from migrations_api.orchestrator.requests import get_tenant, request_run
from migrations_api.orchestrator.work import work
from migrations_api.states import RunState, StepState


class Command(ServiceCommand):
    help = "Migrate one tenant."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant-id", required=True, type=tenant_id, help="The tenant, as showtenants lists it.")
        add_migrate_arguments(parser)
        parser.add_argument(
            "--plan-digest",
            type=plan_digest,
            help="Carry out only the plan of that plan_digest, which --plan --format json shows.",
        )
        parser.add_argument("--format", choices=["table", "json"], default="table")

    def handle(self, *, tenant_id: str, plan: bool, pretend: bool, check: bool, **options: Any) -> None:
        request = request_of(options)
        tenant = get_tenant(tenant_id)
        if pretend:
            check_pretence(request)
            planned = plan_for(tenant, request.target)
            write_sql(self, tenant_id, planned, show_sql(tenant, planned), output=options["format"])
            return
        if plan or check:
            check_question(request)
            planned = plan_for(tenant, request.target)
            if plan:
                write_plan(self, tenant_id, planned, output=options["format"])
            if check and planned.steps:
                exit_with(EXIT_FAILED)
            return
        run = request_run(tenant, request, expected_digest=options["plan_digest"] or "")
        carry_out(self, run, **options)


def carry_out(command: ServiceCommand, run: MigrationRun, *, format: str, verbosity: int, **options: Any) -> None:  # noqa: A002
    """Do the run in this process, show it, and end the command as the run ends."""
    presenter = Presenter(command.stdout, command.style, verbosity=0 if format == "json" else verbosity)
    with graceful_stop(command.stderr.write) as should_stop:
        work(run.pk, emit=presenter, should_stop=should_stop)
    run.refresh_from_db()
    if format == "json":
        from migrations_api.management import documents  # noqa: PLC0415 - REST framework is not for the others

        command.write_json(documents.of_run(run))
    elif verbosity >= 1:
        for finding in run.findings:
            command.stdout.write(f"Note: {describe_finding(finding)}")
    if run.state == RunState.CANCELED and run.error_code == "canceled":
        left = [f"  {step.app_label}/{step.name}.py" for step in run.steps.filter(state=StepState.PENDING)]
        head = f"Stopped migrating tenant '{run.tenant_id}'.{' Not started:' if left else ''}"
        raise failed(run.error_code, "\n".join([head, *left]))
    if run.state == RunState.RUNNING:
        raise failed("outcome_unknown", f"Run {run.pk} of tenant '{run.tenant_id}' is not settled: {run.waiting_cause}")
    if run.state != RunState.SUCCEEDED:
        raise failed(run.error_code, f"Migrations failed for tenant '{run.tenant_id}': {describe(run)}")
