"""What commands that take one tenant's migrations back have in common: the plan or its SQL, the question."""

from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import (
    ServiceCommand,
    add_confirm_arguments,
    plan_digest,
    require_confirmed,
    tenant_id,
)
from migrations_api.management.plans import write_plan, write_sql
from migrations_api.orchestrator.pretending import pretend
from migrations_api.plan import Plan
from tenants.models import Tenant


def add_tenant_arguments(parser: CommandParser) -> None:
    parser.add_argument("--tenant-id", required=True, type=tenant_id, help="The tenant, as showtenants lists it.")
    parser.add_argument("--plan", action="store_true", help="Show what would be done and change nothing.")
    parser.add_argument("--pretend", action="store_true", help="Show the SQL that would be run; change nothing.")
    parser.add_argument(
        "--plan-digest",
        type=plan_digest,
        help="Carry out only the plan of that plan_digest, which --plan --format json shows.",
    )
    add_confirm_arguments(parser, word="TENANT_ID")
    parser.add_argument("--format", choices=["table", "json"], default="table")


def was_question(command: ServiceCommand, tenant: Tenant, plan: Plan, options: dict[str, Any]) -> bool:
    """Answer --plan and --pretend; whether one of them was given."""
    if options["pretend"]:
        write_sql(command, tenant.tenant_id, plan, pretend(tenant, plan), output=options["format"])
    elif options["plan"]:
        write_plan(command, tenant.tenant_id, plan, output=options["format"])
    return bool(options["pretend"] or options["plan"])


def confirm_plan(command: ServiceCommand, tenant: Tenant, plan: Plan, options: dict[str, Any]) -> None:
    """Raise CommandError unless somebody agrees to what the plan undoes."""
    undone = ", ".join(step.file for step in plan.steps if step.backwards)
    again = ", and then everything is migrated again" if plan.then else ""
    what = f"This undoes in tenant '{tenant.tenant_id}', with the rows that go with it: {undone or 'nothing'}{again}."
    word, confirm = tenant.tenant_id, options["confirm"]
    require_confirmed(command, what, word, confirm=confirm, interactive=options["interactive"])
