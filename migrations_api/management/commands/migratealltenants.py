from typing import Any, Final

from django.core.management.base import CommandParser
from django.utils.module_loading import import_string

from migrations_api.exceptions import InvalidOptions
from migrations_api.management.base import (
    EXIT_FAILED,
    EXIT_SOME_FAILED,
    ServiceCommand,
    add_migrate_arguments,
    exit_with,
    positive,
    request_of,
)
from migrations_api.management.foreground import carry_out
from migrations_api.management.plans import check_question, write_plan, write_preview
from migrations_api.management.presenter import explain
from migrations_api.management.rollout_options import (
    add_selector_arguments,
    add_strategy_arguments,
    selector_of,
    strategy_of,
)
from migrations_api.orchestrator.fleet import plans_for
from migrations_api.orchestrator.requests import Request, request_rollout
from migrations_api.orchestrator.selection import Selector, concerned_tenants, select
from tenants.conf import load_conf
from tenants.exceptions import ServiceError
from tenants.models import Tenant

# Loaded by whoever asks for it; a deploy asks for none of them.
PREVIEW: Final = "migrations_api.orchestrator.previews.preview_rollout"
REFRESH: Final = "migrations_api.orchestrator.observations.refresh"
ROLL_BACK: Final = "migrations_api.management.undoing.roll_back"


class Command(ServiceCommand):
    help = "Migrate all tenants, or those selected: shared ones first, then the others wave by wave."

    def add_arguments(self, parser: CommandParser) -> None:
        conf = load_conf()
        add_migrate_arguments(parser)
        parser.add_argument("--dry-run", action="store_true", help="Show the waves and the plans; change nothing.")
        parser.add_argument(
            "--rollback", type=positive, metavar="ID", help="Undo what that rollout applied, in the tenants it changed."
        )
        parser.add_argument("--confirm", metavar="N", help="For how many tenants that is; asked for without it.")
        parser.add_argument("--executor", choices=sorted(conf.executors), default=conf.executor)
        parser.add_argument("--format", choices=["table", "json"], default="table")
        add_selector_arguments(parser)
        add_strategy_arguments(parser)

    def handle(self, *, plan: bool, check: bool, dry_run: bool, executor: str, verbosity: int, **options: Any) -> None:
        if options["pretend"]:
            raise InvalidOptions("The SQL is that of one tenant: migratetenant --pretend.")
        if options["rollback"] is not None:
            values = {"dry_run": dry_run, "executor": executor, "verbosity": verbosity, **options}
            import_string(ROLL_BACK)(self, options["rollback"], **values)
            return
        request, selector, strategy = request_of(options), selector_of(options), strategy_of(options)
        tenants = self._selected(selector)
        if plan or check:
            self._show_plans(tenants, request, plan=plan, check=check, output=options["format"])
        elif dry_run:
            import_string(REFRESH)(tenants)
            preview = import_string(PREVIEW)(tenants, request, strategy=strategy, selector=selector)
            write_preview(self, preview, output=options["format"])
        else:
            rollout = request_rollout(tenants, request, strategy=strategy, selector=selector)
            carry_out(self, rollout, executor=executor, output=options["format"], verbosity=verbosity)

    def _selected(self, selector: Selector) -> list[Tenant]:
        if selector.status:
            # Without a coordinator, nobody has looked lately.
            import_string(REFRESH)()
        return select(selector)

    def _show_plans(self, tenants: list[Tenant], request: Request, *, plan: bool, check: bool, output: str) -> None:
        check_question(request)
        pending = unknown = False
        for tenant, planned in plans_for(concerned_tenants(tenants, request.target), request.target):
            if isinstance(planned, ServiceError):
                unknown = True
                self.stderr.write(
                    f"✗ No plan for tenant '{tenant.tenant_id}': {explain(planned.code, planned.message)}"
                )
                continue
            pending = pending or bool(planned.steps)
            if plan:
                write_plan(self, tenant.tenant_id, planned, output=output)
        if unknown:
            exit_with(EXIT_SOME_FAILED)
        if check and pending:
            exit_with(EXIT_FAILED)
