"""The verbs of rollouts, runs and tenants over HTTP, and what a rollout shows meanwhile."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from migrations_api.models import AuditEntry, MigrationRun, Rollout
from migrations_api.orchestrator.advance import advance
from migrations_api.orchestrator.holds import hold
from migrations_api.rest.events import RolloutWatcher
from migrations_api.states import ROLLOUT_TRANSITIONS, RolloutState, RunState
from tenants.models import Tenant
from tests.http_api import refused, registered

ClientOf = Callable[[str | None], APIClient]
ENDED = [RolloutState.SUCCEEDED, RolloutState.FAILED, RolloutState.CANCELED]
VERBS = ("pause", "resume", "promote", "cancel")
FOUR = ("a1", "a2", "a3", "a4")


def asked(client: APIClient, *tenant_ids: str, **body: Any) -> Rollout:
    """A rollout over those tenants, which are rows and nothing else."""
    registered(*tenant_ids)
    response = client.post("/tenants/migrate-all", body)
    assert response.status_code == 202, response.content
    return Rollout.objects.get(pk=response.json()["id"])


def begun(client: APIClient, *tenant_ids: str, **strategy: Any) -> Rollout:
    """One that is running, with nothing in flight yet."""
    rollout = asked(client, *tenant_ids, strategy=strategy)
    advance(rollout, limit=0, lease=30)
    return rollout


def end(rollout: Rollout, *tenant_ids: str, state: str = RunState.SUCCEEDED) -> None:
    now = timezone.now()
    rollout.runs.filter(tenant__in=tenant_ids).update(state=state, started_at=now, finished_at=now)
    advance(rollout, limit=0, lease=30)


def do(client: APIClient, rollout: Rollout, verb: str, body: Any = None, **headers: str) -> Any:
    return client.post(f"/rollouts/{rollout.pk}/{verb}", body, headers=headers)


def done(client: APIClient, rollout: Rollout, verb: str, body: Any = None) -> dict[str, Any]:
    response = do(client, rollout, verb, body)
    assert response.status_code == 202, response.content
    assert response["Location"] == f"http://testserver/rollouts/{response.json()['id']}"
    return dict(response.json())


def states(rollout: Rollout) -> dict[str, str]:
    return dict(rollout.runs.order_by("tenant_id").values_list("tenant_id", "state"))


def detail(client: APIClient, rollout: Rollout) -> dict[str, Any]:
    response = client.get(f"/rollouts/{rollout.pk}")
    assert response.status_code == 200, response.content
    return dict(response.json())


# Pause and resume


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, "Paused by operator."),
        ({}, "Paused by operator."),
        ({"reason": "Fehler: größer als 5 %."}, "Paused by operator: Fehler: größer als 5 %."),
    ],
)
def test_pause__says_who_and_why(operator: APIClient, db: None, body: Any, reason: str) -> None:
    rollout = begun(operator, *FOUR)
    found = done(operator, rollout, "pause", body)
    assert (found["state"], found["stop_code"], found["stop_reason"]) == ("paused", "paused", reason)
    assert set(states(rollout).values()) == {"pending"}


def test_pause__what_is_in_flight_goes_on(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR)
    rollout.runs.filter(tenant="a1").update(state=RunState.RUNNING)
    assert done(operator, rollout, "pause")["state"] == "pausing"
    assert not rollout.runs.filter(cancel_requested=True).exists()
    end(rollout, "a1")
    assert detail(operator, rollout)["state"] == "paused"


def test_resume__goes_on(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR)
    done(operator, rollout, "pause", {"reason": "Lunch."})
    found = done(operator, rollout, "resume")
    assert (found["state"], found["stop_code"], found["stop_reason"]) == ("running", "", "")
    assert len(advance(rollout, limit=9, lease=30)) == 4


def test_resume__pardons_the_failures_that_it_was_paused_for(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR, max_failures=1, on_error="pause")
    end(rollout, "a1", "a2", state=RunState.FAILED)
    found = detail(operator, rollout)
    assert (found["state"], found["stop_code"]) == ("paused", "max_failures")
    assert found["stop_reason"] == "2 of 4 tenants failed; 1 may."

    done(operator, rollout, "resume")
    assert len(advance(rollout, limit=9, lease=30)) == 2


# Promote


def test_promote__opens_the_next_wave(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR, canary=1, waves=[1], promotion="manual")
    end(rollout, "a1")
    assert detail(operator, rollout)["waiting_for"] == "promotion"

    found = done(operator, rollout, "promote")
    assert (found["state"], found["open_wave"], found["waiting_for"]) == ("running", 2, None)
    assert advance(rollout, limit=9, lease=30) == [rollout.runs.get(tenant="a2").pk]


def test_promote__cuts_the_bake_time_short(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR, canary=1, bake_time=3600)
    end(rollout, "a1")
    waiting = detail(operator, rollout)
    assert waiting["waiting_for"] == "bake_time"
    assert waiting["next_wave_at"] is not None

    found = done(operator, rollout, "promote", {"full": False})
    assert (found["open_wave"], found["waiting_for"], found["next_wave_at"]) == (2, None, None)


def test_promote__full_opens_all_that_follow(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR, canary=1, waves=[1, 1], promotion="manual")
    found = done(operator, rollout, "promote", {"full": True})
    assert (found["open_wave"], found["state"]) == (1, "running")
    for wave, tenant_id in enumerate(FOUR, 1):
        assert Rollout.objects.get().open_wave == wave
        end(rollout, tenant_id)
    assert detail(operator, rollout)["state"] == "succeeded"


def test_promote__while_the_wave_goes_on_is_refused(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR, canary=1, promotion="manual")
    found = refused(do(operator, rollout, "promote"), 409, "invalid_transition")
    assert found["detail"] == f"Wave 1 of rollout {rollout.pk} has not ended; nothing to promote."
    assert not Rollout.objects.get().promoted_fully


# Cancel


def test_cancel__asks_what_runs_to_stop(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR)
    rollout.runs.filter(tenant="a1").update(state=RunState.RUNNING)
    assert done(operator, rollout, "cancel")["state"] == "canceling"
    running = rollout.runs.get(tenant="a1")
    assert (running.cancel_requested, running.interrupt_requested) == (True, False)
    assert states(rollout) == {"a1": "running", "a2": "canceled", "a3": "canceled", "a4": "canceled"}

    done(operator, rollout, "cancel", {"interrupt": True})
    running.refresh_from_db()
    assert running.interrupt_requested
    assert operator.get(f"/runs/{running.pk}").json()["interrupt_requested"] is True


def test_cancel__with_nothing_in_flight_has_ended(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR, canary=1, promotion="manual")
    found = done(operator, rollout, "cancel", {"interrupt": True})
    assert (found["state"], found["runs"]["canceled"]) == ("canceled", 4)
    assert found["finished_at"] is not None
    assert found["waiting_for"] is None


# What the state does not allow


def brought_to(rollout: Rollout, state: str) -> None:
    Rollout.objects.filter(pk=rollout.pk).update(state=state)
    if state in ENDED:
        rollout.runs.update(state=RunState.CANCELED)


@pytest.mark.parametrize("verb", VERBS)
def test_verb__refused_says_what_state_it_takes(operator: APIClient, db: None, verb: str) -> None:
    rollout = asked(operator, "a1")
    fitting = ROLLOUT_TRANSITIONS[verb].sources
    for state in sorted(set(RolloutState.values) - fitting):
        brought_to(rollout, state)
        found = refused(do(operator, rollout, verb), 409, "invalid_transition")
        expected = f"Rollout {rollout.pk} is {state}; to {verb} it, it has to be {' or '.join(sorted(fitting))}."
        assert found["detail"] == expected
        assert Rollout.objects.get().state == state


@pytest.mark.parametrize("verb", VERBS)
def test_verb__refused_leaves_the_runs_alone(operator: APIClient, db: None, verb: str) -> None:
    rollout = asked(operator, "a1")
    Rollout.objects.update(state=RolloutState.SUCCEEDED)
    before = list(MigrationRun.objects.values())
    refused(do(operator, rollout, verb), 409, "invalid_transition")
    assert list(MigrationRun.objects.values()) == before


@pytest.mark.parametrize("state", sorted(set(RolloutState.values) - set(ENDED)))
def test_retry__of_one_that_goes_on_is_refused(operator: APIClient, db: None, state: str) -> None:
    rollout = asked(operator, "a1")
    Rollout.objects.update(state=state)
    found = refused(do(operator, rollout, "retry"), 409, "invalid_transition")
    assert found["detail"] == f"Rollout {rollout.pk} is {state}; one that goes on cannot be retried."


# Retry


def failed(client: APIClient, **body: Any) -> Rollout:
    """a1 succeeded, a2 failed, a3 was canceled, a4 skipped on purpose."""
    rollout = asked(client, *FOUR, **body)
    for tenant_id, state in zip(FOUR, ["succeeded", "failed", "canceled", "skipped"], strict=True):
        rollout.runs.filter(tenant=tenant_id).update(state=state, finished_at=timezone.now())
    Rollout.objects.update(state=RolloutState.FAILED, finished_at=timezone.now())
    return rollout


def test_retry__is_the_same_again_for_those_left_behind(operator: APIClient, db: None) -> None:
    rollout = failed(operator, app_label="orders", migration_name="0002", strategy={"canary": 1, "max_failures": "5%"})
    again = done(operator, rollout, "retry")
    assert again["id"] != rollout.pk
    assert (again["retry_of"], Rollout.objects.get(pk=again["id"]).selector) == (
        rollout.pk,
        {"unfinished_in": rollout.pk},
    )
    assert (again["app_label"], again["migration_name"]) == ("orders", "0002")
    assert again["strategy"] == {"canary": 1, "max_failures": "5%"}
    assert states(Rollout.objects.get(pk=again["id"])) == {"a2": "pending", "a3": "pending"}
    assert AuditEntry.objects.first().object_id == str(again["id"])  # type: ignore[union-attr]


def test_retry__of_one_that_left_nobody_behind(operator: APIClient, db: None) -> None:
    rollout = asked(operator, "a1")
    rollout.runs.update(state=RunState.SUCCEEDED)
    Rollout.objects.update(state=RolloutState.SUCCEEDED)
    found = refused(do(operator, rollout, "retry"), 409, "invalid_transition")
    assert found["detail"] == f"Rollout {rollout.pk} has left no tenant behind; there is nothing to retry."


@pytest.mark.parametrize(
    "options", [{"fake": True}, {"fake_initial": True}, {"app_label": "orders", "migration_name": "zero"}]
)
def test_retry__of_what_only_an_admin_may_ask_for(client_of: ClientOf, db: None, options: dict[str, Any]) -> None:
    rollout = failed(client_of("admin"), **options, confirm="all")
    refused(do(client_of("operator"), rollout, "retry"), 403, "permission_denied")
    assert Rollout.objects.count() == 1
    again = done(client_of("admin"), rollout, "retry")
    assert again["options"] == {name: value for name, value in options.items() if name.startswith("fake")}


def test_retry__by_an_operator_may_undo_nothing(client_of: ClientOf, db: None) -> None:
    rollout = failed(client_of("admin"), app_label="orders", migration_name="0002", confirm="all")
    assert Rollout.objects.get(pk=rollout.pk).options == {}
    assert done(client_of("operator"), rollout, "retry")["options"] == {"allow_backwards": False}


# Skip


def test_skip__leaves_a_tenant_out_of_this_rollout(operator: APIClient, db: None) -> None:
    rollout = asked(operator, "a1", "a2")
    run = rollout.runs.get(tenant="a1")
    response = operator.post(f"/runs/{run.pk}/skip", {"reason": "Asked for another day."})
    assert response.status_code == 202
    assert response["Location"] == f"http://testserver/runs/{run.pk}"
    found = response.json()
    assert (found["state"], found["error_code"]) == ("skipped", "skipped")
    assert found["message"] == "Skipped by operator: Asked for another day."
    assert found["finished_at"] is not None
    entry = AuditEntry.objects.first()
    assert entry is not None
    assert (entry.action, entry.tenant_ids, entry.object_id) == ("skip_run", ["a1"], str(run.pk))

    assert operator.post("/tenants/a1/migrate").status_code == 202


def test_skip__of_the_last_one_ends_the_rollout(operator: APIClient, db: None) -> None:
    rollout = begun(operator, "a1")
    operator.post(f"/runs/{rollout.runs.get().pk}/skip", {"reason": "No."})
    assert detail(operator, rollout)["state"] == "succeeded"


@pytest.mark.parametrize("state", sorted(set(RunState.values) - {RunState.PENDING}))
def test_skip__of_what_was_started_is_refused(operator: APIClient, db: None, state: str) -> None:
    registered("a1")
    run = MigrationRun.objects.create(tenant_id="a1", state=state, requested_via="api")
    found = refused(operator.post(f"/runs/{run.pk}/skip", {"reason": "No."}), 409, "invalid_transition")
    assert found["detail"] == f"Run {run.pk} is {state}; only a pending one can be skipped."


# Hold and release


def test_hold__leaves_a_tenant_out_until_it_is_released(operator: APIClient, db: None) -> None:
    registered("a1")
    held = operator.post("/tenants/a1/hold", {"reason": "Its data is being cleaned."})
    assert held.status_code == 200
    found = held.json()
    assert (found["status"], found["held_by"], found["hold_reason"]) == (
        "held",
        "operator",
        "Its data is being cleaned.",
    )
    assert found["held_at"] is not None

    body = refused(operator.post("/tenants/a1/migrate"), 409, "held")
    assert body["detail"] == "Tenant 'a1' is held by operator (Its data is being cleaned.). Release it first."
    assert not MigrationRun.objects.exists()

    released = operator.post("/tenants/a1/release").json()
    assert (released["status"], released["held_at"], released["hold_reason"]) == ("unprovisioned", None, "")
    assert operator.post("/tenants/a1/migrate").status_code == 202
    assert [(entry.action, entry.tenant_ids) for entry in AuditEntry.objects.order_by("pk")] == [
        ("hold_tenant", ["a1"]),
        ("migrate_tenant", ["a1"]),
        ("release_tenant", ["a1"]),
        ("migrate_tenant", ["a1"]),
    ]


def test_hold__skips_what_is_pending_and_lets_go_on_what_runs(operator: APIClient, db: None) -> None:
    rollout = begun(operator, "a1", "a2")
    rollout.runs.filter(tenant="a1").update(state=RunState.RUNNING)
    for tenant_id in ("a1", "a2"):
        assert operator.post(f"/tenants/{tenant_id}/hold", {"reason": "Stop."}).status_code == 200
    runs = {run.tenant_id: (run.state, run.error_code, run.cancel_requested) for run in rollout.runs.all()}
    assert runs == {"a1": ("running", "", False), "a2": ("skipped", "held", False)}


def test_hold__once_more_has_the_new_reason(operator: APIClient, db: None) -> None:
    registered("a1")
    for reason in ("One.", "Two."):
        found = operator.post("/tenants/a1/hold", {"reason": reason}).json()
    assert (found["hold_reason"], found["status_detail"]) == ("Two.", "Two.")


def test_release__of_one_that_is_not_held(operator: APIClient, db: None) -> None:
    registered("a1")
    found = refused(operator.post("/tenants/a1/release"), 409, "invalid_transition")
    assert found["detail"] == "Tenant 'a1' is not held."


@pytest.mark.parametrize("verb", ["hold", "release"])
def test_hold_and_release__of_nobody(operator: APIClient, db: None, verb: str) -> None:
    refused(
        operator.post(f"/tenants/nobody/{verb}", {"reason": "No."} if verb == "hold" else {}), 404, "tenant_not_found"
    )


def test_retry__of_a_run_whose_tenant_is_held(operator: APIClient, db: None) -> None:
    [tenant] = registered("a1")
    run = MigrationRun.objects.create(tenant=tenant, state="failed", requested_via="api")
    hold(tenant, by="ops", reason="Frozen.")
    found = refused(operator.post(f"/runs/{run.pk}/retry"), 409, "held")
    assert found["detail"].endswith("Release it first.")


@pytest.mark.parametrize("suspended", [True, False])
def test_suspend__is_a_field_of_the_tenant(operator: APIClient, db: None, suspended: bool) -> None:
    registered("a1", suspended=not suspended)
    assert operator.patch("/tenants/a1", {"suspended": suspended}).json()["suspended"] is suspended
    refused(operator.patch("/tenants/a1", {"suspended": "no"}), 400, "invalid", "errors")
    # Asked for by itself, it is migrated all the same.
    assert operator.post("/tenants/a1/migrate").status_code == 202


# Bodies, rights, idempotency

REASON = {"reason": "x"}
TOO_LONG = {"reason": "x" * 301}


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/rollouts/{rollout}/pause", {"why": "x"}, "/why"),
        ("/rollouts/{rollout}/pause", {"reason": None}, "/reason"),
        ("/rollouts/{rollout}/pause", {"reason": ""}, "/reason"),
        ("/rollouts/{rollout}/pause", TOO_LONG, "/reason"),
        ("/rollouts/{rollout}/resume", REASON, "/reason"),
        ("/rollouts/{rollout}/promote", {"full": "true"}, "/full"),
        ("/rollouts/{rollout}/promote", {"wave": 2}, "/wave"),
        ("/rollouts/{rollout}/cancel", {"interrupt": 1}, "/interrupt"),
        ("/rollouts/{rollout}/cancel", {"force": True}, "/force"),
        ("/rollouts/{rollout}/retry", {"strategy": {}}, "/strategy"),
        ("/runs/{run}/cancel", {"interrupt": "yes"}, "/interrupt"),
        ("/runs/{run}/skip", {}, "/reason"),
        ("/runs/{run}/skip", {"reason": ""}, "/reason"),
        ("/runs/{run}/skip", {"reason": 5}, "/reason"),
        ("/runs/{run}/skip", TOO_LONG, "/reason"),
        ("/tenants/a1/hold", {}, "/reason"),
        ("/tenants/a1/hold", {"reason": ""}, "/reason"),
        ("/tenants/a1/hold", {"reason": " "}, "/reason"),
        ("/tenants/a1/hold", {"reason": "Two\nlines."}, "/reason"),
        ("/tenants/a1/hold", {"reason": "One.\n"}, "/reason"),
        ("/tenants/a1/hold", {"reason": "\x1b[2J"}, "/reason"),
        ("/tenants/a1/hold", {**REASON, "until": "monday"}, "/until"),
        ("/tenants/a1/release", REASON, "/reason"),
    ],
)
def test_body__that_is_wrong_names_the_place_and_changes_nothing(
    operator: APIClient, db: None, path: str, body: dict[str, Any], pointer: str
) -> None:
    rollout = asked(operator, "a1")
    before = (list(Rollout.objects.values()), list(MigrationRun.objects.values()), list(Tenant.objects.values()))
    url = path.format(rollout=rollout.pk, run=rollout.runs.get().pk)
    found = refused(operator.post(url, body), 400, "invalid", "errors")
    assert [error["pointer"] for error in found["errors"]] == [pointer]
    after = (list(Rollout.objects.values()), list(MigrationRun.objects.values()), list(Tenant.objects.values()))
    assert after == before


@pytest.mark.parametrize("verb", [*VERBS, "retry"])
def test_verb__leaves_an_audit_entry(operator: APIClient, db: None, verb: str) -> None:
    rollout = failed(operator) if verb == "retry" else begun(operator, "a1", "a2", canary=1, promotion="manual")
    if verb == "resume":
        done(operator, rollout, "pause")
    if verb == "promote":
        end(rollout, "a1")
    found = done(operator, rollout, verb)
    entry = AuditEntry.objects.first()
    assert entry is not None
    assert (entry.action, entry.object_id, entry.status, entry.actor) == (
        f"{verb}_rollout",
        str(found["id"]),
        202,
        "operator",
    )


def test_verb__refused_leaves_an_audit_entry(operator: APIClient, db: None) -> None:
    rollout = asked(operator, "a1")
    do(operator, rollout, "resume")
    entry = AuditEntry.objects.first()
    assert entry is not None
    assert (entry.action, entry.object_id, entry.status, entry.outcome) == (
        "resume_rollout",
        str(rollout.pk),
        409,
        "invalid_transition",
    )


@pytest.mark.parametrize("verb", [*VERBS, "retry"])
def test_verb__a_viewer_may_not(client_of: ClientOf, db: None, verb: str) -> None:
    rollout = asked(client_of("operator"), "a1")
    before = Rollout.objects.values().get()
    refused(do(client_of("viewer"), rollout, verb), 403, "permission_denied")
    assert Rollout.objects.values().get() == before


def test_idempotency__a_verb_sent_again_is_done_once(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR)
    first = do(operator, rollout, "pause", {"reason": "A."}, **{"Idempotency-Key": "p"})
    done(operator, rollout, "resume")
    again = do(operator, rollout, "pause", {"reason": "A."}, **{"Idempotency-Key": "p"})
    assert (again.status_code, again.json()) == (202, first.json())
    assert again["Idempotency-Replayed"] == "true"
    assert Rollout.objects.get().state == "running"


def test_idempotency__a_retry_sent_again_is_one_rollout(operator: APIClient, db: None) -> None:
    rollout = failed(operator)
    answers = [do(operator, rollout, "retry", **{"Idempotency-Key": "r"}).json()["id"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert Rollout.objects.count() == 2


def test_idempotency__a_refusal_may_be_tried_again(operator: APIClient, db: None) -> None:
    rollout = begun(operator, "a1", "a2", canary=1, promotion="manual")
    refused(do(operator, rollout, "promote", **{"Idempotency-Key": "p"}), 409, "invalid_transition")
    end(rollout, "a1")
    assert do(operator, rollout, "promote", **{"Idempotency-Key": "p"}).status_code == 202


@pytest.mark.parametrize("path", ["/tenants/a1/hold", "/tenants/a1/release"])
def test_idempotency__of_hold_and_release(operator: APIClient, db: None, path: str) -> None:
    [tenant] = registered("a1")
    hold(tenant, by="ops", reason="Frozen.")
    body = {"reason": "Mine."} if path.endswith("hold") else {}
    answers = [operator.post(path, body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


# What a rollout shows


def test_detail__waves_with_their_runs(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR, canary=1, waves=[1])
    end(rollout, "a1")
    rollout.runs.filter(tenant="a2").update(state=RunState.RUNNING)
    found = detail(operator, rollout)
    waves = {wave["number"]: {state: runs for state, runs in wave["runs"].items() if runs} for wave in found["waves"]}
    assert waves == {1: {"succeeded": 1}, 2: {"running": 1}, 3: {"pending": 2}}
    assert [wave["total"] for wave in found["waves"]] == [1, 1, 2]
    assert {name: found["progress"][name] for name in ("ended", "in_flight", "pending")} == {
        "ended": 1,
        "in_flight": 1,
        "pending": 2,
    }


def test_detail__newcomers_are_named(operator: APIClient, db: None) -> None:
    rollout = asked(operator, "a1", selector={"labels": {}, "exclude": []})
    registered("a2")
    assert detail(operator, rollout)["newcomers"] == ["a2"]
    registered(*[f"n{number:03}" for number in range(150)])
    assert len(detail(operator, rollout)["newcomers"]) == 100


def test_detail__nobody_joins_what_was_chosen_by_name(operator: APIClient, db: None) -> None:
    registered("a1")
    rollout = Rollout.objects.get(
        pk=operator.post("/tenants/migrate-all", {"selector": {"tenant_ids": ["a1"]}}).json()["id"]
    )
    registered("a2")
    assert detail(operator, rollout)["newcomers"] == []


def test_progress__speed_and_what_is_left(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR)
    end(rollout, "a1", "a2")
    Rollout.objects.update(started_at=timezone.now() - timedelta(seconds=30))
    progress = detail(operator, rollout)["progress"]
    assert progress["per_minute"] == pytest.approx(4, rel=0.5)
    assert progress["eta_seconds"] == pytest.approx(30, rel=0.5)

    done(operator, rollout, "pause")
    progress = detail(operator, rollout)["progress"]
    assert (progress["per_minute"], progress["eta_seconds"]) == (None, None)


def test_progress__nobody_knows_when_somebody_promotes(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR, canary=1, promotion="manual")
    end(rollout, "a1")
    assert detail(operator, rollout)["progress"]["eta_seconds"] is None
    done(operator, rollout, "promote", {"full": True})
    assert detail(operator, rollout)["progress"]["eta_seconds"] is not None


def test_progress__bake_time_counts(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR, canary=1, bake_time=5000)
    end(rollout, "a1")
    assert 4900 < detail(operator, rollout)["progress"]["eta_seconds"] < 6000


@pytest.mark.parametrize("state", RolloutState.values)
@pytest.mark.parametrize("seconds", [None, 0, 3600, -3600])
def test_progress__never_divides_by_nothing(viewer: APIClient, db: None, state: str, seconds: int | None) -> None:
    """Without tenants, at the first moment, and by a clock that is behind the database's."""
    started = None if seconds is None else timezone.now() - timedelta(seconds=seconds)
    rollout = Rollout.objects.create(state=state, started_at=started, requested_via="api")
    found = detail(viewer, rollout)
    assert (found["total"], found["waves"], found["newcomers"]) == (0, [], [])
    assert (found["progress"]["ended"], found["progress"]["pending"]) == (0, 0)
    assert found["progress"]["eta_seconds"] is None


def test_without_tenants__is_over_at_once(operator: APIClient, db: None) -> None:
    rollout = asked(operator)
    advance(rollout, limit=9, lease=30)
    found = detail(operator, rollout)
    assert (found["state"], found["total"], found["runs"]["succeeded"]) == ("succeeded", 0, 0)
    assert operator.get(f"/rollouts/{rollout.pk}/failures").json() == []
    refused(do(operator, rollout, "retry"), 409, "invalid_transition")


# Events


def test_events__its_speed_alone_is_no_news(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR)
    end(rollout, "a1")
    watcher = RolloutWatcher(rollout.pk, "")
    [first] = watcher.look().events
    long_ago = timezone.now() - timedelta(hours=1)
    rollout.runs.filter(tenant="a1").update(finished_at=long_ago)
    assert detail(operator, rollout)["progress"]["per_minute"] == 0 < first.data["progress"]["per_minute"]
    assert watcher.look().events == []

    end(rollout, "a2")
    [second] = watcher.look().events
    assert second.data["progress"]["ended"] == 2


def test_events__a_verb_is_news(operator: APIClient, db: None) -> None:
    rollout = begun(operator, *FOUR, canary=1, promotion="manual")
    watcher = RolloutWatcher(rollout.pk, "")
    seen = [watcher.look()]
    end(rollout, "a1")
    seen.append(watcher.look())
    for verb in ("promote", "pause", "resume", "cancel"):
        done(operator, rollout, verb)
        seen.append(watcher.look())
    shown = [(event.data["state"], event.data["waiting_for"]) for news in seen for event in news.events]
    assert shown == [
        ("running", None),
        ("running", "promotion"),
        ("running", None),
        ("paused", None),
        ("running", None),
        ("canceled", None),
    ]
    assert [news.over for news in seen] == [False] * 5 + [True]
