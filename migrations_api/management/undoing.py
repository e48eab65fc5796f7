"""What commands that take migrations back have in common: the plan or its SQL, the question, the run."""

from typing import Any, ClassVar

from django.core.management.base import CommandError, CommandParser

from migrations_api.exceptions import InvalidOptions
from migrations_api.management.base import (
    ServiceCommand,
    add_confirm_arguments,
    plan_digest,
    require_confirmed,
    tenant_id,
    user,
)
from migrations_api.management.foreground import carry_out
from migrations_api.management.plans import write_plan, write_preview, write_sql
from migrations_api.management.rollout_options import (
    add_selector_arguments,
    add_strategy_arguments,
    selector_of,
    strategy_of,
)
from migrations_api.models import Action, Rollout
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.pretending import pretend
from migrations_api.orchestrator.requests import Preview, Request, preview_rollout, request_rollout
from migrations_api.orchestrator.rollbacks import preview_rollout_rollback, request_rollout_rollback
from migrations_api.orchestrator.selection import select
from migrations_api.plan import Plan
from tenants.conf import load_conf
from tenants.models import Tenant

# What --rollback takes its tenants and its target from is the rollout.
OF_MIGRATIONS = ("app_label", "migration_name", "plan", "check", "fake", "fake_initial", "run_syncdb", "prune")
OF_SELECTORS = ("tenant_id", "exclude", "label", "isolation_type", "status", "failed_in", "unfinished_in", "shard")


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


def roll_back(
    command: ServiceCommand, rollout_id: int, *, dry_run: bool, executor: str, verbosity: int, **options: Any
) -> None:
    """`migratealltenants --rollback`; raises InvalidOptions for what does not go with it."""
    if given := [name for name in (*OF_MIGRATIONS, *OF_SELECTORS) if options.get(name)]:
        raise InvalidOptions(f"--rollback takes its tenants and steps from the rollout; leave out {given[0]}.")
    rollout = Rollout.objects.filter(pk=rollout_id).first()
    if rollout is None:
        raise CommandError(f"Rollout {rollout_id} does not exist.")
    strategy = strategy_of(options)
    preview = preview_rollout_rollback(rollout, strategy=strategy)
    if dry_run:
        write_preview(command, preview, output=options["format"])
        return
    confirmed = confirm_count(command, preview, f"undoes what rollout {rollout_id} applied", options)
    request = Request(action=Action.ROLLBACK, by=user())
    made = request_rollout_rollback(rollout, request, strategy=strategy, confirmed=confirmed)
    carry_out(command, made, executor=executor, output=options["format"], verbosity=verbosity)


def confirm_count(command: ServiceCommand, preview: Preview, does: str, options: dict[str, Any]) -> int:
    """For how many tenants it is; raises CommandError unless somebody agrees to that number."""
    total = preview.arrangement.total
    what = f"This {does}, with the rows that go with it, in {total} tenants."
    require_confirmed(command, what, str(total), confirm=options["confirm"], interactive=options["interactive"])
    return total


class WholeTenantsCommand(ServiceCommand):
    """Take every app of many tenants to zero, by a rollout."""

    action: ClassVar[Action]
    does: ClassVar[str]

    def add_arguments(self, parser: CommandParser) -> None:
        conf = load_conf()
        parser.add_argument("--dry-run", action="store_true", help="Show the waves and the plans; change nothing.")
        parser.add_argument("--executor", choices=sorted(conf.executors), default=conf.executor)
        add_confirm_arguments(parser, word="N")
        parser.add_argument("--format", choices=["table", "json"], default="table")
        add_selector_arguments(parser)
        add_strategy_arguments(parser)

    def handle(self, *, dry_run: bool, executor: str, verbosity: int, **options: Any) -> None:
        selector, strategy = selector_of(options), strategy_of(options)
        if selector.status:
            observations.refresh()
        request = Request(action=self.action, by=user())
        tenants = select(selector)
        if dry_run:
            observations.refresh(tenants)
        preview = preview_rollout(tenants, request, strategy=strategy, selector=selector)
        if dry_run:
            write_preview(self, preview, output=options["format"])
            return
        confirmed = confirm_count(self, preview, self.does, options)
        rollout = request_rollout(tenants, request, strategy=strategy, selector=selector, confirmed=confirmed)
        carry_out(self, rollout, executor=executor, output=options["format"], verbosity=verbosity)
