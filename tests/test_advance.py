"""What a rollout does next: waves, gates, budgets, deadlines and caps."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from migrations_api.models import MigrationRun, Rollout, records
from migrations_api.orchestrator.advance import advance
from migrations_api.orchestrator.requests import Request, request_rollout
from migrations_api.orchestrator.rollout_verbs import cancel_rollout, pause, promote, resume
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.states import ACTIVE_RUN_STATES
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.threads import together

FLEET = ("acme", "globex", "initech", "umbrella", "wayne")


def add(*tenant_ids: str, isolation: str = Isolation.SCHEMA, **values: Any) -> None:
    """Tenants that are rows and nothing else."""
    given = {"name": "Somebody", **values}
    Tenant.objects.bulk_create(
        Tenant.at_home(tenant_id=tenant_id, isolation=isolation, **given) for tenant_id in tenant_ids
    )


def begin(*tenant_ids: str, **strategy: Any) -> Rollout:
    """A rollout over new tenants of those ids, and over those that are there."""
    add(*tenant_ids)
    return request_rollout(Tenant.objects.all(), Request(via="api"), strategy=Strategy.from_dict(strategy))


def step(rollout: Rollout, *, limit: int = 99, held: Iterable[str] = ()) -> list[str]:
    """advance(), with tenants instead of runs."""
    tenants = dict(rollout.runs.values_list("pk", "tenant_id"))
    runs = {tenant_id: pk for pk, tenant_id in tenants.items()}
    chosen = advance(rollout, limit=limit, lease=30, held=frozenset(runs[tenant_id] for tenant_id in held))
    rollout.refresh_from_db()
    return [tenants[pk] for pk in chosen]


def claim(rollout: Rollout, *tenant_ids: str) -> None:
    for run in rollout.runs.filter(tenant_id__in=tenant_ids):
        assert records.claim(run.pk, lease=30)


def end(rollout: Rollout, *tenant_ids: str, by: str = "succeed") -> None:
    chosen = rollout.runs.filter(tenant_id__in=tenant_ids)
    chosen.filter(state="pending").transition("claim")
    assert chosen.transition(by, finished_at=Now(), error_code="") == len(tenant_ids)


def states(rollout: Rollout) -> list[str]:
    return list(rollout.runs.order_by("tenant_id").values_list("state", flat=True))


def rewind(rollout: Rollout, *names: str, seconds: float = 3600) -> None:
    """As if those times of the rollout were so long ago."""
    Rollout.objects.filter(pk=rollout.pk).update(**{name: F(name) - timedelta(seconds=seconds) for name in names})


def written(rollout: Rollout) -> object:
    """Everything that the control plane has of the rollout but for the lease that each call renews."""
    row = Rollout.objects.filter(pk=rollout.pk).values().get()
    return {**row, "lease_expires_at": None}, list(rollout.runs.order_by("pk").values())


pytestmark = pytest.mark.django_db


def test_waves__one_after_the_other() -> None:
    rollout = begin(*FLEET, canary=1, waves=["40%"])
    assert step(rollout) == ["acme"]
    assert (rollout.state, rollout.open_wave, rollout.last_wave) == ("running", 1, 3)
    assert rollout.started_at is not None
    claim(rollout, "acme")
    assert step(rollout) == []
    end(rollout, "acme")
    assert step(rollout) == ["globex", "initech"]
    end(rollout, "globex")
    assert step(rollout) == ["initech"]
    end(rollout, "initech", by="fail")
    assert step(rollout) == ["umbrella", "wayne"]
    assert rollout.open_wave == 3
    end(rollout, "umbrella", "wayne")
    assert step(rollout) == []
    assert (rollout.state, rollout.lease_expires_at) == ("failed", None)
    assert rollout.finished_at is not None


def test_waves__shared_tenants_are_a_barrier_before_the_canary() -> None:
    add("yankee", isolation=Isolation.SHARED, database="alpha")
    add("zulu", isolation=Isolation.SHARED, database="beta")
    rollout = begin("acme", "globex", canary=1, promotion="manual")
    assert step(rollout) == ["yankee", "zulu"]
    end(rollout, "yankee")
    assert step(rollout, held=["zulu"]) == []
    claim(rollout, "zulu")
    assert step(rollout) == []
    end(rollout, "zulu")
    # The barrier is no wave that somebody would have to approve.
    assert step(rollout) == ["acme"]
    end(rollout, "acme")
    assert step(rollout) == []
    assert rollout.awaits_promotion


def test_waves__a_wave_that_has_become_empty_is_passed_over() -> None:
    rollout = begin(*FLEET, canary=1, waves=[1])
    step(rollout)
    rollout.runs.filter(tenant_id="globex").transition("skip", finished_at=Now())
    end(rollout, "acme")
    assert step(rollout) == ["initech", "umbrella", "wayne"]
    assert rollout.open_wave == 3


def test_waves__a_run_that_is_pending_again_keeps_the_next_one_closed() -> None:
    rollout = begin("acme", "globex", canary=1)
    step(rollout)
    claim(rollout, "acme")
    rollout.runs.filter(tenant_id="acme").transition("requeue")
    assert step(rollout) == ["acme"]
    assert rollout.open_wave == 1


def test_bake_time__is_waited_for_between_two_waves() -> None:
    rollout = begin("acme", "globex", canary=1, bake_time=600)
    assert step(rollout) == ["acme"]
    assert rollout.next_wave_at is None
    end(rollout, "acme")
    assert step(rollout) == []
    opens = rollout.next_wave_at
    assert opens is not None
    # It runs from the end of the wave, not from the last look.
    assert step(rollout) == []
    assert rollout.next_wave_at == opens
    rewind(rollout, "next_wave_at", seconds=599)
    assert step(rollout) == []
    rewind(rollout, "next_wave_at", seconds=1)
    assert step(rollout) == ["globex"]
    assert (rollout.open_wave, rollout.next_wave_at) == (2, None)


def test_bake_time__is_waited_for_anew_after_each_wave() -> None:
    rollout = begin(*FLEET, canary=1, waves=[1], bake_time=600)
    step(rollout)
    end(rollout, "acme")
    step(rollout)
    rewind(rollout, "next_wave_at")
    assert step(rollout) == ["globex"]
    end(rollout, "globex")
    assert step(rollout) == []
    assert rollout.next_wave_at is not None
    assert rollout.next_wave_at > rollout.started_at


def test_bake_time__not_after_the_last_wave() -> None:
    rollout = begin("acme", "globex", canary=1, bake_time=600)
    step(rollout)
    end(rollout, "acme")
    step(rollout)
    promote(rollout)
    assert step(rollout) == ["globex"]
    end(rollout, "globex")
    step(rollout)
    assert (rollout.state, rollout.next_wave_at) == ("succeeded", None)


def test_promotion__opens_one_wave() -> None:
    rollout = begin(*FLEET, canary=1, waves=[1], promotion="manual")
    step(rollout)
    end(rollout, "acme")
    assert [step(rollout), step(rollout)] == [[], []]
    assert (rollout.state, rollout.awaits_promotion, rollout.next_wave_at) == ("running", True, None)
    promote(rollout)
    assert step(rollout) == ["globex"]
    assert not rollout.awaits_promotion
    end(rollout, "globex")
    assert step(rollout) == []
    assert (rollout.open_wave, rollout.awaits_promotion) == (2, True)


@pytest.mark.parametrize("strategy", [{"promotion": "manual"}, {"bake_time": 600}])
def test_promotion__in_full_opens_all_that_follow(strategy: dict[str, Any]) -> None:
    rollout = begin(*FLEET, canary=1, waves=[1, 1], **strategy)
    step(rollout)
    promote(rollout, full=True)
    assert step(rollout) == ["acme"]
    for done, following in (("acme", ["globex"]), ("globex", ["initech"]), ("initech", ["umbrella", "wayne"])):
        end(rollout, done)
        assert step(rollout) == following


def test_budget__soft_ends_the_rollout_once_it_is_spent() -> None:
    rollout = begin(*FLEET, max_failures=1)
    step(rollout)
    claim(rollout, "acme", "globex", "initech")
    end(rollout, "acme", by="fail")
    assert step(rollout) == ["umbrella", "wayne"]
    end(rollout, "globex", by="leave_partial")
    assert step(rollout) == []
    # What is in flight finishes.
    assert (rollout.state, states(rollout)) == ("running", ["failed", "partial", "running", "canceled", "canceled"])
    end(rollout, "initech", by="fail")
    assert step(rollout) == []
    assert (rollout.state, rollout.stop_code) == ("failed", "max_failures")
    assert rollout.stop_reason == "3 of 5 tenants failed; 1 may."
    assert rollout.runs.get(tenant_id="wayne").message == "Not started: 2 of 5 tenants failed; 1 may."


@pytest.mark.parametrize("mode", ["soft", "strict"])
def test_budget__of_nothing_stops_after_the_first_failure(mode: str) -> None:
    rollout = begin(*FLEET, max_failures=0, failure_mode=mode)
    assert len(step(rollout)) == (1 if mode == "strict" else 5)
    end(rollout, "acme", by="fail")
    assert step(rollout) == []
    assert (rollout.state, states(rollout)) == ("failed", ["failed"] + ["canceled"] * 4)


def test_budget__strict_starts_no_more_than_may_fail() -> None:
    rollout = begin(*FLEET, max_failures="20%", failure_mode="strict")
    assert step(rollout) == ["acme", "globex"]
    assert step(rollout, held=["acme", "globex"]) == []
    claim(rollout, "acme", "globex")
    assert step(rollout) == []
    end(rollout, "acme")
    assert step(rollout) == ["initech"]
    end(rollout, "globex", by="fail")
    assert step(rollout) == ["initech"]
    claim(rollout, "initech")
    assert step(rollout) == []


@pytest.mark.parametrize("strategy", [{}, {"on_error": "continue"}, {"on_error": "continue", "max_failures": "100%"}])
def test_budget__without_one_every_tenant_is_tried(strategy: dict[str, Any]) -> None:
    rollout = begin(*FLEET, **strategy)
    step(rollout)
    end(rollout, *FLEET[:4], by="fail")
    assert step(rollout) == ["wayne"]


def test_budget__of_a_rollout_that_continues_ends_it() -> None:
    rollout = begin(*FLEET, on_error="continue", max_failures=1)
    step(rollout)
    end(rollout, *FLEET[:2], by="fail")
    assert step(rollout) == []
    assert rollout.state == "failed"


def test_budget__what_is_no_failure_does_not_count() -> None:
    rollout = begin(*FLEET, max_failures=0)
    step(rollout)
    end(rollout, "acme", by="cancel")
    end(rollout, "globex", by="skip")
    assert step(rollout) == ["initech", "umbrella", "wayne"]


def test_budget__tenants_that_were_left_out_are_part_of_its_percentage() -> None:
    add("suspended-a", "suspended-b", suspended=True)
    rollout = begin(*FLEET[:4], max_failures="17%")
    step(rollout)
    assert rollout.total == 6
    end(rollout, "acme", by="fail")
    assert step(rollout) == ["globex", "initech", "umbrella"]


def test_budget__pause_keeps_what_is_not_started() -> None:
    rollout = begin(*FLEET, on_error="pause")
    step(rollout)
    claim(rollout, "acme", "globex")
    end(rollout, "acme", by="fail")
    assert step(rollout) == []
    assert (rollout.state, rollout.stop_code) == ("pausing", "max_failures")
    end(rollout, "globex")
    assert step(rollout) == []
    assert (rollout.state, rollout.lease_expires_at) == ("paused", None)
    assert states(rollout) == ["failed", "succeeded", "pending", "pending", "pending"]
    assert step(rollout) == []


def test_budget__what_was_seen_when_it_is_resumed_no_longer_counts() -> None:
    rollout = begin(*FLEET, on_error="pause", max_failures=1)
    step(rollout)
    end(rollout, "acme", "globex", by="fail")
    step(rollout)
    assert rollout.state == "paused"
    resume(rollout)
    assert step(rollout) == ["initech", "umbrella", "wayne"]
    assert (rollout.pardoned, rollout.stop_code, rollout.stop_reason) == (2, "", "")
    end(rollout, "initech", by="fail")
    assert step(rollout) == ["umbrella", "wayne"]
    end(rollout, "umbrella", by="fail")
    assert step(rollout) == []
    assert (rollout.state, rollout.stop_code) == ("paused", "max_failures")


def test_budget__a_pause_for_another_reason_pardons_nothing() -> None:
    rollout = begin(*FLEET, on_error="pause", max_failures=1)
    step(rollout)
    end(rollout, "acme", by="fail")
    pause(rollout, reason="lunch")
    resume(rollout)
    step(rollout)
    assert rollout.pardoned == 0
    end(rollout, "globex", by="fail")
    assert step(rollout) == []
    assert rollout.stop_code == "max_failures"


def test_budget__spent_with_the_last_tenant_ends_the_rollout_instead_of_pausing_it() -> None:
    rollout = begin("acme", on_error="pause")
    step(rollout)
    end(rollout, "acme", by="fail")
    step(rollout)
    assert (rollout.state, rollout.stop_code) == ("failed", "max_failures")


def fail_beside(rollout: Rollout, tenant_id: str) -> None:
    """From another session, at once."""
    catalog.query(
        catalog.dsn(connection.settings_dict),
        "UPDATE migrations_api_migrationrun SET state = 'failed' WHERE rollout_id = %s AND tenant_id = %s",
        [rollout.pk, tenant_id],
    )


@pytest.mark.django_db(transaction=True)
def test_budget__strict_counts_a_tenant_that_fails_in_the_middle_of_the_look() -> None:
    rollout = begin(*FLEET, max_failures=0, failure_mode="strict")
    step(rollout)
    claim(rollout, "acme")
    for moment in range(queries(rollout)):
        Rollout.objects.filter(pk=rollout.pk).update(state="running")
        rollout.runs.update(state="pending")
        rollout.runs.filter(tenant_id="acme").update(state="running")
        asked: list[str] = []

        def run(execute: Callable[..., Any], *query: Any, moment: int = moment, asked: list[str] = asked) -> Any:
            found = execute(*query)
            asked.append(query[0])
            if len(asked) == moment + 1:
                fail_beside(rollout, "acme")
            return found

        with connection.execute_wrapper(run):
            assert advance(rollout, limit=9, lease=30) == [], asked[moment]


@pytest.mark.django_db
@pytest.mark.parametrize("on_error", ["continue", "pause"])
@pytest.mark.parametrize("by", ["fail", "leave_partial"])
def test_canary__that_fails_is_looked_at_whatever_may_fail(on_error: str, by: str) -> None:
    rollout = begin(*FLEET, canary=2, max_failures=4, on_error=on_error)
    end(rollout, *step(rollout)[:1], by=by)
    end(rollout, *step(rollout))
    assert (step(rollout), rollout.state, rollout.stop_code) == ([], "paused", "wave_failed")
    assert rollout.stop_reason == "A tenant of the canary failed."
    resume(rollout)
    assert step(rollout) == ["initech", "umbrella", "wayne"]


@pytest.mark.django_db
def test_canary__that_fails_ends_a_rollout_that_is_to_fail() -> None:
    rollout = begin(*FLEET, canary=1, max_failures=4, on_error="fail")
    end(rollout, *step(rollout), by="fail")
    assert (step(rollout), rollout.state, rollout.stop_code) == ([], "failed", "wave_failed")
    assert states(rollout)[1:] == ["canceled"] * 4


@pytest.mark.django_db
def test_canary__of_nobody_has_shown_nothing() -> None:
    rollout = begin(*FLEET, canary=1)
    end(rollout, *step(rollout), by="skip")
    assert (step(rollout), rollout.state, rollout.stop_reason) == ([], "paused", "No tenant of wave 1 was migrated.")
    resume(rollout)
    assert step(rollout) == list(FLEET[1:])


@pytest.mark.django_db
@pytest.mark.parametrize(("on_error", "following"), [("continue", ["acme"]), ("pause", []), ("fail", [])])
def test_shared__failure_stops_what_an_error_stops(on_error: str, following: list[str]) -> None:
    add("zulu", isolation=Isolation.SHARED)
    rollout = begin("acme", max_failures=1, on_error=on_error)
    end(rollout, *step(rollout), by="fail")
    assert step(rollout) == following


@pytest.mark.django_db
def test_wave__of_which_only_some_fail_is_followed_by_the_next() -> None:
    rollout = begin(*FLEET, waves=[2], max_failures=4, on_error="pause")
    first, second = step(rollout)
    end(rollout, first, by="fail")
    end(rollout, second)
    assert step(rollout) == ["initech", "umbrella", "wayne"]


def test_deadline__pauses_a_rollout_in_which_no_tenant_ends() -> None:
    rollout = begin(*FLEET, progress_deadline=60)
    step(rollout)
    claim(rollout, "acme")
    rewind(rollout, "progress_at", seconds=59)
    assert len(step(rollout)) == 4
    rewind(rollout, "progress_at", seconds=2)
    assert step(rollout) == []
    assert (rollout.state, rollout.stop_code) == ("pausing", "progress_deadline")
    assert rollout.stop_reason == "No tenant has ended for 60 seconds."
    assert set(states(rollout)) == {"running", "pending"}
    resume(rollout)
    assert len(step(rollout)) == 4
    assert rollout.state == "running"


def test_deadline__ends_the_rollout_where_an_error_does() -> None:
    rollout = begin(*FLEET, progress_deadline=60, on_error="fail")
    step(rollout)
    claim(rollout, "acme")
    rewind(rollout, "progress_at")
    assert step(rollout) == []
    assert (rollout.state, states(rollout)) == ("running", ["running"] + ["canceled"] * 4)
    end(rollout, "acme")
    step(rollout)
    assert (rollout.state, rollout.stop_code) == ("failed", "progress_deadline")


@pytest.mark.parametrize("by", ["succeed", "fail", "skip"])
def test_deadline__a_tenant_that_ends_is_progress(by: str) -> None:
    rollout = begin(*FLEET, progress_deadline=60)
    step(rollout)
    rewind(rollout, "progress_at")
    end(rollout, "acme", by=by)
    assert len(step(rollout)) == 4
    # It counts from the tenant's end, not from the look.
    rollout.runs.filter(tenant_id="acme").update(finished_at=Now() - timedelta(seconds=61))
    rewind(rollout, "progress_at", seconds=61)
    assert step(rollout) == []
    assert rollout.stop_code == "progress_deadline"


@pytest.mark.parametrize("strategy", [{"promotion": "manual"}, {"bake_time": 86_400}])
def test_deadline__does_not_count_at_a_gate(strategy: dict[str, Any]) -> None:
    rollout = begin(*FLEET, canary=1, progress_deadline=60, **strategy)
    step(rollout)
    end(rollout, "acme")
    step(rollout)
    rewind(rollout, "progress_at")
    rollout.runs.filter(tenant_id="acme").update(finished_at=Now() - timedelta(hours=1))
    assert step(rollout) == []
    assert (rollout.state, rollout.stop_code) == ("running", "")
    promote(rollout)
    assert len(step(rollout)) == 4
    assert rollout.state == "running"


def test_deadline__does_not_count_while_it_is_paused() -> None:
    rollout = begin(*FLEET, progress_deadline=60)
    step(rollout)
    pause(rollout, reason="lunch")
    rewind(rollout, "progress_at")
    step(rollout)
    assert (rollout.state, rollout.stop_code) == ("paused", "paused")
    resume(rollout)
    assert len(step(rollout)) == 5


def test_deadline__runs_from_the_start_and_not_from_the_request() -> None:
    rollout = begin(*FLEET, progress_deadline=60)
    rewind(rollout, "created_at")
    rollout.runs.update(created_at=Now() - timedelta(hours=1))
    assert len(step(rollout)) == 5


@pytest.mark.parametrize(("cap", "chosen"), [(1, 1), (2, 2), ("40%", 2), ("59%", 2), ("1%", 1), (99, 5), ("100%", 5)])
def test_max_concurrency__as_a_number_and_as_a_percentage(cap: int | str, chosen: int) -> None:
    rollout = begin(*FLEET, max_concurrency=cap)
    assert step(rollout) == list(FLEET[:chosen])
    assert step(rollout, limit=1) == ["acme"]
    assert step(rollout, limit=0) == []


def test_max_concurrency__what_is_held_counts_before_it_has_begun() -> None:
    rollout = begin(*FLEET, max_concurrency=2)
    assert step(rollout, held=["acme"]) == ["globex"]
    assert step(rollout, held=["acme", "globex"]) == []
    claim(rollout, "globex")
    assert step(rollout, held=["acme", "globex"]) == []
    # One that has ended is no longer in flight, even if its worker has not come back yet.
    end(rollout, "globex")
    assert step(rollout, held=["acme", "globex"]) == ["initech"]


def test_max_concurrency__waiting_for_another_attempt_is_in_flight() -> None:
    rollout = begin(*FLEET, max_concurrency=1)
    step(rollout)
    claim(rollout, "acme")
    rollout.runs.filter(tenant_id="acme").transition("wait")
    assert step(rollout) == []


def two_servers() -> None:
    add("a1", "a2", "a3", database="alpha")
    add("b1", "b2", "b3", database="beta")


def test_max_per_database__limits_each_server() -> None:
    two_servers()
    rollout = begin(max_per_database=2)
    assert step(rollout) == ["a1", "a2", "b1", "b2"]
    claim(rollout, "a1", "b1", "b2")
    assert step(rollout) == ["a2"]
    end(rollout, "b1")
    assert step(rollout) == ["a2", "b3"]
    assert step(rollout, held=["a2", "b3"]) == []


def test_max_per_database__does_not_use_up_other_slots() -> None:
    two_servers()
    rollout = begin(max_per_database=1, max_concurrency=2)
    assert step(rollout) == ["a1", "b1"]
    claim(rollout, "a1")
    assert step(rollout) == ["b1"]
    claim(rollout, "b1")
    assert step(rollout) == []
    end(rollout, "a1")
    assert step(rollout) == ["a2"]
    assert step(rollout, held=["a2"]) == []


def test_max_per_database__keeps_to_the_limit_of_the_call() -> None:
    two_servers()
    rollout = begin(max_per_database=3)
    assert step(rollout, limit=4) == ["a1", "a2", "a3", "b1"]
    assert step(rollout, limit=4, held=["a1", "a2", "a3", "b1"]) == ["b2", "b3"]


def test_cancel__what_became_pending_meanwhile_is_canceled_too() -> None:
    rollout = begin(*FLEET)
    step(rollout)
    claim(rollout, "acme", "globex")
    cancel_rollout(rollout)
    rollout.runs.filter(tenant_id="acme").transition("requeue")
    assert step(rollout) == []
    assert (rollout.state, states(rollout)) == ("canceling", ["canceled", "running"] + ["canceled"] * 3)
    end(rollout, "globex")
    assert step(rollout) == []
    assert (rollout.state, rollout.lease_expires_at) == ("canceled", None)


def at_start() -> Rollout:
    return begin(*FLEET, max_concurrency=2)


def at_gate() -> Rollout:
    rollout = begin(*FLEET, canary=1, promotion="manual")
    step(rollout)
    end(rollout, "acme")
    return rollout


def baking() -> Rollout:
    rollout = begin(*FLEET, canary=1, bake_time=600)
    step(rollout)
    end(rollout, "acme")
    return rollout


def between_waves() -> Rollout:
    rollout = begin(*FLEET, canary=1)
    step(rollout)
    end(rollout, "acme")
    return rollout


def over_budget() -> Rollout:
    rollout = begin(*FLEET, max_failures=0)
    step(rollout)
    claim(rollout, "globex")
    end(rollout, "acme", by="fail")
    return rollout


def over_budget_to_pause() -> Rollout:
    rollout = begin(*FLEET, on_error="pause")
    step(rollout)
    end(rollout, "acme", by="fail")
    return rollout


def overdue() -> Rollout:
    rollout = begin(*FLEET, progress_deadline=60)
    step(rollout)
    rewind(rollout, "progress_at")
    return rollout


def drained() -> Rollout:
    rollout = begin(*FLEET)
    step(rollout)
    claim(rollout, "acme")
    pause(rollout, reason="lunch")
    end(rollout, "acme")
    return rollout


def canceling() -> Rollout:
    rollout = begin(*FLEET)
    step(rollout)
    claim(rollout, "acme")
    cancel_rollout(rollout)
    return rollout


def done() -> Rollout:
    rollout = begin(*FLEET)
    step(rollout)
    end(rollout, *FLEET)
    return rollout


@pytest.mark.parametrize(
    "make",
    [
        at_start,
        at_gate,
        baking,
        between_waves,
        over_budget,
        over_budget_to_pause,
        overdue,
        drained,
        canceling,
        done,
    ],
)
def test_advance__a_second_time_changes_nothing_more(make: Callable[[], Rollout]) -> None:
    rollout = make()
    first = step(rollout)
    before = written(rollout)
    assert [step(rollout), step(rollout)] == [first, first]
    assert written(rollout) == before


@pytest.mark.parametrize("make", [at_start, at_gate, over_budget, canceling])
def test_advance__asks_no_more_of_a_larger_fleet(make: Callable[[], Rollout]) -> None:
    few = queries(make())
    MigrationRun.objects.filter(state__in=ACTIVE_RUN_STATES).update(state="canceled")
    MigrationRun.objects.update(rollout=None)
    add(*[f"t{index:03}" for index in range(30)])
    Tenant.objects.filter(pk__in=FLEET).delete()
    assert queries(make()) == few


@pytest.mark.parametrize(
    ("strategy", "counts"),
    [
        ({}, False),
        ({"max_concurrency": 3}, False),
        ({"canary": 3}, True),
        ({"max_failures": 2}, True),
        ({"on_error": "fail"}, True),
        ({"max_per_database": 2}, True),
        ({"progress_deadline": 60.0}, True),
    ],
    ids=str,
)
def test_advance__counts_what_has_ended_only_where_something_depends_on_it(
    strategy: dict[str, Any], counts: bool
) -> None:
    add("alpha", "beta")
    rollout = begin(**strategy)
    with CaptureQueriesContext(connection) as captured:
        assert len(advance(rollout, limit=10, lease=30, queues=True)) > 0
    assert any("COUNT(" in query["sql"] for query in captured) is counts


def queries(rollout: Rollout) -> int:
    with CaptureQueriesContext(connection) as captured:
        advance(rollout, limit=10, lease=30)
    return len(captured)


def drive(rollout: Rollout, seed: int, *, failing: bool) -> None:
    """Advance the rollout to its end, with runs that end by lot."""
    lot = random.Random(seed)  # noqa: S311 - which run is first
    mine: list[int] = []
    while goes_on(rollout):
        chosen = advance(rollout, limit=4, lease=30, held=frozenset(mine))
        lot.shuffle(chosen)
        mine += [run_id for run_id in chosen if records.claim(run_id, lease=30)]
        if mine and lot.random() < 0.7:
            run = MigrationRun.objects.filter(pk=mine.pop())
            run.transition("fail" if failing and lot.random() < 0.3 else "succeed", finished_at=Now())


def goes_on(rollout: Rollout) -> bool:
    return Rollout.objects.filter(pk=rollout.pk, state__in=["pending", "running"]).exists()


def watch(rollout: Rollout, strategy: dict[str, Any]) -> None:
    while goes_on(rollout):
        rows = list(rollout.runs.in_flight().values_list("tenant__database", "wave"))
        servers = Counter(server for server, _ in rows)
        assert len(rows) <= strategy.get("max_concurrency", 99)
        assert max(servers.values(), default=0) <= strategy.get("max_per_database", 99)
        assert len({wave for _, wave in rows}) <= 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "strategy",
    [
        {"max_concurrency": 3},
        {"max_per_database": 2},
        {"max_concurrency": 3, "max_per_database": 2, "canary": 3},
        {"max_failures": 2, "failure_mode": "strict"},
    ],
    ids=str,
)
def test_advance__two_callers_at_once_keep_to_the_caps(strategy: dict[str, Any]) -> None:
    add(*[f"a{index:02}" for index in range(8)], database="alpha")
    add(*[f"b{index:02}" for index in range(8)], database="beta")
    rollout = begin(**strategy)
    failing = "max_failures" in strategy
    together(
        *[partial(drive, rollout, seed, failing=failing) for seed in (1, 2)],
        partial(watch, rollout, strategy),
    )
    rollout.refresh_from_db()
    assert not rollout.runs.active().exists()
    if failing:
        assert rollout.runs.filter(state="failed").count() <= 3
    else:
        assert rollout.state == "succeeded"
