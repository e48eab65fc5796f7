"""202 answers: where to follow what was accepted, and the wait that the caller asked for."""

import time
from functools import wraps
from threading import BoundedSemaphore
from typing import Any

from django.db.models import Model
from django.urls import reverse
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.reports import reports
from migrations_api.rest.idempotency import Handler, idempotent
from migrations_api.rest.preconditions import requested_wait
from migrations_api.serializers.rollouts import RolloutSerializer
from migrations_api.serializers.runs import MigrationRunSerializer
from migrations_api.states import ACTIVE_ROLLOUT_STATES, ACTIVE_RUN_STATES

POLL = 0.1  # seconds
# Each holds a thread of the web server, and other requests need some too.
MAX_WAITERS = 4
_waiters = BoundedSemaphore(MAX_WAITERS)


def accepted_run(request: Request, run: MigrationRun) -> Response:
    location = reverse("run", kwargs={"run_id": run.pk})
    return _accepted(request, run_data(run), location)


def accepted_rollout(request: Request, rollout: Rollout) -> Response:
    location = reverse("rollout", kwargs={"rollout_id": rollout.pk})
    return _accepted(request, rollout_data([rollout])[0], location)


def _accepted(request: Request, data: Any, location: str) -> Response:
    headers = {"Location": request.build_absolute_uri(location)}
    return Response(data, status=status.HTTP_202_ACCEPTED, headers=headers)


def accepting(handler: Handler) -> Handler:
    """Decorate a view's `post` that answers 202: carried out once per Idempotency-Key, then waited for as preferred.

    The wait comes after the transaction: before that no coordinator sees the row.
    """
    accept = idempotent(handler)

    @wraps(handler)
    def post(view: Any, request: Request, **arguments: Any) -> Response:
        seconds = requested_wait(request)
        response = accept(view, request, **arguments)
        # A preference: when too many wait already, the answer comes at once and does not say that it was applied.
        if seconds and response.status_code == status.HTTP_202_ACCEPTED and _waiters.acquire(blocking=False):
            try:
                return _waited(response, seconds)
            finally:
                _waiters.release()
        return response

    return post


def _waited(response: Response, seconds: int) -> Response:
    """The response once more, as things stand when the run or rollout has ended or the time is over."""
    is_run = "tenant_id" in response.data
    model: type[Model] = MigrationRun if is_run else Rollout
    active = ACTIVE_RUN_STATES if is_run else ACTIVE_ROLLOUT_STATES
    deadline = time.monotonic() + seconds
    rows = model._default_manager.filter(pk=response.data["id"])
    while rows.filter(state__in=active).exists() and time.monotonic() < deadline:
        time.sleep(POLL)
    found = rows.get()
    response.data = run_data(found) if isinstance(found, MigrationRun) else rollout_data([found])[0]
    response["Preference-Applied"] = f"wait={seconds}"
    return response


def run_data(run: MigrationRun) -> Any:
    return MigrationRunSerializer(run).data


def rollout_data(rollouts: list[Any]) -> Any:
    return RolloutSerializer(rollouts, many=True, context={"reports": reports(rollouts)}).data
