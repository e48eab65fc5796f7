from collections.abc import Callable

import pytest
from django.db import IntegrityError, transaction

from migrations_api.models import MigrationRun, Rollout, records
from migrations_api.states import (
    ACTIVE_RUN_STATES,
    ROLLOUT_TRANSITIONS,
    RUN_TRANSITIONS,
    RolloutState,
    RunState,
)
from tenants.models import Tenant

# What leads where, once more and by hand: action, states that allow it, state that it leads to.
RUNS = {
    "claim": ("pending waiting", "running"),
    "wait": ("running", "waiting"),
    "requeue": ("running waiting", "pending"),
    "succeed": ("running", "succeeded"),
    "confirm": ("pending", "succeeded"),
    "fail": ("running", "failed"),
    "leave_partial": ("running", "partial"),
    "cancel": ("pending waiting running", "canceled"),
    "skip": ("pending running", "skipped"),
}
ROLLOUTS = {
    "start": ("pending", "running"),
    "pause": ("pending running", "pausing"),
    "finish_pausing": ("pausing", "paused"),
    "resume": ("pausing paused", "running"),
    "promote": ("running", "running"),
    "cancel": ("pending running pausing paused canceling", "canceling"),
    "finish_succeeded": ("pending running pausing paused", "succeeded"),
    "finish_failed": ("pending running pausing paused", "failed"),
    "finish_canceled": ("canceling", "canceled"),
}


def expected(table: dict[str, tuple[str, str]], state: str, action: str) -> tuple[bool, str]:
    sources, to = table[action]
    return (True, to) if state in sources.split() else (False, state)


@pytest.fixture
def make_run(db: None) -> Callable[..., MigrationRun]:
    def make(state: str, tenant_id: str = "acme", **values: object) -> MigrationRun:
        tenant, _ = Tenant.objects.get_or_create(
            tenant_id=tenant_id, defaults={"isolation": "schema", "schema_name": tenant_id}
        )
        return MigrationRun.objects.create(tenant=tenant, state=state, requested_via="api", **values)

    return make


def test_tables__name_every_action() -> None:
    assert RUN_TRANSITIONS.keys() == RUNS.keys()
    assert ROLLOUT_TRANSITIONS.keys() == ROLLOUTS.keys()


@pytest.mark.parametrize("action", RUNS)
@pytest.mark.parametrize("state", RunState.values)
def test_run__state_and_action(make_run: Callable[..., MigrationRun], state: str, action: str) -> None:
    run, other = make_run(state), make_run("running", "globex")
    done = MigrationRun.objects.filter(pk=run.pk).transition(action, message="written")
    run.refresh_from_db()
    assert (bool(done), run.state) == expected(RUNS, state, action)
    assert run.message == ("written" if done else "")
    other.refresh_from_db()
    assert other.state == "running"


@pytest.mark.parametrize("action", ROLLOUTS)
@pytest.mark.parametrize("state", RolloutState.values)
@pytest.mark.django_db
def test_rollout__state_and_action(state: str, action: str) -> None:
    rollout = Rollout.objects.create(state=state, requested_via="api")
    done = Rollout.objects.filter(pk=rollout.pk).transition(action)
    rollout.refresh_from_db()
    assert (done, rollout.state) == expected(ROLLOUTS, state, action)


@pytest.mark.parametrize("state", RunState.values)
def test_claim__by_state(make_run: Callable[..., MigrationRun], state: str) -> None:
    run = make_run(state, attempt=3)
    claimed = records.claim(run.pk, lease=30)
    run.refresh_from_db()
    allowed, to = expected(RUNS, state, "claim")
    assert (claimed is not None, run.state, run.attempt) == (allowed, to, 4 if allowed else 3)
    assert (run.lease_expires_at is not None) == allowed


@pytest.mark.parametrize("state", RunState.values)
def test_run__one_unfinished_for_each_tenant(make_run: Callable[..., MigrationRun], state: str) -> None:
    first = make_run(state)
    assert first.is_active == (state in ACTIVE_RUN_STATES) == (state in {"pending", "running", "waiting"})
    if not first.is_active:
        assert make_run("pending").is_active
        return
    with pytest.raises(IntegrityError, match="one_active_run_per_tenant"), transaction.atomic():
        make_run("pending")
