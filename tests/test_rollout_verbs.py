"""What can be done with rollouts and runs that exist: in which state, in which order, and all at once."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, permutations
from typing import Any

import psycopg2
import pytest
from django.db import connections
from django.db.models.functions import Now

from migrations_api.exceptions import InvalidTransition, RunActive, TenantHeld
from migrations_api.executor import Options
from migrations_api.models import MigrationRun, Rollout, records
from migrations_api.orchestrator import progress
from migrations_api.orchestrator.advance import advance
from migrations_api.orchestrator.driver import drive
from migrations_api.orchestrator.holds import hold, release
from migrations_api.orchestrator.recorder import Recorder
from migrations_api.orchestrator.requests import Request, request_rollout, request_run
from migrations_api.orchestrator.retries import retry_rollout
from migrations_api.orchestrator.rollout_verbs import cancel_rollout, pause, promote, resume
from migrations_api.orchestrator.selection import Selector, select
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.orchestrator.verbs import cancel_run, skip_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target
from migrations_api.states import RolloutState
from tenants.exceptions import TenantNotFound
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.broken.orders_slow import GATE
from tests.threads import together

MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]
ROUNDS = 12
ENDED = {"succeeded", "failed", "canceled"}

VERBS: dict[str, Callable[[Rollout], object]] = {
    "pause": partial(pause, reason="lunch"),
    "resume": resume,
    "promote": promote,
    "promote full": partial(promote, full=True),
    "cancel": cancel_rollout,
    "cancel interrupt": partial(cancel_rollout, interrupt=True),
    "retry": partial(retry_rollout, by="ada"),
}
# By hand: the state in which each verb leaves a rollout, or that it is refused. One that is pausing or canceling has a
# run in flight; the others that are not over stand before their second wave.
NO = "refused"
TABLE = {
    #             pause     resume     promote    full       cancel       interrupt    retry
    "pending":   ["paused", NO,        NO,        NO,        "canceled",  "canceled",  NO],
    "running":   ["paused", NO,        "running", "running", "canceled",  "canceled",  NO],
    "pausing":   [NO,       "running", NO,        NO,        "canceling", "canceling", NO],
    "paused":    [NO,       "running", NO,        NO,        "canceled",  "canceled",  NO],
    "canceling": [NO,       NO,        NO,        NO,        "canceling", "canceling", NO],
    "succeeded": [NO,       NO,        NO,        NO,        NO,          NO,          NO],
    "failed":    [NO,       NO,        NO,        NO,        NO,          NO,          "failed"],
    "canceled":  [NO,       NO,        NO,        NO,        NO,          NO,          "canceled"],
}  # fmt: skip
PAIRS = [(state, verb, becomes) for state, row in TABLE.items() for verb, becomes in zip(VERBS, row, strict=True)]


@pytest.fixture(autouse=True)
def written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PACE", 0.0)


def add(*tenant_ids: str) -> None:
    """Tenants that are rows and nothing else."""
    Tenant.objects.bulk_create(
        Tenant.at_home(tenant_id=tenant_id, isolation=Isolation.SCHEMA, name="Somebody") for tenant_id in tenant_ids
    )


def begin(**strategy: Any) -> Rollout:
    """A rollout over acme, globex and initech that nobody has looked at."""
    if not Tenant.objects.exists():
        add("acme", "globex", "initech")
    return request_rollout(Tenant.objects.all(), Request(via="api"), strategy=Strategy.from_dict(strategy))


def step(rollout: Rollout, *, limit: int = 9) -> list[int]:
    chosen = advance(rollout, limit=limit, lease=30)
    rollout.refresh_from_db()
    return chosen


def run_of(rollout: Rollout, tenant_id: str) -> MigrationRun:
    return rollout.runs.get(tenant_id=tenant_id)


def start(rollout: Rollout, *tenant_ids: str) -> None:
    for run in rollout.runs.filter(tenant_id__in=tenant_ids):
        assert records.claim(run.pk, lease=30)


def end(rollout: Rollout, *tenant_ids: str, by: str = "succeed") -> None:
    start(rollout, *tenant_ids)
    rollout.runs.filter(tenant_id__in=tenant_ids).transition(by, finished_at=Now())


def states(rollout: Rollout) -> list[str]:
    return list(rollout.runs.order_by("tenant_id").values_list("state", flat=True))


def written(rollout: Rollout) -> object:
    return Rollout.objects.filter(pk=rollout.pk).values().get(), list(rollout.runs.order_by("pk").values())


def rollout_that_is(state: str) -> Rollout:
    rollout = begin(canary=1, promotion="manual")
    if state == "pending":
        return rollout
    step(rollout)
    if state in {"pausing", "canceling"}:
        start(rollout, "acme")
    elif state == "succeeded":
        promote(rollout, full=True)
        end(rollout, "acme", "globex", "initech")
    elif state == "failed":
        end(rollout, "acme")
        promote(rollout)
        end(rollout, "globex", by="fail")
        end(rollout, "initech")
    else:
        end(rollout, "acme")
    if state in {"pausing", "paused"}:
        pause(rollout, reason="audit")
    elif state in {"canceling", "canceled"}:
        cancel_rollout(rollout)
    else:
        step(rollout)
    rollout.refresh_from_db()
    assert rollout.state == state
    return rollout


@pytest.mark.django_db
@pytest.mark.parametrize(("state", "verb", "becomes"), PAIRS, ids=[f"{state}-{verb}" for state, verb, _ in PAIRS])
def test_verb__by_state(state: str, verb: str, becomes: str) -> None:
    rollout = rollout_that_is(state)
    before = written(rollout)
    if becomes == NO:
        with pytest.raises(InvalidTransition):
            VERBS[verb](rollout)
        assert written(rollout) == before
    else:
        VERBS[verb](rollout)
        rollout.refresh_from_db()
        assert rollout.state == becomes
    assert Rollout.objects.count() == (2 if verb == "retry" and becomes != NO else 1)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("state", "verb", "message"),
    [
        ("paused", "pause", r"^Rollout \d+ is paused; to pause it, it has to be pending or running\.$"),
        ("running", "resume", r"^Rollout \d+ is running; to resume it, it has to be paused or pausing\.$"),
        ("canceled", "cancel", r"^Rollout \d+ is canceled; to cancel it, it has to be canceling or paused or "),
        ("running", "retry", r"^Rollout \d+ is running; one that goes on cannot be retried\.$"),
        ("succeeded", "retry", r"^Rollout \d+ has left no tenant behind; there is nothing to retry\.$"),
    ],
)
def test_verb__that_is_refused_says_why(state: str, verb: str, message: str) -> None:
    with pytest.raises(InvalidTransition, match=message):
        VERBS[verb](rollout_that_is(state))


def test_table__names_every_state_and_verb() -> None:
    assert TABLE.keys() == set(RolloutState.values)
    assert {len(row) for row in TABLE.values()} == {len(VERBS)}


# What a verb or a look may make of a state, by hand.
LEADS_TO = {
    "running": {"running", "pausing", "paused", "canceling", "canceled", "succeeded", "failed"},
    "pausing": {"pausing", "paused", "running", "canceling", "canceled"},
    "paused": {"paused", "running", "canceling", "canceled"},
    "canceling": {"canceling", "canceled"},
    "canceled": {"canceled"},
}
ORDERS = list(
    chain.from_iterable(permutations(["promote", "pause", "cancel", "resume"], length) for length in range(1, 5))
)


def require_sound(rollout: Rollout, before: Rollout) -> None:
    rollout.refresh_from_db()
    assert rollout.state in LEADS_TO[before.state]
    runs = rollout.runs.all()
    assert not runs.in_flight().filter(wave__gt=rollout.open_wave).exists()
    assert rollout.open_wave >= before.open_wave
    if rollout.state in ENDED:
        assert not runs.active().exists()
    assert (rollout.finished_at is not None) == (rollout.state in ENDED)
    if before.finished_at is not None:
        assert rollout.finished_at == before.finished_at
    if rollout.state == "paused":
        assert not runs.in_flight().exists()
        assert rollout.lease_expires_at is None
    if rollout.state == "canceling":
        assert not runs.filter(state="pending").exists()
        assert not runs.in_flight().filter(cancel_requested=False).exists()


@pytest.mark.django_db
@pytest.mark.parametrize("looks", [True, False], ids=["advance", "no-advance"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_verbs__in_every_order(order: Sequence[str], looks: bool) -> None:
    rollout = begin(canary=1, waves=[1], promotion="manual")
    step(rollout)
    end(rollout, "acme")
    step(rollout)
    assert rollout.awaits_promotion
    done: list[str] = []
    for verb in order:
        before = Rollout.objects.get(pk=rollout.pk)
        try:
            VERBS[verb](rollout)
            done.append(verb)
        except InvalidTransition:
            assert Rollout.objects.filter(pk=rollout.pk).values().get() == vars_of(before)
        require_sound(rollout, before)
        if looks:
            before = Rollout.objects.get(pk=rollout.pk)
            for run_id in step(rollout, limit=1):
                records.claim(run_id, lease=30)
            require_sound(rollout, before)
    # A cancel is never refused before the end, and nothing undoes it.
    assert ("cancel" in done) == ("cancel" in order)
    rollout.runs.in_flight().transition("cancel", finished_at=Now())
    step(rollout)
    assert (rollout.state == "canceled") == ("cancel" in order)
    assert rollout.open_wave == (2 if "promote" in done else 1)


def vars_of(rollout: Rollout) -> dict[str, Any]:
    return {field.attname: getattr(rollout, field.attname) for field in Rollout._meta.concrete_fields}


@pytest.mark.django_db
def test_pause__drains_what_is_in_flight() -> None:
    rollout = begin()
    step(rollout)
    start(rollout, "acme", "globex")
    rollout.runs.filter(tenant_id="globex").transition("wait")
    pause(rollout, reason="Paused by ada.")
    rollout.refresh_from_db()
    assert (rollout.state, rollout.stop_code, rollout.stop_reason) == ("pausing", "paused", "Paused by ada.")
    # One that backs off is in flight: its worker has it and goes on.
    assert records.claim(run_of(rollout, "globex").pk, lease=30)
    rollout.runs.in_flight().transition("succeed", finished_at=Now())
    step(rollout)
    assert (rollout.state, states(rollout)) == ("paused", ["succeeded", "succeeded", "pending"])


@pytest.mark.django_db
def test_pause__what_was_chosen_before_is_not_started_after() -> None:
    rollout = begin()
    chosen = step(rollout)
    pause(rollout, reason="lunch")
    assert [records.claim(run_id, lease=30) for run_id in chosen] == [None] * 3
    resume(rollout)
    assert records.claim(chosen[0], lease=30)


@pytest.mark.django_db
def test_resume__of_a_rollout_that_was_never_started_starts_it() -> None:
    rollout = begin()
    pause(rollout, reason="lunch")
    resume(rollout)
    assert len(step(rollout)) == 3
    assert rollout.started_at is not None
    assert rollout.progress_at is not None


@pytest.mark.django_db
def test_pause__leaves_nobody_a_rollout_that_a_command_drives() -> None:
    add("acme", "globex")
    rollout = request_rollout(Tenant.objects.all(), Request(via="command"))
    step(rollout)
    pause(rollout, reason="lunch")
    resume(rollout)
    rollout.refresh_from_db()
    assert not rollout.foreground


@pytest.mark.django_db
def test_promote__of_a_wave_that_goes_on_is_refused() -> None:
    rollout = begin(canary=1)
    step(rollout)
    start(rollout, "acme")
    with pytest.raises(InvalidTransition, match=r"^Wave 1 of rollout \d+ has not ended; nothing to promote\.$"):
        promote(rollout)
    rollout.refresh_from_db()
    assert rollout.open_wave == 1
    promote(rollout, full=True)
    rollout.refresh_from_db()
    # It opens no wave beside the one that goes on.
    assert (rollout.open_wave, rollout.promoted_fully) == (1, True)


@pytest.mark.django_db
def test_promote__needs_no_look_in_between() -> None:
    rollout = begin(canary=1, promotion="manual")
    step(rollout)
    end(rollout, "acme")
    promote(rollout)
    assert len(step(rollout)) == 2
    assert not rollout.awaits_promotion


@pytest.mark.django_db
def test_cancel__asks_what_runs_and_ends_what_does_not() -> None:
    rollout = begin()
    step(rollout)
    start(rollout, "acme", "globex")
    rollout.runs.filter(tenant_id="globex").transition("wait")
    cancel_rollout(rollout)
    asked = rollout.runs.order_by("tenant_id").values_list("state", "cancel_requested", "interrupt_requested")
    assert list(asked) == [("running", True, False), ("waiting", True, False), ("canceled", False, False)]
    cancel_rollout(rollout, interrupt=True)
    assert list(asked.all())[:2] == [("running", True, True), ("waiting", True, True)]


def test_retry__is_for_those_that_were_not_migrated(plane: None) -> None:
    add("acme", "globex", "initech", "umbrella", "wayne")
    Tenant.objects.filter(pk="wayne").update(suspended=True)
    rollout = request_rollout(
        Tenant.objects.all(),
        Request(
            target=Target(app_label="users", migration_name="0001"), options=Options(fake=True), by="eve", via="api"
        ),
        strategy=Strategy.from_dict({"canary": 1, "max_failures": "50%", "failure_mode": "strict"}),
    )
    step(rollout)
    promote(rollout, full=True)
    end(rollout, "acme")
    end(rollout, "globex", by="fail")
    end(rollout, "initech", by="cancel")
    skip_run(run_of(rollout, "umbrella"), by="ada", reason="later")
    step(rollout)
    again = retry_rollout(rollout, by="ada")
    assert set(again.runs.values_list("tenant_id", flat=True)) == {"globex", "initech"}
    assert (again.retry_of, again.selector, again.requested_by) == (rollout, {"unfinished_in": rollout.pk}, "ada")
    for name in ("app_label", "migration_name", "options", "strategy"):
        assert getattr(again, name) == getattr(rollout, name)
    assert set(again.runs.values_list("app_label", "migration_name", "state")) == {("users", "0001", "pending")}
    assert (again.state, again.total, again.foreground) == ("pending", 2, False)


@pytest.mark.django_db
@pytest.mark.parametrize(("asked", "allowed", "kept"), [(True, True, True), (True, False, False), (False, True, False)])
def test_retry__can_only_take_a_right_away(asked: bool, allowed: bool, kept: bool) -> None:
    add("acme")
    rollout = request_rollout(
        Tenant.objects.all(), Request(options=Options(allow_backwards=asked), via="api"), strategy=Strategy()
    )
    cancel_rollout(rollout)
    again = retry_rollout(rollout, by="ada", allow_backwards=allowed)
    assert Options(**again.options).allow_backwards == kept


@pytest.mark.django_db
def test_retry__twice_is_refused_by_the_first_one() -> None:
    rollout = begin()
    cancel_rollout(rollout)
    again = retry_rollout(rollout, by="ada")
    with pytest.raises(RunActive):
        retry_rollout(rollout, by="ada")
    assert select(Selector(unfinished_in=rollout.pk)) == list(Tenant.objects.filter(runs__rollout=again))


@pytest.mark.django_db
def test_skip__leaves_the_tenant_out_and_says_who_and_why() -> None:
    rollout = begin()
    step(rollout)
    skip_run(run_of(rollout, "globex"), by="ada", reason="it moves house")
    run = run_of(rollout, "globex")
    assert (run.state, run.error_code, run.message) == ("skipped", "skipped", "Skipped by ada: it moves house")
    assert run.finished_at is not None
    end(rollout, "acme", "initech")
    step(rollout)
    assert rollout.state == "succeeded"


@pytest.mark.django_db
@pytest.mark.parametrize("state", ["running", "waiting", "succeeded", "failed", "partial", "canceled", "skipped"])
def test_skip__only_what_was_not_started(state: str) -> None:
    rollout = begin()
    rollout.runs.filter(tenant_id="acme").update(state=state)
    with pytest.raises(InvalidTransition, match=f"is {state}; only a pending one can be skipped"):
        skip_run(run_of(rollout, "acme"), by="ada", reason="late")
    assert states(rollout)[0] == state


@pytest.mark.django_db
@pytest.mark.parametrize("leave_out", ["skip", "hold"])
@pytest.mark.parametrize(("before", "after"), [("running", "succeeded"), ("paused", "succeeded")])
def test_leaving_out__the_last_tenant_ends_the_rollout(leave_out: str, before: str, after: str) -> None:
    rollout = begin()
    step(rollout)
    end(rollout, "acme", "globex")
    if before == "paused":
        pause(rollout, reason="lunch")
    if leave_out == "skip":
        skip_run(run_of(rollout, "initech"), by="ada", reason="no")
    else:
        hold(Tenant.objects.get(pk="initech"), by="ada", reason="no")
    rollout.refresh_from_db()
    assert (rollout.state, states(rollout)[-1]) == (after, "skipped")


@pytest.mark.django_db
def test_cancel_run__of_the_last_one_ends_the_rollout_as_failed() -> None:
    rollout = begin()
    step(rollout)
    end(rollout, "acme", "globex")
    cancel_run(run_of(rollout, "initech"))
    rollout.refresh_from_db()
    assert rollout.state == "failed"


@pytest.mark.django_db
def test_hold__skips_what_is_not_started_and_lets_go_on_what_is() -> None:
    rollout = begin()
    step(rollout)
    start(rollout, "acme")
    for tenant_id in ("acme", "globex"):
        hold(Tenant.objects.get(pk=tenant_id), by="ada", reason="audit")
    assert states(rollout) == ["running", "skipped", "pending"]
    run = run_of(rollout, "globex")
    assert (run.error_code, run.message) == ("held", "The tenant is held by ada (audit).")
    assert run.finished_at is not None


@pytest.mark.django_db
def test_hold__keeps_everybody_out_until_it_is_released() -> None:
    add("acme")
    tenant = Tenant.objects.get(pk="acme")
    hold(tenant, by="ada", reason="audit")
    with pytest.raises(TenantHeld, match=r"held by ada \(audit\)\. Release it first"):
        request_run(tenant, Request(via="api"))
    hold(tenant, by="eve", reason="court order")
    tenant.refresh_from_db()
    assert (tenant.held_by, tenant.hold_reason) == ("eve", "court order")
    release(tenant)
    tenant.refresh_from_db()
    assert (tenant.held_at, tenant.held_by, tenant.hold_reason) == (None, "", "")
    assert request_run(tenant, Request(via="api")).state == "pending"


@pytest.mark.django_db
def test_hold__of_a_tenant_that_is_gone_and_release_of_one_that_is_not_held() -> None:
    add("acme")
    tenant = Tenant.objects.get(pk="acme")
    with pytest.raises(InvalidTransition, match="'acme' is not held"):
        release(tenant)
    Tenant.objects.all().delete()
    with pytest.raises(TenantNotFound):
        hold(tenant, by="ada", reason="audit")


def rounds(**strategy: Any) -> Iterator[Rollout]:
    """New rollouts over the same tenants, one after the other."""
    for _ in range(ROUNDS):
        rollout = begin(**strategy)
        step(rollout)
        yield rollout
        Tenant.objects.update(held_at=None)
        MigrationRun.objects.active().update(state="canceled")


def claim(run: MigrationRun) -> bool:
    return records.claim(run.pk, lease=30) is not None


def test_race__pause_against_advance(plane: None) -> None:
    for rollout in rounds():
        together(
            partial(pause, rollout, reason="lunch"),
            lambda rollout=rollout: [records.claim(run_id, lease=30) for run_id in advance(rollout, limit=2, lease=30)],
        )
        rollout.refresh_from_db()
        started = rollout.runs.in_flight().count()
        assert rollout.state == ("pausing" if started else "paused")
        # And nothing that was on its way is started from now on.
        assert not any(claim(run) for run in rollout.runs.filter(state="pending"))


def test_race__two_promote_at_once_open_one_wave(plane: None) -> None:
    for rollout in rounds(canary=1, waves=[1], promotion="manual"):
        end(rollout, "acme")
        step(rollout)
        results = together(partial(promote, rollout), partial(promote, rollout))
        rollout.refresh_from_db()
        assert (rollout.open_wave, [type(result) for result in results].count(InvalidTransition)) == (2, 1)


def test_race__promote_against_cancel(plane: None) -> None:
    for rollout in rounds(canary=1, promotion="manual"):
        end(rollout, "acme")
        step(rollout)
        _, canceled = together(partial(promote, rollout), partial(cancel_rollout, rollout))
        rollout.refresh_from_db()
        assert (canceled, rollout.state, states(rollout)) == (None, "canceled", ["succeeded", "canceled", "canceled"])


def test_race__resume_against_cancel(plane: None) -> None:
    for rollout in rounds():
        pause(rollout, reason="lunch")
        _, canceled = together(partial(resume, rollout), partial(cancel_rollout, rollout))
        rollout.refresh_from_db()
        assert (canceled, rollout.state, set(states(rollout))) == (None, "canceled", {"canceled"})


def test_race__cancel_against_a_worker_that_requeues(plane: None) -> None:
    for rollout in rounds():
        run = run_of(rollout, "acme")
        claimed = records.claim(run.pk, lease=30)
        assert claimed is not None
        recorder = Recorder(claimed, emit=lambda event: None, should_stop=lambda: True, requeues=True)
        requeued, _ = together(recorder.requeue, partial(cancel_rollout, rollout))
        run.refresh_from_db()
        rollout.refresh_from_db()
        expected = ("canceled", "canceled") if requeued else ("canceling", "running")
        assert (rollout.state, run.state) == expected
        # Whoever did not requeue it has been told to stop.
        assert requeued or recorder.should_stop()
        assert requeued or run.cancel_requested


def test_race__cancel_against_claim(plane: None) -> None:
    for rollout in rounds():
        run = run_of(rollout, "acme")
        claimed, _ = together(partial(claim, run), partial(cancel_rollout, rollout, interrupt=True))
        run.refresh_from_db()
        found = (run.state, run.cancel_requested, run.interrupt_requested)
        assert found == (("running", True, True) if claimed else ("canceled", False, False))


@pytest.mark.parametrize("verb", ["skip", "hold", "cancel"])
def test_race__leaving_a_tenant_out_against_claim(plane: None, verb: str) -> None:
    for rollout in rounds():
        run = run_of(rollout, "acme")
        leave_out: dict[str, Callable[[], None]] = {
            "skip": partial(skip_run, run, by="ada", reason="no"),
            "hold": partial(hold, run.tenant, by="ada", reason="no"),
            "cancel": partial(cancel_run, run),
        }
        claimed, refused = together(partial(claim, run), leave_out[verb])
        run.refresh_from_db()
        if claimed:
            assert (run.state, run.cancel_requested) == ("running", verb == "cancel")
            assert (type(refused) is InvalidTransition) == (verb == "skip")
        else:
            assert (run.state, refused) == ("canceled" if verb == "cancel" else "skipped", None)


def test_race__hold_against_a_request(plane: None) -> None:
    add("acme")
    tenant = Tenant.objects.get(pk="acme")
    for _ in range(ROUNDS):
        together(partial(hold, tenant, by="ada", reason="no"), partial(request_run, tenant, Request(via="api")))
        assert not MigrationRun.objects.active().exists()
        release(tenant)


def test_race__the_last_tenants_are_left_out_at_once(plane: None) -> None:
    for rollout in rounds():
        pause(rollout, reason="lunch")
        first, second, third = rollout.runs.order_by("tenant_id")
        together(
            partial(skip_run, first, by="ada", reason="no"),
            partial(hold, second.tenant, by="ada", reason="no"),
            partial(cancel_run, third),
        )
        rollout.refresh_from_db()
        assert (rollout.state, states(rollout)) == ("failed", ["skipped", "skipped", "canceled"])


def test_race__cancel_of_the_last_run_against_cancel_of_its_rollout(plane: None) -> None:
    for rollout in rounds():
        end(rollout, "acme", "globex")
        # Neither waits for what the other one holds.
        together(partial(cancel_run, run_of(rollout, "initech")), partial(cancel_rollout, rollout))
        rollout.refresh_from_db()
        assert rollout.state in {"canceled", "failed"}
        assert states(rollout)[-1] == "canceled"


@contextmanager
def closed_gate(tenant: Tenant) -> Iterator[psycopg2.extensions.connection]:
    """The migrations of orders_slow wait until this session is closed."""
    connection = psycopg2.connect(**catalog.tenant_dsn(tenant))
    connection.autocommit = True
    try:
        connection.cursor().execute("SELECT pg_advisory_lock(%s)", [GATE])
        yield connection
    finally:
        connection.close()


@contextmanager
def when_it_waits(tenant: Tenant, do: Callable[[], object]) -> Iterator[None]:
    """Do that, from a session of its own, once the tenant's migration in the block waits for the gate."""
    waits = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'active' AND query LIKE 'DO $$ BEGIN WHILE NOT pg_try_%'"
    )
    connected = threading.Event()

    def watch() -> None:
        # Before `default` becomes the tenant.
        connections["default"].ensure_connection()
        connected.set()
        try:
            while not catalog.query(catalog.tenant_dsn(tenant), waits):
                pass
            do()
        finally:
            connections.close_all()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    connected.wait()
    yield
    thread.join(60)


def migrate(tenant: Tenant, *target: str) -> MigrationRun:
    run = request_run(tenant, Request(target=Target(app_label=target[0], migration_name=target[1])))
    work(run.pk, emit=lambda event: None, should_stop=lambda: False)
    run.refresh_from_db()
    return run


def interrupted(tenant: Tenant, name: str, **options: bool) -> MigrationRun:
    """A run to that migration of orders, canceled when it waits."""
    run = request_run(tenant, Request(target=Target(app_label="orders", migration_name=name), via="api"))
    with closed_gate(tenant) as gate:

        def cancel() -> None:
            cancel_run(run, **options)
            if not options:
                gate.close()

        with when_it_waits(tenant, cancel):
            work(run.pk, emit=lambda event: None, should_stop=lambda: False)
    run.refresh_from_db()
    return run


@pytest.fixture
def alert(settings: Any) -> None:
    """Workers that look often whether they are to stop."""
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "heartbeat": 0.05, "lease": 30, "statement_timeout": 20}


def applied(tenant: Tenant) -> set[str]:
    return {name for app, name in catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name) if app == "orders"}


def tables(tenant: Tenant) -> set[str]:
    return catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name)


def test_interrupt__cancels_the_statement_of_an_atomic_step(
    broken: Choose, make_tenant: MakeTenant, alert: None
) -> None:
    broken(orders="orders_slow")
    tenant = make_tenant()
    run = interrupted(tenant, "0004", interrupt=True)
    assert (run.state, run.error_code, run.attempt) == ("canceled", "canceled", 1)
    assert run.message == "Interrupted, as asked; the tenant stands between two steps."
    assert run.failed_step == "orders.0003_gate"
    assert applied(tenant) == {"0001_initial", "0002_ledger_entry"}
    assert "orders_parcel" not in tables(tenant)
    assert run.applied_after is not None
    assert ("orders", "0002_ledger_entry") in run.applied_after.keys
    # Nothing is left of it that would be in the way.
    assert migrate(tenant, "orders", "0004").state == "succeeded"


def test_interrupt__of_a_non_atomic_step_that_has_done_something_leaves_it_partial(
    broken: Choose, make_tenant: MakeTenant, alert: None
) -> None:
    broken(orders="orders_slow_nonatomic")
    tenant = make_tenant()
    assert migrate(tenant, "orders", "0003").state == "succeeded"
    run = interrupted(tenant, "0004", interrupt=True)
    assert (run.state, run.failed_step, run.sqlstate) == ("partial", "orders.0004_parcel", "57014")
    assert "orders_parcel" in tables(tenant)
    assert "0004_parcel" not in applied(tenant)


def test_interrupt__of_a_non_atomic_step_that_has_done_nothing_leaves_a_boundary(
    broken: Choose, make_tenant: MakeTenant, alert: None
) -> None:
    broken(orders="orders_slow_nonatomic")
    tenant = make_tenant()
    run = interrupted(tenant, "0004", interrupt=True)
    assert (run.state, run.failed_step) == ("canceled", "orders.0003_wait")
    assert applied(tenant) == {"0001_initial", "0002_ledger_entry"}


def test_cancel_run__without_interrupt_lets_the_step_end(broken: Choose, make_tenant: MakeTenant, alert: None) -> None:
    broken(orders="orders_slow")
    tenant = make_tenant()
    run = interrupted(tenant, "0004")
    assert (run.state, run.error_code, run.failed_step) == ("canceled", "canceled", "")
    assert applied(tenant) == {"0001_initial", "0002_ledger_entry", "0003_gate"}


def test_interrupt__a_statement_that_runs_into_its_timeout_is_a_failure(
    broken: Choose, make_tenant: MakeTenant, settings: Any
) -> None:
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "statement_timeout": 0.5}
    broken(orders="orders_slow")
    tenant = make_tenant()
    with closed_gate(tenant):
        run = migrate(tenant, "orders", "0004")
    assert (run.state, run.sqlstate, run.failed_step) == ("failed", "57014", "orders.0003_gate")


def test_interrupt__of_a_rollout_stops_what_runs(broken: Choose, make_tenant: MakeTenant, alert: None) -> None:
    broken(orders="orders_slow")
    tenant = make_tenant("acme")
    make_tenant("globex")
    rollout = request_rollout(Tenant.objects.all(), Request(target=Target(app_label="orders")))
    with closed_gate(tenant), when_it_waits(tenant, partial(cancel_rollout, rollout, interrupt=True)):
        rollout = drive(
            rollout, executor="sequential", max_concurrency=1, emit=lambda event: None, should_stop=lambda: False
        )
    assert (rollout.state, states(rollout)) == ("canceled", ["canceled", "canceled"])
    assert "orders_parcel" not in tables(tenant)
    assert tables(Tenant.objects.get(pk="globex")) == set()
