from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import ServiceCommand, positive, user
from migrations_api.management.commands.migratetenant import carry_out
from migrations_api.management.undoing_one import add_tenant_arguments, confirm_plan, was_question
from migrations_api.models import Action
from migrations_api.orchestrator.requests import Request, get_tenant
from migrations_api.orchestrator.rollbacks import chosen, request_rollback, rollback_plan


class Command(ServiceCommand):
    help = "Undo what a tenant's last run applied, or what another run did, or the last steps."

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--run", type=positive, metavar="ID", help="Undo what that run applied.")
        which.add_argument("--steps", type=positive, metavar="N", help="Undo the N migrations that were applied last.")
        add_tenant_arguments(parser)

    def handle(self, *, tenant_id: str, run: int | None, steps: int | None, **options: Any) -> None:
        tenant = get_tenant(tenant_id)
        choose = chosen(tenant, run_id=run, steps=steps)
        plan = rollback_plan(tenant, choose)
        if was_question(self, tenant, plan, options):
            return
        confirm_plan(self, tenant, plan, options)
        # What was agreed to is what is done.
        digest = options["plan_digest"] or plan.digest
        request = Request(action=Action.ROLLBACK, by=user())
        carry_out(self, request_rollback(tenant, choose, request, expected_digest=digest), **options)
