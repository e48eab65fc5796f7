from migrations_api.exceptions import InvalidOptions
from migrations_api.management.base import ServiceCommand
from migrations_api.orchestrator.requests import Request, check_options
from migrations_api.plan import Plan
from migrations_api.serializers import PlanSerializer


def check_question(request: Request) -> None:
    """Raise InvalidOptions for a question whose answer would not be what the run then does."""
    check_options(request)
    if request.options.prune:
        raise InvalidOptions("A plan has no pruning in it; leave out --plan and --check, or --prune.")


def write_plan(command: ServiceCommand, tenant_id: str, plan: Plan, *, output: str) -> None:
    if output == "json":
        command.write_json({"tenant_id": tenant_id, **PlanSerializer(plan).data})
        return
    command.stdout.write(f"Planned operations for tenant '{tenant_id}':")
    if plan.unknown:
        command.stdout.write(f"  Applied, but unknown to this code (the tenant is ahead): {', '.join(plan.unknown)}")
    if not plan.steps:
        command.stdout.write("  No planned migration operations.")
    for step in plan.steps:
        command.stdout.write(f"  {'Undo ' if step.backwards else ''}{step.file}")
