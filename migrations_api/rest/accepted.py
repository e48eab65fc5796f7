"""202 answers: where to follow what was accepted, and the wait that the caller asked for."""

import time
from collections.abc import Callable
from typing import Any

from django.db.models import Model
from django.urls import reverse
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.rollouts import counts_by_rollout
from migrations_api.rest.preconditions import requested_wait
from migrations_api.serializers import MigrationRunSerializer, RolloutSerializer
from migrations_api.states import ACTIVE_ROLLOUT_STATES, ACTIVE_RUN_STATES

POLL = 0.1  # seconds


def accepted_run(request: Request, run: MigrationRun) -> Response:
    location = reverse("run", kwargs={"run_id": run.pk})
    return _accepted(request, run_data(run), location)


def accepted_rollout(request: Request, rollout: Rollout) -> Response:
    location = reverse("rollout", kwargs={"rollout_id": rollout.pk})
    return _accepted(request, rollout_data([rollout])[0], location)


def _accepted(request: Request, data: Any, location: str) -> Response:
    headers = {"Location": request.build_absolute_uri(location)}
    return Response(data, status=status.HTTP_202_ACCEPTED, headers=headers)


def waited(request: Request, accept: Callable[..., Response], **arguments: Any) -> Response:
    """What `accept` answers, as things stand when the run or rollout has ended or `Prefer: wait` is over.

    `accept` ends its transaction itself: before that no coordinator sees the row.
    """
    seconds = requested_wait(request)
    response = accept(request, **arguments)
    if not seconds or response.status_code != status.HTTP_202_ACCEPTED:
        return response
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
    counts = counts_by_rollout(rollouts)
    return RolloutSerializer(rollouts, many=True, context={"counts": counts}).data
