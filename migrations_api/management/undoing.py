"""What commands that take migrations back in many tenants have in common: the question, the rollout."""

from typing import Any, ClassVar

from django.core.management.base import CommandError, CommandParser

from migrations_api.exceptions import InvalidOptions
from migrations_api.management.base import (
    ServiceCommand,
    add_confirm_arguments,
    require_confirmed,
    user,
)
from migrations_api.management.foreground import carry_out
from migrations_api.management.plans import write_preview
from migrations_api.management.rollout_options import (
    add_selector_arguments,
    add_strategy_arguments,
    selector_of,
    strategy_of,
)
from migrations_api.models import Action, Rollout
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.previews import Preview, preview_rollout
from migrations_api.orchestrator.requests import Request, request_rollout
from migrations_api.orchestrator.rollbacks import preview_rollout_rollback, request_rollout_rollback
from migrations_api.orchestrator.selection import select
from tenants.conf import load_conf

# What --rollback takes its tenants and its target from is the rollout.
OF_MIGRATIONS = ("app_label", "migration_name", "plan", "check", "fake", "fake_initial", "run_syncdb", "prune")
OF_SELECTORS = ("tenant_id", "exclude", "label", "isolation_type", "status", "failed_in", "unfinished_in", "shard")


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
