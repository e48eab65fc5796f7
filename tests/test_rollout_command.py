"""`rollout`: look at rollouts and steer them, while another process carries them out or after it ended."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.db.models.functions import Now

from migrations_api.management.base import user
from migrations_api.models import Coordinator, MigrationRun, Rollout
from migrations_api.orchestrator import rollout_verbs
from migrations_api.orchestrator.requests import Request, request_rollout
from migrations_api.orchestrator.rollout_verbs import is_abandoned
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.plan import Target
from tenants.models import Tenant
from tests import catalog
from tests.broken.orders_slow import GATE
from tests.command_line import Result, manage
from tests.processes import GIVE_UP, Process, output, processes, wait_until

MakeTenant = Callable[..., Tenant]
Start = Callable[..., Process]
SLOW = {"orders": "orders_slow"}
FIRST = Target(app_label="users", migration_name="0001")


@pytest.fixture
def start(plane: None, tmp_path: Path) -> Iterator[Start]:
    with processes(tmp_path) as start:
        yield start


@pytest.fixture
def trio(make_tenant: MakeTenant) -> list[Tenant]:
    return [make_tenant(name) for name in ("acme", "globex", "initech")]


def ask(tenants: list[Tenant], **strategy: Any) -> Rollout:
    """A rollout that nobody carries out yet."""
    return request_rollout(tenants, Request(target=FIRST, by="ops"), strategy=Strategy.from_dict(strategy))


def rollout(action: str, which: Rollout | int, *arguments: str) -> Result:
    return manage("rollout", action, str(which.pk if isinstance(which, Rollout) else which), *arguments)


def state(which: Rollout) -> str:
    which.refresh_from_db()
    return which.state


def states(which: Rollout) -> dict[str, str]:
    return dict(which.runs.order_by("tenant_id").values_list("tenant_id", "state"))


@contextmanager
def closed_gate() -> Iterator[None]:
    """While this lasts, orders.0003_gate of orders_slow does not come to its end in a schema tenant."""
    with catalog.cursor(catalog.dsn(configured.TENANT_DATABASES["shop"])) as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [GATE])
        yield


def is_at_gate() -> bool:
    return MigrationRun.objects.filter(steps__name="0003_gate", steps__state="running").exists()


def test_list__is_newest_first(trio: list[Tenant]) -> None:
    first = ask(trio[:1])
    second = ask(trio[1:])
    rollout_verbs.pause(second, reason="Paused by ops.")

    result = manage("rollout", "list")

    lines = result.out.splitlines()
    assert lines[0].split("  ")[0] == "id"
    assert [line.split()[:2] for line in lines[1:]] == [[str(second.pk), "paused"], [str(first.pk), "pending"]]
    assert f"2      0      0       Paused by ops.  {second.created_at:%Y-%m-%d %H:%M}" in lines[1]
    assert [row["id"] for row in json.loads(manage("rollout", "list", "--format=json").out)] == [second.pk, first.pk]


def test_list__of_none_says_how_to_start_one(plane: None) -> None:
    assert manage("rollout", "list").out == "There are no rollouts. Start one with: manage.py migratealltenants\n"
    assert json.loads(manage("rollout", "list", "--format=json").out) == []


def test_show__of_a_failed_one(trio: list[Tenant], make_tenant: MakeTenant, broken: Callable[..., None]) -> None:
    broken(orders="orders_failing_data")
    make_tenant("common", "shared")
    manage("migratealltenants", "--canary=1", "--max-failures=0")
    one = Rollout.objects.get()

    result = rollout("show", one)

    message = one.runs.get(state="failed").message
    assert result.out == (
        f"Rollout {one.pk} is failed: 1 of 4 tenants failed; 0 may.\n"
        "  Wave 0 (shared): 1 succeeded\n"
        "  Wave 1: 1 succeeded\n"
        "  Wave 2: 1 failed, 1 canceled\n"
        f"  1 × ValueError in orders.0003_channel: {message}\n"
        "  Not migrated: globex, initech\n"
        f"For those that were not migrated: manage.py rollout retry {one.pk}\n"
    )
    assert (result.code, result.err) == (0, "")


def test_show__of_one_that_succeeded_says_no_more(trio: list[Tenant]) -> None:
    manage("migratealltenants", "users", "0001")
    one = Rollout.objects.get()

    assert rollout("show", one).out == f"Rollout {one.pk} is succeeded.\n  Wave 1: 3 succeeded\n"
    shown = json.loads(rollout("show", one, "--format=json").out)
    assert (shown["state"], shown["runs"]["succeeded"], shown["waves"][0]["total"]) == ("succeeded", 3, 3)


def test_pause_and_cancel__of_one_that_nobody_has_begun(trio: list[Tenant]) -> None:
    one = ask(trio)

    paused = rollout("pause", one, "--reason=wait for the backup")
    shown = rollout("show", one)
    canceled = rollout("cancel", one)

    go_on = f"Go on with:  manage.py rollout resume {one.pk}\nEnd it with: manage.py rollout cancel {one.pk}\n"
    assert (paused.code, paused.out) == (0, f"Rollout {one.pk} is paused.\n{go_on}")
    assert shown.out == (
        f"Rollout {one.pk} is paused: Paused by {user()}: wait for the backup\n  Wave 1: 3 pending\n{go_on}"
    )
    assert canceled.out == (
        f"Rollout {one.pk} is canceled.\nFor those that were not migrated: manage.py rollout retry {one.pk}\n"
    )
    assert states(one) == dict.fromkeys(["acme", "globex", "initech"], "canceled")


def test_resume__is_left_to_a_coordinator_that_is_seen(trio: list[Tenant]) -> None:
    one = ask(trio)
    rollout("pause", one)
    Coordinator.objects.create(name="other:1", started_at=Now(), seen_at=Now(), leading=True)

    result = rollout("resume", one)

    assert (result.code, result.out) == (0, f"Rollout {one.pk} is running.\n")
    assert (state(one), one.foreground) == ("running", False)
    assert set(states(one).values()) == {"pending"}


def test_skip__leaves_one_tenant_out(trio: list[Tenant]) -> None:
    one = ask(trio)
    rollout("pause", one)

    skipped = rollout("skip", one, "--tenant-id=globex", "--reason=a big import")
    resumed = rollout("resume", one)

    assert skipped.out == f"Tenant 'globex' is left out of rollout {one.pk}.\n"
    assert resumed.err == f"- Tenant 'globex' skipped: Skipped by {user()}: a big import\n"
    assert states(one) == {"acme": "succeeded", "globex": "skipped", "initech": "succeeded"}
    # It was left out on purpose.
    assert (resumed.code, state(one)) == (0, "succeeded")


@pytest.mark.parametrize("action", ["show", "pause", "resume", "promote", "cancel", "retry"])
def test_wrong_id__is_told(plane: None, action: str) -> None:
    result = rollout(action, 99)

    assert (result.code, result.out) == (2, "")
    assert result.err == "CommandError: Rollout 99 does not exist. See: manage.py rollout list\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: ACTION"),
        (["stop", "1"], "argument ACTION: invalid choice: 'stop' (choose from "),
        (["show", "zero"], "argument ID: 'zero' is not a whole number above 0"),
        (["skip", "1"], "the following arguments are required: --reason, --tenant-id"),
        (["pause", "1", "--reason="], "argument --reason: a reason is one line of 1 to 300 characters"),
    ],
)
def test_usage__names_what_was_wrong(plane: None, arguments: list[str], message: str) -> None:
    result = manage("rollout", *arguments)

    assert result.code == 2
    assert message in result.err


def test_wrong_state__names_it_and_changes_nothing(trio: list[Tenant]) -> None:
    done, fresh = ask(trio[:1]), ask(trio[1:])
    Rollout.objects.filter(pk=done.pk).update(state="succeeded")
    MigrationRun.objects.filter(rollout=done).update(state="succeeded")

    def refused(action: str, which: Rollout, *arguments: str) -> str:
        result = rollout(action, which, *arguments)
        assert (result.code, result.out) == (1, "")
        return result.err.removeprefix("CommandError: ")

    what = f"Rollout {done.pk} is succeeded; to"
    assert refused("pause", done) == f"{what} pause it, it has to be pending or running.\n"
    assert refused("resume", done) == f"{what} resume it, it has to be paused or pausing.\n"
    assert refused("promote", done) == f"{what} promote it, it has to be running.\n"
    assert refused("cancel", done).startswith(f"{what} cancel it, it has to be canceling or ")
    assert refused("retry", done) == f"Rollout {done.pk} has left no tenant behind; there is nothing to retry.\n"
    assert refused("skip", done, "--tenant-id=acme", "--reason=x").endswith("only a pending one can be skipped.\n")
    assert refused("skip", done, "--tenant-id=nobody", "--reason=x") == (f"Rollout {done.pk} has no tenant 'nobody'.\n")
    assert refused("retry", fresh) == (
        f"Rollout {fresh.pk} is pending; one that goes on cannot be retried.\n"
        "What a dead process left is settled 30 seconds after its end; then try again.\n"
    )
    rollout("pause", fresh)
    assert refused("promote", fresh) == f"Rollout {fresh.pk} is paused; to promote it, it has to be running.\n"
    assert (state(done), state(fresh)) == ("succeeded", "paused")


def test_promote__opens_the_waves_of_a_command_that_waits(
    trio: list[Tenant], make_tenant: MakeTenant, start: Start
) -> None:
    process = start("migratealltenants", "users", "0001", "--canary=1", "--wave=1", "--promotion=manual")
    wait_until(lambda: Rollout.objects.filter(awaits_promotion=True))
    one = Rollout.objects.get()
    hint = f"Wave 1 has ended. Open the next one with: manage.py rollout promote {one.pk}\n"

    shown = rollout("show", one)
    make_tenant("umbrella")
    promoted = rollout("promote", one)
    wait_until(lambda: Rollout.objects.filter(awaits_promotion=True, open_wave=2))
    full = rollout("promote", one, "--full")

    assert shown.out.startswith(f"Rollout {one.pk} is running.\n  Wave 1: 1 succeeded\n  Wave 2: 1 pending\n")
    assert shown.out.endswith(hint)
    assert (promoted.code, promoted.out) == (0, f"Rollout {one.pk} is running.\n")
    assert full.code == 0
    assert process.wait(GIVE_UP) == 0
    assert state(one) == "succeeded"
    told = output(process)
    assert told.count(hint) == 1
    assert "Total: 3 tenants migrated, 0 unchanged, 0 failed, 0 skipped, 0 not started\n" in told
    assert "Created meanwhile, and not migrated by this rollout: umbrella\n" in told


def test_pause__drains_and_resume_takes_it_over(trio: list[Tenant], start: Start, broken: Callable[..., None]) -> None:
    with closed_gate():
        process = start("migratealltenants", broken=SLOW)
        wait_until(is_at_gate)
        one = Rollout.objects.get()
        early = rollout("promote", one)
        paused = rollout("pause", one)
    assert process.wait(GIVE_UP) == 3

    assert early.err == f"CommandError: Wave 1 of rollout {one.pk} has not ended; nothing to promote.\n"
    assert paused.out == (
        f"Rollout {one.pk} is pausing: nothing more is started, and what is in flight goes on to its end.\n"
    )
    assert state(one) == "paused"
    assert states(one) == {"acme": "succeeded", "globex": "pending", "initech": "pending"}
    assert f"Rollout {one.pk} is paused: Paused by {user()}.\nGo on with:  " in output(process)

    broken(**SLOW)
    resumed = rollout("resume", one)

    assert (resumed.code, resumed.err) == (0, "")
    assert "  Total: 3 tenants migrated, 0 unchanged, 0 failed, 0 skipped, 0 not started\n" in resumed.out
    assert state(one) == "succeeded"


def test_resume__of_one_that_is_pausing_is_left_to_its_command(trio: list[Tenant], start: Start) -> None:
    with closed_gate():
        process = start("migratealltenants", broken=SLOW)
        wait_until(is_at_gate)
        one = Rollout.objects.get()
        rollout("pause", one)
        resumed = rollout("resume", one)

    assert (resumed.code, resumed.out) == (0, f"Rollout {one.pk} is running.\n")
    assert process.wait(GIVE_UP) == 0
    assert "  Total: 3 tenants migrated, " in output(process)


def test_cancel__with_interrupt_ends_the_statement_in_flight(trio: list[Tenant], start: Start) -> None:
    with closed_gate():
        process = start("migratealltenants", broken=SLOW)
        wait_until(is_at_gate)
        one = Rollout.objects.get()
        canceled = rollout("cancel", one, "--interrupt")
        # The gate stays closed: it is not the step's own end.
        assert process.wait(GIVE_UP) == 3

    assert canceled.out == (
        f"Rollout {one.pk} is canceling: nothing more is started, and what is in flight is stopped.\n"
    )
    assert state(one) == "canceled"
    assert not MigrationRun.objects.active().exists()
    assert states(one)["initech"] == "canceled"
    assert "orders_parcel" not in catalog.tables(catalog.tenant_dsn(trio[0]), "public_acme")
    assert f"manage.py rollout retry {one.pk}\n" in output(process)


def test_stop__while_it_bakes_accounts_for_every_tenant(trio: list[Tenant], start: Start) -> None:
    process = start("migratealltenants", "users", "0001", "--canary=1", "--bake-time=600")
    wait_until(lambda: Rollout.objects.filter(next_wave_at__isnull=False))
    process.send_signal(signal.SIGINT)
    assert process.wait(GIVE_UP) == 3

    one = Rollout.objects.get()
    assert one.state == "canceled"
    assert states(one) == {"acme": "succeeded", "globex": "canceled", "initech": "canceled"}
    told = output(process)
    assert "  Total: 1 tenant migrated, 0 unchanged, 0 failed, 0 skipped, 2 not started\n" in told
    assert f"For those that were not migrated: manage.py rollout retry {one.pk}\n" in told


def test_kill__is_told_and_retried_once_the_lease_is_over(
    trio: list[Tenant], start: Start, broken: Callable[..., None]
) -> None:
    with closed_gate():
        process = start("migratealltenants", broken=SLOW)
        wait_until(is_at_gate)
        process.kill()
        process.wait()
    one = Rollout.objects.get()
    broken(**SLOW)

    too_early = rollout("retry", one)
    another = manage("migratealltenants")
    wait_until(lambda: is_abandoned(one))
    shown = rollout("show", one)
    retried = rollout("retry", one)

    assert too_early.code == 1
    assert too_early.err.startswith(f"CommandError: Rollout {one.pk} is running; one that goes on cannot be retried.\n")
    assert "is settled " in too_early.err
    assert another.code == 4
    assert another.err.startswith("CommandError: Tenant 'acme' has an unfinished run: ")
    assert shown.out.endswith(
        "Whoever carried it out has ended before it did. "
        f"For those that were not migrated: manage.py rollout retry {one.pk}\n"
    )
    assert retried.code == 0
    assert "of tenant acme lost its worker and was settled" in retried.err
    assert "  Total: 3 tenants migrated, 0 unchanged, 0 failed, 0 skipped, 0 not started\n" in retried.out
    assert state(one) == "failed"
    codes = dict(one.runs.values_list("tenant_id", "error_code"))
    assert codes == {"acme": "worker_lost", "globex": "abandoned", "initech": "abandoned"}
