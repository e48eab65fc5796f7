"""`holdtenant`, `releasetenant` and `suspendtenant`, and what the other commands say then."""

import json
from collections.abc import Callable

import pytest

from migrations_api.management.base import user
from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.requests import Request, request_rollout
from tenants.models import Tenant
from tests.command_line import manage

MakeTenant = Callable[..., Tenant]
HOLD = ("holdtenant", "--tenant-id=acme", "--reason=an audit")


def test_hold__keeps_everything_out_until_release(make_tenant: MakeTenant) -> None:
    make_tenant()

    held = manage(*HOLD)
    refused = manage("migratetenant", "--tenant-id=acme")
    released = manage("releasetenant", "--tenant-id=acme")
    migrated = manage("migratetenant", "--tenant-id=acme", "users", "0001")

    release = "manage.py releasetenant --tenant-id=acme"
    assert (held.code, held.out) == (0, f"Tenant 'acme' is held. Release it with: {release}\n")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == (
        f"CommandError: Tenant 'acme' is held by {user()} (an audit). Release it first.\n"
        f"When it may be migrated again: {release}\n"
    )
    assert released.out == "Tenant 'acme' is released.\n"
    assert migrated.code == 0
    assert MigrationRun.objects.count() == 1


def test_hold__is_shown_with_its_reason(make_tenant: MakeTenant) -> None:
    make_tenant()
    manage(*HOLD)

    table = manage("showtenants").out
    [row] = json.loads(manage("showtenants", "--format=json").out)

    assert table.endswith("acme: held: an audit\n")
    assert (row["status"], row["detail"], row["suspended"]) == ("held", "an audit", False)


def test_hold__once_more_has_the_new_reason(make_tenant: MakeTenant) -> None:
    make_tenant()
    manage(*HOLD)
    manage("holdtenant", "--tenant-id=acme", "--reason=another")

    assert Tenant.objects.get().hold_reason == "another"


def test_hold__takes_a_tenant_out_of_a_rollout_that_has_not_begun_it(make_tenant: MakeTenant) -> None:
    rollout = request_rollout([make_tenant(), make_tenant("globex")], Request())

    manage(*HOLD)

    assert dict(rollout.runs.values_list("tenant_id", "state")) == {"acme": "skipped", "globex": "pending"}
    assert rollout.runs.get(tenant="acme").message == f"The tenant is held by {user()} (an audit)."
    assert Rollout.objects.get().state == "pending"


def test_release__of_one_that_is_not_held(make_tenant: MakeTenant) -> None:
    make_tenant()

    result = manage("releasetenant", "--tenant-id=acme")

    assert (result.code, result.err) == (1, "CommandError: Tenant 'acme' is not held.\n")


@pytest.mark.parametrize("command", ["holdtenant", "releasetenant", "suspendtenant"])
def test_unknown_tenant__is_told(plane: None, command: str) -> None:
    result = manage(command, "--tenant-id=nobody", *(["--reason=x"] if command == "holdtenant" else []))

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("CommandError: Tenant 'nobody' does not exist.\n")


@pytest.mark.parametrize("reason", ["", " ", "two\nlines", "x" * 301])
def test_reason__is_one_line(plane: None, reason: str) -> None:
    result = manage("holdtenant", "--tenant-id=acme", f"--reason={reason}")

    assert result.code == 2
    assert "argument --reason: a reason is one line of 1 to 300 characters\n" in result.err


def test_suspend__keeps_rollouts_away_and_nothing_else(make_tenant: MakeTenant) -> None:
    make_tenant()

    suspended = manage("suspendtenant", "--tenant-id=acme")
    rollout = manage("migratealltenants")
    alone = manage("migratetenant", "--tenant-id=acme", "users", "0001")
    table = manage("showtenants").out
    undone = manage("suspendtenant", "--tenant-id=acme", "--undo")
    again = manage("migratealltenants", "users", "0002")

    assert suspended.out == (
        "Tenant 'acme' is suspended: rollouts leave it out. "
        "Undo it with: manage.py suspendtenant --tenant-id=acme --undo\n"
    )
    assert (rollout.code, rollout.err) == (0, "- Tenant 'acme' skipped: The tenant is suspended.\n")
    assert alone.code == 0
    assert table.endswith("acme: suspended: rollouts leave it out\n")
    assert undone.out == "Tenant 'acme' is no longer suspended.\n"
    assert "  Total: 1 tenant migrated, " in again.out
    assert "suspended" not in manage("showtenants").out
