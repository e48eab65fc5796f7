"""Which tenants `migratealltenants` is for and how it goes through them: its selector and strategy options."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.holds import hold
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.command_line import Result, manage

MakeTenant = Callable[..., Tenant]
# The fewest steps that a tenant can be migrated by.
FIRST = ("users", "0001")


@pytest.fixture
def trio(make_tenant: MakeTenant) -> list[Tenant]:
    """Three tenants in the order of their ids; broken migrations fail in globex alone."""
    return [make_tenant(name) for name in ("acme", "globex", "initech")]


@pytest.fixture
def failing(trio: list[Tenant], broken: Callable[..., None]) -> list[Tenant]:
    broken(orders="orders_failing_data")
    return trio


def selected(*arguments: str) -> list[str]:
    result = manage("migratealltenants", "--dry-run", "--format=json", *arguments)
    assert (result.code, result.err) == (0, "")
    preview = json.loads(result.out)
    ids = [tenant_id for wave in preview["waves"] for tenant_id in wave["tenant_ids"]]
    assert len(ids) == preview["total"]
    return ids


def states() -> dict[str, str]:
    return dict(MigrationRun.objects.order_by("tenant_id").values_list("tenant_id", "state"))


def totals(result: Result) -> str:
    return next(line for line in result.out.splitlines() if line.startswith("  Total: "))


def test_selector__every_option_narrows_alone_and_together(make_tenant: MakeTenant) -> None:
    make_tenant("acme", labels={"tier": "gold", "region": "eu"})
    make_tenant("globex", Isolation.DATABASE, labels={"tier": "free", "region": "eu"})
    make_tenant("initech", labels={"tier": "free"})
    make_tenant("zz-common", Isolation.SHARED)
    manage("migratetenant", "--tenant-id=acme")

    assert selected() == ["zz-common", "acme", "globex", "initech"]
    assert selected("--tenant-id=initech", "--tenant-id=acme") == ["acme", "initech"]
    assert selected("--exclude=acme", "--exclude=zz-common") == ["globex", "initech"]
    assert selected("--label=region=eu") == ["acme", "globex"]
    assert selected("--label=region=eu", "--label=tier=free") == ["globex"]
    assert selected("--isolation-type=schema") == ["acme", "initech"]
    assert selected("--status=up_to_date") == ["acme"]
    assert selected("--status=pending") == ["zz-common", "globex", "initech"]
    assert selected("--status=pending", "--status=up_to_date", "--isolation-type=schema") == ["acme", "initech"]
    assert selected("--label=region=eu", "--exclude=acme", "--tenant-id=acme", "--tenant-id=globex") == ["globex"]
    assert selected("--label=region=us") == []
    assert sorted(selected("--shard=1/2") + selected("--shard=2/2")) == ["acme", "globex", "initech", "zz-common"]
    assert len(selected("--sample=50%")) == 2
    assert len({*selected("--sample=3", "--seed=7")}) == 3
    assert selected("--sample=2", "--seed=7") == selected("--sample=2", "--seed=7")
    assert selected("--isolation-type=schema", "--sample=1", "--seed=7")[0] in {"acme", "initech"}
    assert not Rollout.objects.exists()


def test_selector__reaches_no_other_tenant_and_is_kept(trio: list[Tenant]) -> None:
    result = manage("migratealltenants", *FIRST, "--exclude=acme", "--sample=1", "--seed=3")

    assert result.code == 0
    assert "  Total: 1 tenant migrated, 0 unchanged" in result.out
    rollout = Rollout.objects.get()
    assert rollout.selector == {"exclude": ["acme"], "sample": 1, "seed": 3}
    [run] = rollout.runs.all()
    migrated = [each.tenant_id for each in trio if catalog.tables(catalog.tenant_dsn(each), each.schema_name)]
    assert migrated == [run.tenant_id] != ["acme"]


def test_sample__keeps_the_seed_that_it_was_drawn_with(trio: list[Tenant]) -> None:
    manage("migratealltenants", *FIRST, "--sample=2")

    seed = Rollout.objects.get().selector["seed"]
    assert selected("--sample=2", f"--seed={seed}") == sorted(states())


def test_selector__that_nobody_fits_is_nothing_to_do(trio: list[Tenant]) -> None:
    result = manage("migratealltenants", "--label=tier=gold")

    assert (result.code, result.out, result.err) == (0, "There are no tenants to migrate.\n", "")


AMOUNT = "is neither a number of tenants, such as 5, nor a percentage, such as 10%."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tenant-id=Acme_"], "argument --tenant-id: "),
        (["--tenant-id=nobody", "--exclude=noone"], "These tenants do not exist: nobody, noone."),
        (["--label=tier"], "argument --label: 'tier' is not key=value"),
        (["--status=lost"], "argument --status: invalid choice: 'lost' (choose from "),
        (["--failed-in=0"], "argument --failed-in: '0' is not a whole number above 0"),
        (["--failed-in=99"], "Rollout 99 does not exist."),
        (["--unfinished-in=99"], "Rollout 99 does not exist."),
        (["--shard=3/2"], "'3/2' is no shard: it takes K/N with 1 <= K <= N, such as 2/5."),
        (["--sample=some"], f"argument --sample: 'some' {AMOUNT}"),
        (["--sample=0"], "A sample has at least one tenant."),
        (["--seed=7"], "A seed is for a sample, and none is asked for."),
        (["--max-failures=101%"], f"argument --max-failures: '101%' {AMOUNT}"),
        (["--max-failures=-1"], f"argument --max-failures: '-1' {AMOUNT}"),
        (["--max-per-database=0"], "argument --max-per-database: '0' is not a whole number above 0"),
        (["--failure-mode=strict"], "failure_mode strict keeps to a max_failures, and none is given."),
        (["--failure-mode=hard"], "argument --failure-mode: invalid choice: 'hard' (choose from "),
        (["--canary=0"], "argument --canary: A wave has at least one tenant."),
        (["--wave=0%"], "argument --wave: A wave has at least one tenant."),
        (["--wave=tier"], f"argument --wave: 'tier' {AMOUNT}"),
        (["--wave==gold"], "argument --wave: '=gold' is not key=value"),
        (["--bake-time=5"], "bake_time and promotion come between waves; give a canary or waves as well."),
        (["--promotion=manual"], "bake_time and promotion come between waves; give a canary or waves as well."),
        (["--bake-time=soon"], "argument --bake-time: 'soon' is not a number of seconds, from 0 to a year"),
        (["--progress-deadline=0"], "argument --progress-deadline: it has to be above 0"),
    ],
)
def test_usage__names_what_was_wrong_and_what_is_allowed(plane: None, arguments: list[str], message: str) -> None:
    result = manage("migratealltenants", *arguments)

    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert not Rollout.objects.exists()


def test_dry_run__shows_waves_who_is_left_out_and_plans(trio: list[Tenant], make_tenant: MakeTenant) -> None:
    make_tenant("common", Isolation.SHARED)
    make_tenant("umbrella", labels={"tier": "gold"})
    make_tenant("vandelay")
    hold(trio[2], by="ops", reason="an audit")
    manage("migratetenant", "--tenant-id=umbrella", "users")

    strategy = ("--canary=1", "--wave=tier=gold", "--max-failures=40%")
    result = manage("migratealltenants", "users", "0002", "--exclude=common", *strategy, "--dry-run")

    assert result.out == (
        "A rollout over 5 tenants:\n"
        "  Wave 1, 1 tenant: acme\n"
        "  Wave 2, 1 tenant: umbrella\n"
        "  Wave 3, 2 tenants: globex, vandelay\n"
        "  Left out: initech: The tenant is held by ops (an audit).\n"
        "  At most 2 may fail.\n"
        "  3 tenants: users/0001_initial.py, users/0002_email_unique.py\n"
        "  1 tenant: Undo users/0005_address.py, Undo users/0004_remove_name_parts.py, Undo users/0003_full_name.py\n"
    )
    assert (result.code, result.err) == (0, "")
    assert not Rollout.objects.exists()
    assert catalog.tables(catalog.tenant_dsn(trio[0]), "public_acme") == set()


def test_dry_run__json_has_the_same(trio: list[Tenant], make_tenant: MakeTenant) -> None:
    make_tenant("common", Isolation.SHARED)
    hold(trio[2], by="ops", reason="an audit")

    arguments = ("--sample=4", "--seed=1", "--canary=1", "--max-failures=2", "--max-concurrency=50%")
    preview = json.loads(manage("migratealltenants", *arguments, "--dry-run", "--format=json").out)

    assert preview["total"] == 4
    assert preview["selector"] == {"sample": 4, "seed": 1}
    assert [(wave["number"], wave["tenant_ids"]) for wave in preview["waves"]] == [
        (0, ["common"]),
        (1, ["acme"]),
        (2, ["globex"]),
    ]
    held = {"tenant_id": "initech", "code": "held", "reason": "The tenant is held by ops (an audit)."}
    assert preview["left_out"] == [held]
    assert (preview["max_failures"], preview["max_concurrency"]) == (2, 2)
    assert sorted(group["tenant_count"] for group in preview["groups"]) == [1, 2]


def test_waves__come_in_order_and_bake(trio: list[Tenant], make_tenant: MakeTenant) -> None:
    make_tenant("umbrella", labels={"tier": "gold"})

    result = manage("migratealltenants", *FIRST, "--canary=1", "--wave=tier=gold", "--bake-time=0.4")

    headings = [line for line in result.out.splitlines() if line.startswith("Migrating tenant: ")]
    assert headings == [f"Migrating tenant: {name}" for name in ("acme", "umbrella", "globex", "initech")]
    rollout = Rollout.objects.get()
    waves: dict[int, list[MigrationRun]] = {number: list(rollout.runs.filter(wave=number)) for number in (1, 2, 3)}
    assert [len(runs) for runs in waves.values()] == [1, 1, 2]
    for before, after in ((1, 2), (2, 3)):
        ended = max(run.finished_at for run in waves[before] if run.finished_at)
        assert all(run.started_at - ended >= timedelta(seconds=0.4) for run in waves[after] if run.started_at)
    told = result.err.splitlines()
    assert [line.partition(" The next one opens at ")[0] for line in told] == ["Wave 1 has ended.", "Wave 2 has ended."]
    assert all(line.endswith(f" UTC; at once with: manage.py rollout promote {rollout.pk}") for line in told)
    assert result.code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-concurrency=1"],
        ["--max-concurrency=100%", "--executor=parallel"],
        ["--max-per-database=1", "--executor=parallel"],
        ["--max-failures=0", "--failure-mode=strict", "--executor=parallel"],
        ["--progress-deadline=600", "--wave=34%", "--on-error=pause"],
    ],
)
def test_strategy__that_nothing_goes_against_migrates_all(trio: list[Tenant], arguments: list[str]) -> None:
    result = manage("migratealltenants", *FIRST, *arguments)

    assert (result.code, result.err) == (0, "")
    assert totals(result) == "  Total: 3 tenants migrated, 0 unchanged, 0 failed, 0 skipped, 0 not started"


@pytest.mark.parametrize("amount", ["0", "33%"])
def test_max_failures__that_are_none_stop_after_the_first(failing: list[Tenant], amount: str) -> None:
    result = manage("migratealltenants", "orders", f"--max-failures={amount}")

    rollout = Rollout.objects.get()
    assert states() == {"acme": "succeeded", "globex": "failed", "initech": "canceled"}
    assert rollout.state == "failed"
    # Nobody is told of a next tenant that does not come.
    assert "Continuing" not in result.out
    assert "  - initech - not started\n" in result.out
    assert result.err == (
        "1 × ValueError in orders.0003_channel\n"
        f"Rollout {rollout.pk} was stopped: 1 of 3 tenants failed; 0 may.\n"
        f"For those that were not migrated: manage.py rollout retry {rollout.pk}\n"
        "CommandError: 2 of 3 tenants were not migrated.\n"
    )
    assert result.code == 3


@pytest.mark.parametrize("amount", ["1", "34%"])
def test_max_failures__that_are_not_exceeded_stop_nothing(failing: list[Tenant], amount: str) -> None:
    result = manage("migratealltenants", "orders", f"--max-failures={amount}", "--on-error=fail")

    assert states() == {"acme": "succeeded", "globex": "failed", "initech": "succeeded"}
    assert result.code == 3


def test_on_error_pause__ends_paused_and_resume_carries_on(failing: list[Tenant]) -> None:
    paused = manage("migratealltenants", "orders", "--on-error=pause")

    rollout = Rollout.objects.get()
    assert (rollout.state, states()["initech"]) == ("paused", "pending")
    assert paused.code == 3
    assert paused.err == (
        "1 × ValueError in orders.0003_channel\n"
        f"Rollout {rollout.pk} is paused: 1 of 3 tenants failed; 0 may.\n"
        f"Go on with:  manage.py rollout resume {rollout.pk}\n"
        f"End it with: manage.py rollout cancel {rollout.pk}\n"
        "CommandError: 2 of 3 tenants were not migrated.\n"
    )

    resumed = manage("rollout", "resume", str(rollout.pk))

    rollout.refresh_from_db()
    assert rollout.state == "failed"
    assert states() == {"acme": "succeeded", "globex": "failed", "initech": "succeeded"}
    # What came of the others before the pause is in the summary as well.
    assert resumed.out.endswith(
        "Migration Summary:\n"
        "  ✓ initech - migrated successfully\n"
        "  ✓ acme - migrated successfully\n"
        "  ✗ globex - FAILED\n"
        "  Total: 2 tenants migrated, 0 unchanged, 1 failed, 0 skipped, 0 not started\n"
    )
    assert resumed.err.endswith(
        f"For those that were not migrated: manage.py rollout retry {rollout.pk}\n"
        "CommandError: 1 of 3 tenants was not migrated.\n"
    )
    assert resumed.code == 3


@pytest.mark.parametrize("again", ["retry", "--unfinished-in", "--failed-in"])
def test_retry__migrates_those_left_behind_once_the_cause_is_mended(
    failing: list[Tenant], settings: Any, again: str
) -> None:
    manage("migratealltenants", "orders", "--on-error=fail")
    first = Rollout.objects.get()
    settings.MIGRATION_MODULES = {}

    if again == "retry":
        result = manage("rollout", "retry", str(first.pk))
    else:
        result = manage("migratealltenants", "orders", again, str(first.pk))

    left = ["globex"] if again == "--failed-in" else ["globex", "initech"]
    rollout = Rollout.objects.latest("pk")
    assert sorted(rollout.runs.values_list("tenant_id", "state")) == [(name, "succeeded") for name in left]
    assert rollout.retry_of == (first if again == "retry" else None)
    assert rollout.app_label == "orders"
    assert (result.code, result.err) == (0, "")
    if again == "retry":
        assert manage("rollout", "retry", str(rollout.pk)).err == (
            f"CommandError: Rollout {rollout.pk} has left no tenant behind; there is nothing to retry.\n"
        )


def test_format_json__has_a_line_for_every_tenant(failing: list[Tenant], make_tenant: MakeTenant) -> None:
    hold(make_tenant("aaa"), by="ops", reason="an audit")

    result = manage("migratealltenants", "orders", "--max-failures=0", "--format=json")

    runs = [json.loads(line) for line in result.out.splitlines()]
    assert {run["tenant_id"]: (run["state"], run["error_code"]) for run in runs} == {
        "aaa": ("skipped", "held"),
        "acme": ("succeeded", ""),
        "globex": ("failed", "migration_failed"),
        "initech": ("canceled", ""),
    }
    assert runs[-1]["message"] == "Not started: 1 of 4 tenants failed; 0 may."
    assert len(runs) == 4
    assert result.code == 3


def test_skipped__on_purpose_says_why_and_is_exit_0(trio: list[Tenant], make_tenant: MakeTenant) -> None:
    lost = make_tenant("lost")
    catalog.query(catalog.tenant_dsn(lost), "DROP SCHEMA public_lost")
    hold(trio[0], by="ops", reason="an audit")
    manage("suspendtenant", "--tenant-id=globex")

    result = manage("migratealltenants", *FIRST)

    assert result.err == (
        "- Tenant 'acme' skipped: The tenant is held by ops (an audit).\n"
        "- Tenant 'globex' skipped: The tenant is suspended.\n"
    )
    assert "- Tenant 'lost' skipped: The schema 'public_lost' of database " in result.out
    assert totals(result) == "  Total: 1 tenant migrated, 0 unchanged, 0 failed, 3 skipped, 0 not started"
    assert result.code == 0
    assert Rollout.objects.get().state == "succeeded"


def test_skipped__and_left_behind_is_exit_3(trio: list[Tenant], broken: Callable[..., None]) -> None:
    broken(orders="orders_failing_nonatomic")
    manage("migratetenant", "--tenant-id=globex")
    partial = MigrationRun.objects.get()
    run = MigrationRun.objects.create(tenant=trio[0], requested_via="api")

    result = manage("migratealltenants", *FIRST)

    rollout = Rollout.objects.get()
    assert result.err == (
        f"✗ Tenant 'acme' has an unfinished run: {run.pk}.\n"
        "✗ Tenant 'globex' was not migrated: "
        "The tenant stands between two migrations and has to be repaired: "
        f"manage.py repairtenant --run={partial.pk}, or /runs/{partial.pk}/repair.\n"
        "What a dead process left is settled 30 seconds after its end; then try again.\n"
        f"For those that were not migrated: manage.py rollout retry {rollout.pk}\n"
        "CommandError: 2 of 3 tenants were not migrated.\n"
    )
    assert totals(result) == "  Total: 1 tenant migrated, 0 unchanged, 2 failed, 0 skipped, 0 not started"
    assert (result.code, rollout.state) == (3, "failed")


def test_newcomers__of_kinds_that_the_target_does_not_reach_are_not_told(make_tenant: MakeTenant) -> None:
    make_tenant("acme")
    make_tenant("common", Isolation.SHARED)

    result = manage("migratealltenants", "plans")

    assert (result.code, result.err) == (0, "")
