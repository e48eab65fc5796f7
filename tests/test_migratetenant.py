import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.conf import settings as configured

from migrations_api.executor.lock import lock_key
from migrations_api.models import MigrationRun, RunStep
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.command_line import manage
from tests.roles import role

STEPS = [
    "users/0001_initial.py",
    "products/0001_initial.py",
    "orders/0001_initial.py",
    "orders/0002_ledger_entry.py",
    "orders/0003_order_total.py",
    "orders/0004_status_index.py",
    "orders/0005_revenue_view.py",
    "products/0002_seed_categories.py",
    "products/0003_price_check.py",
    "products/0004_labels.py",
    "products/0005_label_to_tag.py",
    "users/0002_email_unique.py",
    "users/0003_full_name.py",
    "users/0004_remove_name_parts.py",
    "users/0005_address.py",
]
RED = "\x1b[31"
HEAD = "Running migrations for tenant: Acme\nOperations to perform:\n"
DONE = "Migrations completed successfully for tenant 'acme'.\n"


def applied(tenant: Tenant) -> list[tuple[str, str]]:
    return catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)


def tables(tenant: Tenant) -> set[str]:
    return catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name)


def test_migratetenant__prints_each_step(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant(name="ACME Corporation")

    result = manage("migratetenant", "--tenant-id=acme")

    assert result.out == (
        "Running migrations for tenant: ACME Corporation\n"
        "Operations to perform:\n"
        "  Apply all migrations: users, products, orders\n"
        "Running migrations:\n" + "".join(f"  {step} ... OK\n" for step in STEPS) + DONE
    )
    assert (result.code, result.err) == (0, "")


def test_migratetenant__nothing_to_do(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant()
    manage("migratetenant", "--tenant-id=acme")

    result = manage("migratetenant", "--tenant-id=acme")

    assert result.out == (
        f"{HEAD}  Apply all migrations: users, products, orders\nRunning migrations:\n  No migrations to apply.\n{DONE}"
    )
    assert (result.code, result.err) == (0, "")


def test_migratetenant__shared_tenant_gets_shared_apps(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant(isolation=Isolation.SHARED)

    result = manage("migratetenant", "--tenant-id=acme")

    assert "  Apply all migrations: plans\n" in result.out
    assert result.code == 0


def test_plan__lists_steps_and_changes_nothing(tenant: Tenant) -> None:
    before = catalog.fingerprint(catalog.tenant_dsn(tenant))

    result = manage("migratetenant", "--tenant-id=acme", "--plan")

    assert result.out == "Planned operations for tenant 'acme':\n" + "".join(f"  {step}\n" for step in STEPS)
    assert (result.code, result.err) == (0, "")
    assert catalog.fingerprint(catalog.tenant_dsn(tenant)) == before
    assert not MigrationRun.objects.exists()


def test_plan__empty_and_backwards(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant()
    manage("migratetenant", "--tenant-id=acme")

    empty = manage("migratetenant", "--tenant-id=acme", "--plan")
    backwards = manage("migratetenant", "--tenant-id=acme", "orders", "0003", "--plan")

    assert empty.out == "Planned operations for tenant 'acme':\n  No planned migration operations.\n"
    assert backwards.out == (
        "Planned operations for tenant 'acme':\n"
        "  Undo orders/0005_revenue_view.py\n"
        "  Undo orders/0004_status_index.py\n"
    )


def test_plan__names_migrations_of_newer_code(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    manage("migratetenant", "--tenant-id=acme")
    record(tenant, "orders", "0099_future")

    plan = manage("migratetenant", "--tenant-id=acme", "--plan")
    run = manage("migratetenant", "--tenant-id=acme")

    line = "  Applied, but unknown to this code (the tenant is ahead): orders.0099_future\n"
    assert line in plan.out
    assert line in run.out


def record(tenant: Tenant, app_label: str, name: str) -> None:
    catalog.query(
        catalog.tenant_dsn(tenant),
        f'INSERT INTO "{tenant.schema_name}".django_migrations (app, name, applied) VALUES (%s, %s, now())',
        [app_label, name],
    )


def test_plan__json_has_the_digest_that_plan_digest_takes(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant()

    plan = json.loads(manage("migratetenant", "--tenant-id=acme", "--plan", "--format=json").out)
    result = manage("migratetenant", "--tenant-id=acme", f"--plan-digest={plan['plan_digest']}")

    assert plan["tenant_id"] == "acme"
    assert [f"{step['app_label']}/{step['name']}.py" for step in plan["steps"]] == STEPS
    assert result.code == 0


def test_plan_digest__another_plan_changes_nothing(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    plan = json.loads(manage("migratetenant", "--tenant-id=acme", "users", "--plan", "--format=json").out)

    result = manage("migratetenant", "--tenant-id=acme", f"--plan-digest={plan['plan_digest']}")

    assert result.code == 5
    assert "The plan of tenant 'acme' has changed" in result.err
    assert tables(tenant) == set()


def test_check__tells_by_exit_code_alone(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()

    pending = manage("migratetenant", "--tenant-id=acme", "--check")
    assert tables(tenant) == set()
    manage("migratetenant", "--tenant-id=acme")
    done = manage("migratetenant", "--tenant-id=acme", "--check")

    assert (pending.code, pending.out, pending.err) == (1, "", "")
    assert (done.code, done.out, done.err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        (["users"], "Apply all migrations: users"),
        (["users", "0002"], "Target specific migration: 0002_email_unique, from users"),
        (["users", "zero"], "Unapply all migrations: users"),
    ],
)
def test_target__is_named_as_django_does(make_tenant: Callable[..., Tenant], arguments: list[str], target: str) -> None:
    make_tenant()

    result = manage("migratetenant", "--tenant-id=acme", *arguments)

    assert result.out.startswith(f"{HEAD}  {target}\nRunning migrations:\n")
    assert (result.code, result.err) == (0, "")


def test_target__backwards_to_zero_undoes_the_app_and_what_needs_it(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    manage("migratetenant", "--tenant-id=acme")

    result = manage("migratetenant", "--tenant-id=acme", "products", "zero")

    assert "  Undoing orders/0001_initial.py ... OK\n" in result.out
    assert "  Undoing products/0001_initial.py ... OK\n" in result.out
    assert {app_label for app_label, _ in applied(tenant)} == {"users"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "App 'nope' is not installed; choose from: orders, products, users."),
        (["plans"], "App 'plans' is not one of the tenant's apps; choose from: orders, products, users."),
        (["orders", "0099"], "Cannot find a migration matching '0099' from app 'orders'."),
        (["orders", "000"], "More than one migration matches '000' in app 'orders'. Please be more specific."),
        (["--prune"], "Migrations can be pruned only when an app is specified."),
        (["orders", "--prune", "--fake"], "Pruning takes an app and nothing else."),
        (["--fake", "--fake-initial"], "Choose one of fake and fake-initial."),
    ],
)
def test_usage__is_told_before_a_run_begins(
    make_tenant: Callable[..., Tenant], arguments: list[str], message: str
) -> None:
    make_tenant()

    result = manage("migratetenant", "--tenant-id=acme", *arguments)

    assert (result.code, result.out, result.err) == (2, "", f"CommandError: {message}\n")
    assert not MigrationRun.objects.exists()


def test_fake__records_without_running(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()

    result = manage("migratetenant", "--tenant-id=acme", "--fake")

    assert "".join(f"  {step} ... FAKED\n" for step in STEPS) in result.out
    assert tables(tenant) == {"django_migrations"}
    assert set(RunStep.objects.values_list("state", flat=True)) == {"faked"}


def test_fake_initial__takes_tables_that_are_there(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    manage("migratetenant", "--tenant-id=acme", "users", "0001")
    manage("migratetenant", "--tenant-id=acme", "users", "zero", "--fake")

    result = manage("migratetenant", "--tenant-id=acme", "--fake-initial")

    assert "  users/0001_initial.py ... FAKED\n  products/0001_initial.py ... OK\n" in result.out
    assert result.code == 0
    assert len(applied(tenant)) == len(STEPS)


def test_prune__names_what_it_forgets(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    manage("migratetenant", "--tenant-id=acme")
    record(tenant, "orders", "0099_gone")

    first = manage("migratetenant", "--tenant-id=acme", "orders", "--prune")
    second = manage("migratetenant", "--tenant-id=acme", "orders", "--prune")

    head = "Running migrations for tenant: Acme\nPruning migrations:\n"
    assert first.out == f"{head}  Pruning orders.0099_gone OK\n{DONE}"
    assert second.out == f"{head}  No migrations to prune.\n{DONE}"
    assert ("orders", "0099_gone") not in applied(tenant)


def test_run_syncdb__creates_tables_of_apps_without_migrations(
    make_tenant: Callable[..., Tenant], settings: Any
) -> None:
    tenant = make_tenant()
    settings.MIGRATION_MODULES = {"users": None, "products": None, "orders": None}

    without = manage("migratetenant", "--tenant-id=acme")
    assert "users_user" not in tables(tenant)
    result = manage("migratetenant", "--tenant-id=acme", "--run-syncdb")

    assert (without.code, result.code) == (0, 0)
    assert {"users_user", "products_product", "orders_order"} <= tables(tenant)


def test_no_input__is_accepted(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant()

    assert manage("migratetenant", "--tenant-id=acme", "users", "--no-input").code == 0
    assert manage("migratetenant", "--tenant-id=acme", "users", "--noinput").code == 0


@pytest.mark.parametrize(("arguments", "code"), [([], 1), (["--skip-checks"], 0)])
def test_skip_checks__lets_an_error_of_the_checks_pass(
    make_tenant: Callable[..., Tenant], settings: Any, arguments: list[str], code: int
) -> None:
    make_tenant()
    settings.TENANT_SCHEMA_TEMPLATE = "nothing"

    result = manage("migratetenant", "--tenant-id=acme", *arguments)

    assert result.code == code
    assert ("tenants.E005" in result.err) == bool(code)


def test_verbosity__0_prints_nothing_and_2_the_times(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant()

    silent = manage("migratetenant", "--tenant-id=acme", "users", "0001", "-v0")
    timed = manage("migratetenant", "--tenant-id=acme", "users", "0002", "--verbosity=2")

    assert (silent.code, silent.out, silent.err) == (0, "", "")
    assert "  users/0002_email_unique.py ... OK (0." in timed.out


def test_format_json__is_the_run_and_nothing_else(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant()

    result = manage("migratetenant", "--tenant-id=acme", "--format=json")

    run = json.loads(result.out)
    assert (run["tenant_id"], run["state"], run["requested_via"]) == ("acme", "succeeded", "command")
    assert [f"{step['app_label']}/{step['name']}.py" for step in run["steps"]] == STEPS
    assert result.err == ""


def test_unknown_tenant__is_told_what_to_do(plane: None) -> None:
    result = manage("migratetenant", "--tenant-id=unknown")

    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "CommandError: Tenant 'unknown' does not exist.\nPlease create one with the tenant id 'unknown' first.\n"
    )


@pytest.mark.parametrize("command", ["migratetenant", "showtenantmigrations", "deletetenant"])
@pytest.mark.parametrize("tenant_id", ["", "a\0b", "\x1b[31macme", "a" * 10_000, "ACME", "a' OR 1=1", "caf\udce9"])
def test_tenant_id__that_cannot_be_one_is_a_usage_error(plane: None, command: str, tenant_id: str) -> None:
    result = manage(command, f"--tenant-id={tenant_id}")

    assert (result.code, result.out) == (2, "")
    assert "is not a tenant id: use 1 to 63 lower-case letters, digits and hyphens" in result.err
    assert result.err.replace("\n", "").isprintable()
    assert len(result.err) < 2_000


@pytest.mark.parametrize("command", ["migratetenant", "showtenantmigrations", "deletetenant"])
def test_tenant_id__is_required(plane: None, command: str) -> None:
    result = manage(command)

    assert (result.code, result.out) == (2, "")
    assert "the following arguments are required: --tenant-id" in result.err


@pytest.fixture
def closed_port(make_tenant: Callable[..., Tenant], settings: Any) -> Tenant:
    """A tenant whose server is gone."""
    tenant = make_tenant()
    gone = {**configured.TENANT_DATABASES["shop"], "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    settings.TENANT_DATABASES = {**configured.TENANT_DATABASES, "gone": gone}
    Tenant.objects.update(database="gone")
    return tenant


def test_unreachable__is_tried_again_then_told(closed_port: Tenant) -> None:
    result = manage("migratetenant", "--tenant-id=acme")

    assert result.code == 1
    assert result.out.startswith("Running migrations for tenant: Acme\n  Trying again in 0.")
    assert result.err == (
        "CommandError: Migrations failed for tenant 'acme': "
        "Cannot connect to the tenant's database: The database server refused the connection.\n"
    )
    assert MigrationRun.objects.get().error_code == "unreachable"


@pytest.mark.parametrize("arguments", [["--plan"], ["--check"]])
def test_unreachable__a_question_is_answered_at_once(closed_port: Tenant, arguments: list[str]) -> None:
    result = manage("migratetenant", "--tenant-id=acme", *arguments)

    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "CommandError: Cannot connect to the tenant's database: The database server refused the connection.\n"
    )


def test_wrong_password__is_not_shown(make_tenant: Callable[..., Tenant], poor: str, settings: Any) -> None:
    make_tenant()
    Tenant.objects.update(database="poor")
    servers = settings.TENANT_DATABASES
    settings.TENANT_DATABASES = {**servers, "poor": {**servers["poor"], "PASSWORD": "wr0ng/p@ss"}}

    result = manage("migratetenant", "--tenant-id=acme")

    assert result.code == 1
    assert "The database server refused the service's credentials." in result.err
    assert "wr0ng" not in result.out + result.err


@pytest.fixture
def poor(plane: None, settings: Any) -> Any:
    """A role that may connect and nothing more, as the user of server `poor`."""
    with role() as poor:
        settings.TENANT_DATABASES = {**configured.TENANT_DATABASES, "poor": poor}
        yield poor["USER"]


def test_no_permission__names_user_and_place(make_tenant: Callable[..., Tenant], poor: str) -> None:
    tenant = make_tenant()
    Tenant.objects.update(database="poor")

    result = manage("migratetenant", "--tenant-id=acme")

    assert result.code == 1
    assert result.err == (
        f"CommandError: Migrations failed for tenant 'acme': The user '{poor}' does not have permission to use "
        f"schema 'public_acme' of database '{configured.SHOP}' on server 'poor'.\n"
    )
    assert tables(tenant) == set()


def test_unprovisioned__is_an_error(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    catalog.query(catalog.tenant_dsn(tenant), "DROP SCHEMA public_acme")

    result = manage("migratetenant", "--tenant-id=acme")

    assert result.code == 1
    assert f"The schema 'public_acme' of database '{configured.SHOP}' on server 'shop' does not exist." in result.err


@pytest.mark.parametrize("arguments", [[], ["--plan"], ["orders"]])
def test_conflict__is_detected_before_anything_starts(
    make_tenant: Callable[..., Tenant], broken: Callable[..., None], arguments: list[str]
) -> None:
    tenant = make_tenant()
    broken(orders="orders_conflict")

    result = manage("migratetenant", "--tenant-id=acme", *arguments)

    assert result.code == 1
    assert (
        "Conflicting migrations detected; multiple leaf nodes in the migration graph: "
        "(0003_channel, 0003_note in orders).\n"
        "To fix them run 'python manage.py makemigrations --merge'\n"
    ) in result.err
    assert tables(tenant) == set()


def test_missing_dependency__is_named(make_tenant: Callable[..., Tenant], broken: Callable[..., None]) -> None:
    tenant = make_tenant()
    broken(orders="orders_missing_dependency")

    result = manage("migratetenant", "--tenant-id=acme")

    assert result.code == 1
    assert "'users', '0099_missing'" in result.err
    assert tables(tenant) == set()


def test_irreversible__is_refused_before_anything_is_undone(
    make_tenant: Callable[..., Tenant], broken: Callable[..., None]
) -> None:
    tenant = make_tenant()
    broken(orders="orders_irreversible")
    manage("migratetenant", "--tenant-id=acme")
    before = applied(tenant)

    result = manage("migratetenant", "--tenant-id=acme", "orders", "zero")

    assert result.code == 1
    assert "These migrations cannot be undone: orders.0003_ship_paid." in result.err
    assert applied(tenant) == before


def test_failing_step__is_marked_and_named(make_tenant: Callable[..., Tenant], broken: Callable[..., None]) -> None:
    make_tenant("globex")
    broken(orders="orders_failing_data")

    result = manage("migratetenant", "--tenant-id=globex")

    assert result.code == 1
    assert result.out.endswith("  orders/0003_channel.py ... FAILED\n")
    assert result.err.startswith(
        "CommandError: Migrations failed for tenant 'globex': orders.0003_channel: ValueError: "
    )


def test_failing_step__not_atomic_leaves_the_tenant_between_two(
    make_tenant: Callable[..., Tenant], broken: Callable[..., None]
) -> None:
    make_tenant("globex")
    broken(orders="orders_failing_nonatomic")

    result = manage("migratetenant", "--tenant-id=globex")

    assert result.code == 1
    assert result.err == (
        "CommandError: Migrations failed for tenant 'globex': orders.0003_archive: "
        "ValueError: an order cannot be archived (the tenant stands between two migrations)\n"
    )
    assert MigrationRun.objects.get().state == "partial"


def test_failing_step__json_is_the_run_all_the_same(
    make_tenant: Callable[..., Tenant], broken: Callable[..., None]
) -> None:
    make_tenant("globex")
    broken(orders="orders_unique_violation")

    result = manage("migratetenant", "--tenant-id=globex", "--format=json")

    run = json.loads(result.out)
    assert result.code == 1
    assert (run["state"], run["failed_step"], run["sqlstate"]) == ("failed", "orders.0003_import_users", "23505")
    assert "a@b.c" not in result.out + result.err


def test_locked__names_the_holder(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    key = lock_key(configured.SHOP, tenant.schema_name)
    with catalog.cursor({**catalog.tenant_dsn(tenant), "application_name": "a colleague"}) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [key])
        result = manage("migratetenant", "--tenant-id=acme")

    assert result.code == 4
    assert "Schema 'public_acme' of database" in result.err
    assert "is being migrated by 'a colleague'" in result.err


def test_unfinished_run__says_when_to_try_again(make_tenant: Callable[..., Tenant]) -> None:
    run = MigrationRun.objects.create(tenant=make_tenant(), requested_via="command")

    result = manage("migratetenant", "--tenant-id=acme")

    assert result.code == 4
    assert result.err == (
        f"CommandError: Tenant 'acme' has an unfinished run: {run.pk}.\n"
        "What a dead process left is settled 30 seconds after its end; then try again.\n"
    )


def test_waiting_for_a_lock__is_not_red_when_it_ends_well(make_tenant: Callable[..., Tenant], settings: Any) -> None:
    """A step that is tried again has not failed: red text and exit 0 never come together."""
    settings.TENANT_MIGRATIONS = {"lock_timeout": 0.1, "backoff": 0.5, "attempts": 5}
    tenant = make_tenant()
    manage("migratetenant", "--tenant-id=acme", "users", "0001")

    with catalog.cursor(catalog.tenant_dsn(tenant)) as blocker, ThreadPoolExecutor() as pool:
        blocker.execute("BEGIN; LOCK TABLE public_acme.users_user")
        pool.submit(release_once_a_run_waits, blocker)
        result = manage("migratetenant", "--tenant-id=acme", "users", "0002", "--force-color")

    assert result.code == 0
    assert "INTERRUPTED" in result.out
    assert "FAILED" not in result.out
    assert RED not in result.out + result.err


def release_once_a_run_waits(blocker: Any) -> None:
    plane = catalog.dsn(configured.DATABASES["default"])
    for _ in range(500):
        if catalog.query(plane, "SELECT 1 FROM migrations_api_migrationrun WHERE state = 'waiting'"):
            break
        time.sleep(0.02)
    blocker.execute("ROLLBACK")


def test_failure__is_red_and_not_exit_0(make_tenant: Callable[..., Tenant], broken: Callable[..., None]) -> None:
    make_tenant("globex")
    broken(orders="orders_failing_data")

    result = manage("migratetenant", "--tenant-id=globex", "--force-color")

    assert f"{RED};1mFAILED" in result.out
    assert result.code == 1


@pytest.mark.parametrize(
    "arguments", [["--prune"], ["users", "--prune"], ["--fake", "--fake-initial"], ["users", "--prune", "--fake"]]
)
@pytest.mark.parametrize("question", ["--plan", "--check"])
def test_plan__of_what_would_not_be_run_is_a_usage_error(
    make_tenant: Callable[..., Tenant], arguments: list[str], question: str
) -> None:
    make_tenant()

    result = manage("migratetenant", "--tenant-id=acme", *arguments, question)

    assert (result.code, result.out) == (2, "")


def test_plan_digest__is_taken_in_the_quotes_of_an_etag(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant()
    digest = json.loads(manage("migratetenant", "--tenant-id=acme", "--plan", "--format=json").out)["plan_digest"]

    assert manage("migratetenant", "--tenant-id=acme", f'--plan-digest="{digest}"').code == 0


@pytest.mark.parametrize("digest", ["abc", "G" * 64, "a" * 65])
def test_plan_digest__that_cannot_be_one_is_a_usage_error(make_tenant: Callable[..., Tenant], digest: str) -> None:
    make_tenant()

    result = manage("migratetenant", "--tenant-id=acme", f"--plan-digest={digest}")

    assert result.code == 2
    assert "is not a plan_digest, which has 64 hexadecimal digits" in result.err
    assert not MigrationRun.objects.exists()


def test_wrong_password__is_tried_once(make_tenant: Callable[..., Tenant], poor: str, settings: Any) -> None:
    make_tenant()
    Tenant.objects.update(database="poor")
    servers = settings.TENANT_DATABASES
    settings.TENANT_DATABASES = {**servers, "poor": {**servers["poor"], "PASSWORD": "wrong"}}

    manage("migratetenant", "--tenant-id=acme")

    assert MigrationRun.objects.get().attempt == 1
