"""What can be done with a rollout: each route is one verb."""

from typing import Any, ClassVar, Final

from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.models import RequestedVia, Role
from migrations_api.orchestrator import rollout_verbs
from migrations_api.orchestrator.retries import retry_rollout
from migrations_api.rest import docs
from migrations_api.rest.accepted import accepted_rollout, accepting
from migrations_api.rest.asking import grave_words
from migrations_api.rest.base import ServiceView
from migrations_api.rest.docs import documented
from migrations_api.rest.idempotency import idempotent
from migrations_api.rest.permissions import require_role, role_of
from migrations_api.serializers.bodies import (
    CancelRequestSerializer,
    EmptyRequestSerializer,
    PauseRequestSerializer,
    PromoteRequestSerializer,
)
from migrations_api.serializers.rollouts import RolloutSerializer
from migrations_api.views.rollouts import get_rollout

AT_ONCE: Final[list[Any]] = [docs.IDEMPOTENCY_KEY, docs.LOCATION]
WAITED_FOR: Final = [*AT_ONCE, docs.PREFER]


class RolloutPauseView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "pause_rollout"

    @documented(
        "pause_rollout",
        {202: RolloutSerializer},
        errors=[404, 409],
        request=PauseRequestSerializer,
        parameters=AT_ONCE,
    )
    @idempotent
    def post(self, request: Request, rollout_id: int) -> Response:
        reason = self.body(PauseRequestSerializer).validated_data["reason"]
        by = request.user.get_username()
        rollout_verbs.pause(get_rollout(rollout_id), reason=f"Paused by {by}{': ' if reason else '.'}{reason}")
        return accepted_rollout(request, get_rollout(rollout_id))


class RolloutResumeView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "resume_rollout"

    @documented(
        "resume_rollout",
        {202: RolloutSerializer},
        errors=[404, 409],
        request=EmptyRequestSerializer,
        parameters=WAITED_FOR,
    )
    @accepting
    def post(self, request: Request, rollout_id: int) -> Response:
        self.body(EmptyRequestSerializer)
        rollout_verbs.resume(get_rollout(rollout_id))
        return accepted_rollout(request, get_rollout(rollout_id))


class RolloutPromoteView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "promote_rollout"

    @documented(
        "promote_rollout",
        {202: RolloutSerializer},
        errors=[404, 409],
        request=PromoteRequestSerializer,
        parameters=WAITED_FOR,
    )
    @accepting
    def post(self, request: Request, rollout_id: int) -> Response:
        body = self.body(PromoteRequestSerializer).validated_data
        rollout_verbs.promote(get_rollout(rollout_id), full=body["full"])
        return accepted_rollout(request, get_rollout(rollout_id))


class RolloutCancelView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "cancel_rollout"

    @documented(
        "cancel_rollout",
        {202: RolloutSerializer},
        errors=[404, 409],
        request=CancelRequestSerializer,
        parameters=WAITED_FOR,
    )
    @accepting
    def post(self, request: Request, rollout_id: int) -> Response:
        body = self.body(CancelRequestSerializer).validated_data
        rollout_verbs.cancel_rollout(get_rollout(rollout_id), interrupt=body["interrupt"])
        return accepted_rollout(request, get_rollout(rollout_id))


class RolloutRetryView(ServiceView):
    required_roles: ClassVar = {"POST": Role.OPERATOR}
    action_name = "retry_rollout"

    @documented(
        "retry_rollout",
        {202: RolloutSerializer},
        errors=[404, 409, 422, 503],
        request=EmptyRequestSerializer,
        parameters=WAITED_FOR,
    )
    @accepting
    def post(self, request: Request, rollout_id: int) -> Response:
        self.body(EmptyRequestSerializer)
        rollout = get_rollout(rollout_id)
        if grave := grave_words(rollout.options, rollout.migration_name, rollout.action):
            require_role(request, Role.ADMIN, f"{grave[0]} needs the admin role.")
        again = retry_rollout(
            rollout,
            by=request.user.get_username(),
            via=RequestedVia.API,
            allow_backwards=role_of(request) is Role.ADMIN,
        )
        self.object_id = str(again.pk)
        return accepted_rollout(request, again)
