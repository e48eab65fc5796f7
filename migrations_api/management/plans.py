from typing import TYPE_CHECKING

from migrations_api.exceptions import InvalidOptions
from migrations_api.management.base import ServiceCommand
from migrations_api.orchestrator.requests import Request, check_options
from migrations_api.orchestrator.selection import SHARED_WAVE
from migrations_api.plan import Plan

if TYPE_CHECKING:  # What makes one is loaded where one is asked for.
    from migrations_api.executor.transcript import Transcript
    from migrations_api.orchestrator.previews import Preview


def check_question(request: Request) -> None:
    """Raise InvalidOptions for a question whose answer would not be what the run then does."""
    check_options(request)
    if request.options.prune:
        raise InvalidOptions("A plan has no pruning in it; leave out --plan and --check, or --prune.")


def check_pretence(request: Request) -> None:
    """Raise InvalidOptions for what has no SQL of its own to show."""
    check_question(request)
    given = [name for name in ("fake", "fake_initial", "run_syncdb") if getattr(request.options, name)]
    if given:
        raise InvalidOptions(f"--pretend shows the SQL of migrations; leave out --{given[0].replace('_', '-')}.")


def write_plan(command: ServiceCommand, tenant_id: str, plan: Plan, *, output: str) -> None:
    if output == "json":
        from migrations_api.management import documents  # noqa: PLC0415 - REST framework is not for the others

        command.write_json({"tenant_id": tenant_id, **documents.of_plan(plan)})
        return
    command.stdout.write(f"Planned operations for tenant '{tenant_id}':")
    if plan.unknown:
        command.stdout.write(f"  Applied, but unknown to this code (the tenant is ahead): {', '.join(plan.unknown)}")
    if not plan.steps:
        command.stdout.write("  No planned migration operations.")
    for step in plan.steps:
        command.stdout.write(f"  {'Undo ' if step.backwards else ''}{step.file}")


def write_sql(command: ServiceCommand, tenant_id: str, plan: Plan, transcript: "Transcript", *, output: str) -> None:
    """The statements as a script; what is no SQL, or is told beside it, stands in comments."""
    if output == "json":
        from migrations_api.management import documents  # noqa: PLC0415 - REST framework is not for the others

        command.write_json({"tenant_id": tenant_id, **documents.of_plan(plan, transcript)})
        return
    command.stdout.write(f"-- What would be run for tenant '{tenant_id}':")
    for line in transcript.differences:
        command.stdout.write(f"-- Its structure is not what its migrations make: {line}")
    if not plan.steps:
        command.stdout.write("-- Nothing.")
    for step in plan.steps:
        lines = [
            f"-- Python code, whose SQL depends on the rows: {each.text}" if each.opaque else _ended(each.text)
            for each in transcript.of(step)
        ]
        around = ("BEGIN;", "COMMIT;") if step.atomic and lines else ("", "")
        heading = f"\n-- {'Undo ' if step.backwards else ''}{step}{' (only in the record)' if step.fake else ''}"
        command.stdout.write("\n".join([heading, *filter(None, [around[0], *lines, around[1]])]))


def _ended(statement: str) -> str:
    return statement if statement.rstrip().endswith(";") else f"{statement};"


def write_preview(command: ServiceCommand, preview: "Preview", *, output: str) -> None:
    if output == "json":
        from migrations_api.management import documents  # noqa: PLC0415 - REST framework is not for the others

        command.write_json(documents.of_preview(preview))
        return
    arranged = preview.arrangement
    command.stdout.write(f"A rollout over {_tenants(arranged.total)}:")
    for number, tenants in sorted(arranged.waves.items()):
        kind = " (shared)" if number == SHARED_WAVE else ""
        names = ", ".join(tenant.tenant_id for tenant in tenants)
        command.stdout.write(f"  Wave {number}{kind}, {_tenants(len(tenants))}: {names}")
    for each in arranged.left_out:
        command.stdout.write(f"  Left out: {each.tenant.tenant_id}: {each.reason}")
    if preview.max_failures is not None:
        command.stdout.write(f"  At most {preview.max_failures} may fail.")
    for group in preview.plan.groups:
        steps = ", ".join(f"{'Undo ' if step.backwards else ''}{step.file}" for step in group.plan.steps)
        command.stdout.write(f"  {_tenants(group.tenant_count)}: {steps or 'nothing to do'}")
    for problem in preview.plan.problems:
        command.stdout.write(f"  No plan for {problem.tenant_id}: {problem.detail}")


def _tenants(count: int) -> str:
    return f"{count} tenant{'' if count == 1 else 's'}"
