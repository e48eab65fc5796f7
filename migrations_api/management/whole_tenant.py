from typing import Any, ClassVar

from django.core.management.base import CommandParser

from migrations_api.management.base import ServiceCommand, user
from migrations_api.management.commands.migratetenant import carry_out
from migrations_api.management.undoing_one import add_tenant_arguments, confirm_plan, was_question
from migrations_api.models import Action
from migrations_api.orchestrator.fleet import plan_for
from migrations_api.orchestrator.requests import Request, get_tenant, request_run


class WholeTenantCommand(ServiceCommand):
    """Take every app of one tenant to zero."""

    action: ClassVar[Action]

    def add_arguments(self, parser: CommandParser) -> None:
        add_tenant_arguments(parser)

    def handle(self, *, tenant_id: str, **options: Any) -> None:
        tenant, request = get_tenant(tenant_id), Request(action=self.action, by=user())
        plan = plan_for(tenant, request.goal)
        if was_question(self, tenant, plan, options):
            return
        confirm_plan(self, tenant, plan, options)
        # What was agreed to is what is done.
        digest = options["plan_digest"] or plan.digest
        carry_out(self, request_run(tenant, request, expected_digest=digest), **options)
