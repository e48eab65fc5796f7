"""From a validated request body to what the orchestrator is asked for, with the rights that takes."""

from collections.abc import Mapping
from typing import Any

from rest_framework.request import Request as HttpRequest

from migrations_api.executor import Options
from migrations_api.models import Action, RequestedVia, Role
from migrations_api.orchestrator.requests import Request
from migrations_api.plan import Target
from migrations_api.rest.permissions import require_role
from migrations_api.rest.problems import Problem

ALL = "all"


def request_of(http: HttpRequest, body: Mapping[str, Any], *, subject: str) -> Request:
    """The orchestrator's request; raises PermissionDenied or a Problem where admin or `confirm` are missing.

    Whether a target lies backwards depends on the tenant. Only a confirmed request may go there, and the executor looks
    at that under the tenant's lock; `zero`, fake and prune are known here.
    """
    target = Target(app_label=body["app_label"] or None, migration_name=body["migration_name"] or None)
    confirmed = _confirmed(http, body["confirm"], subject)
    if grave := grave_words(body, target.migration_name):
        require_role(http, Role.ADMIN, f"{grave[0]} needs the admin role.")
        if not confirmed:
            raise Problem(422, "confirmation_required", f'{grave[0]} has to be confirmed: send "confirm": "{subject}".')
    return Request(
        target=target,
        options=Options(
            fake=body["fake"],
            fake_initial=body["fake_initial"],
            run_syncdb=body["run_syncdb"],
            prune=body["prune"],
            template=body["template"],
            allow_backwards=confirmed,
        ),
        by=http.user.get_username(),
        via=RequestedVia.API,
    )


def grave_words(options: Mapping[str, Any], migration_name: str | None, action: str = Action.MIGRATE) -> list[str]:
    """What of a request cannot be taken back, whatever the tenant's state."""
    if action in {Action.ROLLBACK, Action.RESET, Action.REFRESH}:
        return [str(action)]
    words = [name for name in ("fake", "fake_initial", "prune") if options.get(name)]
    return [*words, "zero"] if migration_name == "zero" else words


def _confirmed(http: HttpRequest, confirm: str, subject: str) -> bool:
    if not confirm:
        return False
    if confirm != subject:
        raise Problem(422, "confirmation_required", f'To confirm, send "confirm": "{subject}".')
    require_role(http, Role.ADMIN, "Confirming a change that cannot be taken back needs the admin role.")
    return True
