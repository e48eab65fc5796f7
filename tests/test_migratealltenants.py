import json
from collections.abc import Callable
from typing import Any

import pytest

from migrations_api.models import MigrationRun, Rollout, RunStep
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.command_line import Result, manage

USERS = "".join(
    f"  users/{name}.py ... OK\n"
    for name in ("0001_initial", "0002_email_unique", "0003_full_name", "0004_remove_name_parts", "0005_address")
)


@pytest.fixture
def fleet(make_tenant: Callable[..., Tenant]) -> list[Tenant]:
    """Two tenants of each kind that is not shared; broken migrations fail in globex alone."""
    return [make_tenant("globex"), make_tenant("acme", Isolation.DATABASE), make_tenant("initech")]


def applied(tenant: Tenant) -> list[tuple[str, str]]:
    return catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)


def totals(result: Result) -> str:
    return next(line for line in result.out.splitlines() if line.startswith("  Total: "))


def test_migratealltenants__prints_tenant_by_tenant(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("globex", Isolation.DATABASE)
    make_tenant("acme")

    result = manage("migratealltenants", "users")

    assert result.out == (
        f"Migrating tenant: acme\n{USERS}✓ Tenant 'acme' migrated successfully.\n\n"
        f"Migrating tenant: globex\n{USERS}✓ Tenant 'globex' migrated successfully.\n\n"
        "Migration Summary:\n"
        "  ✓ acme - migrated successfully\n"
        "  ✓ globex - migrated successfully\n"
        "  Total: 2 tenants migrated, 0 unchanged, 0 failed, 0 skipped, 0 not started\n"
    )
    assert (result.code, result.err) == (0, "")


def test_migratealltenants__counts_each_kind_apart(
    fleet: list[Tenant], make_tenant: Callable[..., Tenant], broken: Callable[..., None]
) -> None:
    lost = make_tenant("lost")
    catalog.query(catalog.tenant_dsn(lost), "DROP SCHEMA public_lost")
    broken(orders="orders_failing_data")
    manage("migratetenant", "--tenant-id=acme")
    manage("migratetenant", "--tenant-id=globex", "orders", "0002")
    manage("migratetenant", "--tenant-id=initech", "orders", "0002")

    result = manage("migratealltenants", "orders")

    database = catalog.tenant_dsn(lost)["dbname"]
    reason = RunStep.objects.get(state="failed").run.message
    where = f"The schema 'public_lost' of database '{database}' on server 'shop' does not exist."
    assert result.out == (
        "Migrating tenant: acme\n"
        "✓ Tenant 'acme' is up to date.\n"
        "\n"
        "Migrating tenant: globex\n"
        "  orders/0003_channel.py ... FAILED\n"
        f"✗ Migrations failed for tenant 'globex': orders.0003_channel: {reason}\n"
        "Continuing with next tenant...\n"
        "\n"
        "Migrating tenant: initech\n"
        "  orders/0003_channel.py ... OK\n"
        "  orders/0004_note.py ... OK\n"
        "✓ Tenant 'initech' migrated successfully.\n"
        "\n"
        "Migrating tenant: lost\n"
        f"- Tenant 'lost' skipped: {where}\n"
        "\n"
        "Migration Summary:\n"
        "  ✓ acme - unchanged\n"
        "  ✗ globex - FAILED\n"
        "  ✓ initech - migrated successfully\n"
        "  - lost - skipped\n"
        "  Total: 1 tenant migrated, 1 unchanged, 1 failed, 1 skipped, 0 not started\n"
    )
    assert result.code == 3
    assert result.err == (
        "1 × ValueError in orders.0003_channel\n"
        f"For those that were not migrated: manage.py rollout retry {Rollout.objects.get().pk}\n"
        "CommandError: 1 of 4 tenants was not migrated.\n"
    )


def test_no_tenants__is_nothing_to_do(plane: None) -> None:
    result = manage("migratealltenants")

    assert (result.code, result.out, result.err) == (0, "There are no tenants to migrate.\n", "")


def test_all_unchanged__is_exit_0(fleet: list[Tenant]) -> None:
    manage("migratealltenants")

    result = manage("migratealltenants")

    assert result.code == 0
    assert totals(result) == "  Total: 0 tenants migrated, 3 unchanged, 0 failed, 0 skipped, 0 not started"


def test_shared_tenants__come_first(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("acme")
    make_tenant("zz-common", Isolation.SHARED)

    result = manage("migratealltenants")

    headings = [line for line in result.out.splitlines() if line.startswith("Migrating tenant: ")]
    assert headings == ["Migrating tenant: zz-common", "Migrating tenant: acme"]


FAILURES = {
    "orders_failing_data": ("failed", "orders.0003_channel", "ValueError", ""),
    "orders_failing_nonatomic": ("partial", "orders.0003_archive", "ValueError", ""),
    "orders_unique_violation": ("failed", "orders.0003_import_users", "UniqueViolation", "23505"),
}


@pytest.mark.parametrize("package", FAILURES)
@pytest.mark.parametrize("executor", ["sequential", "parallel"])
def test_broken__record_names_tenant_step_and_reason_and_the_others_are_done(
    fleet: list[Tenant], broken: Callable[..., None], executor: str, package: str
) -> None:
    broken(orders=package)

    result = manage("migratealltenants", f"--executor={executor}")

    assert result.code == 3
    assert totals(result) == "  Total: 2 tenants migrated, 0 unchanged, 1 failed, 0 skipped, 0 not started"
    run = MigrationRun.objects.exclude(state="succeeded").get()
    assert run.tenant_id == "globex"
    assert (run.state, run.failed_step, run.error_class, run.sqlstate) == FAILURES[package]
    assert run.message in result.out
    assert "a@b.c" not in result.out + result.err + run.message
    others = [tenant for tenant in fleet if tenant.tenant_id != "globex"]
    assert all(("orders", "0004_note") in applied(tenant) for tenant in others)
    assert tuple(run.failed_step.split(".")) not in applied(Tenant.objects.get(pk="globex"))


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("orders_conflict", "Conflicting migrations detected; multiple leaf nodes in the migration graph: "),
        ("orders_missing_dependency", "Migration orders.0003_note dependencies reference nonexistent parent node "),
    ],
)
def test_broken_graph__fails_each_tenant_and_changes_none(
    fleet: list[Tenant],
    make_tenant: Callable[..., Tenant],
    broken: Callable[..., None],
    package: str,
    message: str,
) -> None:
    make_tenant("common", Isolation.SHARED)
    broken(orders=package)

    result = manage("migratealltenants")

    assert result.code == 3
    assert f"✗ Migrations failed for tenant 'globex': {message}" in result.out
    assert all(catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == set() for tenant in fleet)
    assert MigrationRun.objects.get(tenant="globex").message.startswith(message)


def test_on_error_fail__starts_nothing_more(fleet: list[Tenant], broken: Callable[..., None]) -> None:
    broken(orders="orders_failing_data")

    result = manage("migratealltenants", "--on-error=fail")

    assert result.code == 3
    assert "Continuing with next tenant..." not in result.out
    assert result.out.endswith(
        "Migration Summary:\n"
        "  ✓ acme - migrated successfully\n"
        "  ✗ globex - FAILED\n"
        "  - initech - not started\n"
        "  Total: 1 tenant migrated, 0 unchanged, 1 failed, 0 skipped, 1 not started\n"
    )
    rollout = Rollout.objects.get()
    assert result.err == (
        "1 × ValueError in orders.0003_channel\n"
        f"Rollout {rollout.pk} was stopped: 1 of 3 tenants failed; 0 may.\n"
        f"For those that were not migrated: manage.py rollout retry {rollout.pk}\n"
        "CommandError: 2 of 3 tenants were not migrated.\n"
    )


def test_parallel__prints_each_tenant_in_one_piece(fleet: list[Tenant]) -> None:
    result = manage("migratealltenants", "users", "--executor=parallel", "--max-concurrency=3")

    for tenant in fleet:
        name = tenant.tenant_id
        assert f"Migrating tenant: {name}\n{USERS}✓ Tenant '{name}' migrated successfully.\n\n" in result.out
    assert totals(result) == "  Total: 3 tenants migrated, 0 unchanged, 0 failed, 0 skipped, 0 not started"
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("value", ["-1", "two", "1.5", "", "٣"])
def test_max_concurrency__is_a_number_or_a_percentage(plane: None, value: str) -> None:
    result = manage("migratealltenants", f"--max-concurrency={value}")

    assert result.code == 2
    expected = f"{value!r} is neither a number of tenants, such as 5, nor a percentage, such as 10%."
    assert f"argument --max-concurrency: {expected}\n" in result.err


@pytest.mark.parametrize("value", ["0", "0%"])
def test_max_concurrency__is_above_0(plane: None, value: str) -> None:
    result = manage("migratealltenants", f"--max-concurrency={value}")

    assert (result.code, result.err) == (2, "CommandError: max_concurrency is at least 1, or more than 0%.\n")


@pytest.mark.parametrize("option", ["--executor=threads", "--on-error=ignore", "--isolation-type=row", "--format=xml"])
def test_choices__are_listed_when_missed(plane: None, option: str) -> None:
    result = manage("migratealltenants", option)

    assert result.code == 2
    assert "invalid choice" in result.err


def test_isolation_type__leaves_the_others_out(fleet: list[Tenant]) -> None:
    result = manage("migratealltenants", "--isolation-type=database")

    assert "  ✓ acme - migrated successfully\n  Total: 1 tenant migrated," in result.out
    assert set(MigrationRun.objects.values_list("tenant_id", flat=True)) == {"acme"}


def test_target__reaches_the_kinds_that_have_the_app(fleet: list[Tenant], make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("common", Isolation.SHARED)

    result = manage("migratealltenants", "plans")

    assert "  ✓ common - migrated successfully\n  Total: 1 tenant migrated," in result.out
    assert result.code == 0


@pytest.mark.parametrize("arguments", [["nope"], ["orders", "0099"], ["--prune"], ["--fake", "--fake-initial"]])
def test_usage__is_told_before_a_rollout_begins(fleet: list[Tenant], arguments: list[str]) -> None:
    result = manage("migratealltenants", *arguments)

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("CommandError: ")
    assert not Rollout.objects.exists()


def test_plan__lists_each_tenant_and_changes_nothing(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("globex")
    make_tenant("acme")
    manage("migratetenant", "--tenant-id=globex")

    result = manage("migratealltenants", "users", "0001", "--plan")

    assert result.out == (
        "Planned operations for tenant 'acme':\n"
        "  users/0001_initial.py\n"
        "Planned operations for tenant 'globex':\n"
        "  Undo users/0005_address.py\n"
        "  Undo users/0004_remove_name_parts.py\n"
        "  Undo users/0003_full_name.py\n"
        "  Undo users/0002_email_unique.py\n"
    )
    assert not Rollout.objects.exists()


def test_plan__tenant_that_cannot_be_read_is_no_exit_0(fleet: list[Tenant]) -> None:
    catalog.query(catalog.tenant_dsn(fleet[0]), "DROP SCHEMA public_globex")

    result = manage("migratealltenants", "--plan")

    assert result.code == 3
    assert result.err == "✗ No plan for tenant 'globex': The schema 'public_globex' does not exist.\n"
    assert "Planned operations for tenant 'initech':\n" in result.out


def test_check__is_1_while_anything_is_pending(fleet: list[Tenant]) -> None:
    manage("migratetenant", "--tenant-id=acme")
    manage("migratetenant", "--tenant-id=globex")
    pending = manage("migratealltenants", "--check")
    manage("migratetenant", "--tenant-id=initech")
    done = manage("migratealltenants", "--check")

    assert (pending.code, pending.out, pending.err) == (1, "", "")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_plan__json_is_one_object_a_line(fleet: list[Tenant]) -> None:
    result = manage("migratealltenants", "--plan", "--format=json")

    assert [json.loads(line)["tenant_id"] for line in result.out.splitlines()] == ["acme", "globex", "initech"]


def test_format_json__is_one_run_a_line(fleet: list[Tenant], broken: Callable[..., None]) -> None:
    broken(orders="orders_failing_data")

    result = manage("migratealltenants", "--format=json")

    runs = [json.loads(line) for line in result.out.splitlines()]
    assert [(run["tenant_id"], run["state"]) for run in runs] == [
        ("acme", "succeeded"),
        ("globex", "failed"),
        ("initech", "succeeded"),
    ]
    assert result.code == 3


def test_fake_and_prune__reach_every_tenant(fleet: list[Tenant]) -> None:
    faked = manage("migratealltenants", "users", "--fake")
    for tenant in fleet:
        catalog.query(
            catalog.tenant_dsn(tenant),
            f'INSERT INTO "{tenant.schema_name}".django_migrations (app, name, applied)'
            " VALUES ('users', '0099_gone', now())",
        )
    pruned = manage("migratealltenants", "users", "--prune")

    assert faked.out.count("  users/0001_initial.py ... FAKED\n") == 3
    assert pruned.out.count("Pruning migrations:\n  Pruning users.0099_gone OK\n") == 3
    assert totals(pruned) == "  Total: 3 tenants migrated, 0 unchanged, 0 failed, 0 skipped, 0 not started"


def test_verbosity_0__prints_nothing(fleet: list[Tenant]) -> None:
    result = manage("migratealltenants", "--verbosity=0")

    assert (result.code, result.out, result.err) == (0, "", "")


def test_verbosity_2__prints_times(fleet: list[Tenant]) -> None:
    assert "  users/0001_initial.py ... OK (0." in manage("migratealltenants", "-v2").out


def test_busy_tenant__fails_and_the_others_are_done(fleet: list[Tenant]) -> None:
    run = MigrationRun.objects.create(tenant=fleet[0], requested_via="api")

    result = manage("migratealltenants")

    assert result.code == 3
    assert f"✗ Tenant 'globex' has an unfinished run: {run.pk}.\n" in result.err
    assert totals(result) == "  Total: 2 tenants migrated, 0 unchanged, 1 failed, 0 skipped, 0 not started"


def test_unreachable_server__fails_its_tenants_alone(fleet: list[Tenant], settings: Any) -> None:
    shop = settings.TENANT_DATABASES["shop"]
    gone = {**shop, "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "gone": gone}
    Tenant.objects.filter(pk="globex").update(database="gone")

    result = manage("migratealltenants", "--executor=parallel", "--max-concurrency=2")

    assert result.code == 3
    assert (
        "✗ Migrations failed for tenant 'globex': "
        "Cannot connect to the tenant's database: The database server refused the connection.\n"
    ) in result.out
    assert totals(result) == "  Total: 2 tenants migrated, 0 unchanged, 1 failed, 0 skipped, 0 not started"


@pytest.mark.parametrize("package", ["", "orders_failing_data", "orders_conflict"])
def test_red_text__never_with_exit_0(fleet: list[Tenant], broken: Callable[..., None], package: str) -> None:
    if package:
        broken(orders=package)

    result = manage("migratealltenants", "--force-color")

    red = "\x1b[31" in result.out + result.err or "✗" in result.out + result.err
    assert red == bool(package)
    assert (result.code != 0) == bool(package)


def test_plan__is_of_the_tenants_that_a_run_reaches_in_its_order(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("acme")
    make_tenant("zulu", Isolation.SHARED)

    users = manage("migratealltenants", "users", "--plan")
    every = manage("migratealltenants", "--plan")

    assert (users.code, users.err, "zulu" in users.out) == (0, "", False)
    assert [line for line in every.out.splitlines() if line.startswith("Planned")] == [
        "Planned operations for tenant 'zulu':",
        "Planned operations for tenant 'acme':",
    ]


@pytest.mark.parametrize("arguments", [["nope"], ["users", "0099"], ["--prune"], ["users", "--prune"]])
def test_plan__usage_is_told_once(fleet: list[Tenant], arguments: list[str]) -> None:
    result = manage("migratealltenants", "--plan", *arguments)

    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
