"""rollbacktenant, resettenant, refreshtenant, their siblings for many tenants, and --pretend."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from migrations_api.models import MigrationRun, Rollout
from tenants.models import Tenant
from tests import catalog
from tests.command_line import manage
from tests.undoing import MakeTenant, execute, look, migrate

Choose = Callable[..., None]
TENANT = "--tenant-id=acme"
WHAT = "This undoes in tenant 'acme', with the rows that go with it: users/0005_address.py."


@pytest.fixture
def acme(make_tenant: MakeTenant) -> Tenant:
    """With a last run that applied one migration."""
    tenant = make_tenant()
    migrate(tenant, "users", "0004")
    migrate(tenant, "users", "0005")
    return tenant


def type_in(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))


def test_rollbacktenant__undoes_the_last_run(acme: Tenant) -> None:
    last = MigrationRun.objects.latest("pk")

    result = manage("rollbacktenant", TENANT, "--no-input")

    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "Running migrations for tenant: Acme\n"
        "Operations to perform:\n"
        f"  Undo what run {last.pk} applied\n"
        "Running migrations:\n"
        "  Undoing users/0005_address.py ... OK\n"
        "Migrations completed successfully for tenant 'acme'.\n"
    )
    assert len(look(acme)["applied"]) == 4


def test_rollbacktenant__asks_first(acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "acme\n")
    result = manage("rollbacktenant", TENANT)
    assert (result.code, result.err) == (0, f"{WHAT}\n")
    assert result.out.startswith("Type acme to go on: Running")


@pytest.mark.parametrize(
    ("arguments", "answer", "error"),
    [
        ([], "", "Nobody is there to be asked; use --confirm=acme, or --no-input."),
        ([], "yes\n", f"{WHAT} Not confirmed; nothing was done: --confirm=acme"),
        (["--confirm=globex"], "", f"{WHAT} Not confirmed; nothing was done: --confirm=acme"),
        (["--confirm=globex", "--no-input"], "", f"{WHAT} Not confirmed; nothing was done: --confirm=acme"),
    ],
    ids=["nobody", "no", "another", "another, and nothing asked"],
)
def test_rollbacktenant__without_consent(
    acme: Tenant, monkeypatch: pytest.MonkeyPatch, arguments: list[str], answer: str, error: str
) -> None:
    before = look(acme)
    type_in(monkeypatch, answer)

    result = manage("rollbacktenant", TENANT, *arguments)

    assert result.code == 2
    assert result.err.endswith(f"CommandError: {error}\n")
    assert look(acme) == before
    assert MigrationRun.objects.filter(action="rollback").count() == 0


def test_rollbacktenant__plan(acme: Tenant) -> None:
    before = look(acme)
    result = manage("rollbacktenant", TENANT, "--steps=2", "--plan")
    assert result.out == (
        "Planned operations for tenant 'acme':\n  Undo users/0005_address.py\n  Undo users/0004_remove_name_parts.py\n"
    )
    assert look(acme) == before


def test_rollbacktenant__a_pinned_plan(acme: Tenant) -> None:
    plan = json.loads(manage("rollbacktenant", TENANT, "--plan", "--format=json").out)
    migrate(acme, "products", "0001")
    run = MigrationRun.objects.filter(app_label="users").latest("pk")

    result = manage(
        "rollbacktenant", TENANT, f"--run={run.pk}", f"--plan-digest={plan['plan_digest']}", "--confirm=acme"
    )

    assert result.code == 5


def test_rollbacktenant__when_there_is_nothing(make_tenant: MakeTenant) -> None:
    make_tenant()
    result = manage("rollbacktenant", TENANT, "--no-input")
    assert (result.code, result.err) == (
        1,
        "CommandError: No run of the tenant has applied anything that is not undone.\n",
    )


def test_rollbacktenant__pretend(acme: Tenant) -> None:
    before = look(acme)

    result = manage("rollbacktenant", TENANT, "--pretend")

    assert result.out == (
        "-- What would be run for tenant 'acme':\n"
        "\n-- Undo users.0005_address\n"
        "BEGIN;\n"
        'DROP TABLE "users_address" CASCADE;\n'
        "COMMIT;\n"
    )
    assert look(acme) == before


def test_migratetenant__pretend(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    result = manage("migratetenant", TENANT, "users", "0003", "--pretend")
    assert '\n-- users.0003_full_name\nBEGIN;\nALTER TABLE "users_user" ADD COLUMN "full_name"' in result.out
    assert "-- Python code, whose SQL depends on the rows: Raw Python operation: join_names\n" in result.out
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == set()


def test_migratetenant__pretend_as_json(acme: Tenant) -> None:
    told = json.loads(manage("migratetenant", TENANT, "users", "0004", "--pretend", "--format=json").out)
    [step] = told["steps"]
    assert step["statements"] == [{"text": 'DROP TABLE "users_address" CASCADE', "opaque": False}]
    assert told["differences"] == []


@pytest.mark.parametrize("option", ["--fake", "--fake-initial", "--run-syncdb"])
def test_migratetenant__pretend_of_what_has_no_sql(make_tenant: MakeTenant, option: str) -> None:
    make_tenant()
    result = manage("migratetenant", TENANT, "--pretend", option)
    assert result.code == 2
    assert f"leave out {option}." in result.err


def test_migratealltenants__pretend_is_for_one_tenant(plane: None) -> None:
    result = manage("migratealltenants", "--pretend")
    assert (result.code, result.err) == (2, "CommandError: The SQL is that of one tenant: migratetenant --pretend.\n")


def test_resettenant__names_what_it_undoes(acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "no\n")
    result = manage("resettenant", TENANT)
    assert result.code == 2
    assert "users/0005_address.py, users/0004_remove_name_parts.py" in result.err


def test_resettenant__takes_every_app_to_zero(acme: Tenant) -> None:
    result = manage("resettenant", TENANT, "--confirm=acme")
    assert (result.code, result.err) == (0, "")
    assert "Operations to perform:\n  Unapply all migrations\n" in result.out
    assert look(acme)["applied"] == []


def test_refreshtenant__goes_to_zero_and_forwards(acme: Tenant) -> None:
    execute(acme, "INSERT INTO users_user (email, full_name, created_at) VALUES ('a@b.c', 'Ada', now())")
    result = manage("refreshtenant", TENANT, "--no-input")
    assert (result.code, result.err) == (0, "")
    assert "  Undoing users/0001_initial.py ... OK\n" in result.out
    assert look(acme)["rows"]["users_user"] == []
    assert len(look(acme)["applied"]) == 15


@pytest.mark.parametrize(("command", "left"), [("resetalltenants", 0), ("refreshalltenants", 15)])
def test_all__asks_for_the_number_of_tenants(
    acme: Tenant, make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch, command: str, left: int
) -> None:
    other = make_tenant("globex")
    migrate(other)
    type_in(monkeypatch, "3\n")
    refused = manage(command)
    assert refused.code == 2
    assert "in 2 tenants. Not confirmed; nothing was done: --confirm=2" in refused.err

    result = manage(command, "--confirm=2")

    assert result.code == 0, result.err
    assert [len(look(tenant)["applied"]) for tenant in (acme, other)] == [left, left]


def test_all__only_those_selected(acme: Tenant, make_tenant: MakeTenant) -> None:
    other = make_tenant("globex")
    migrate(other, "users")
    assert manage("resetalltenants", "--exclude=acme", "--confirm=1").code == 0
    assert [len(look(tenant)["applied"]) for tenant in (acme, other)] == [5, 0]


def test_all__dry_run_changes_nothing(acme: Tenant) -> None:
    before = look(acme)
    result = manage("resetalltenants", "--dry-run")
    assert result.code == 0
    assert "  Wave 1, 1 tenant: acme\n" in result.out
    assert "Undo users/0005_address.py" in result.out
    assert look(acme) == before


def test_migratealltenants__rollback(acme: Tenant) -> None:
    before = look(acme)
    assert manage("migratealltenants").code == 0
    rollout = Rollout.objects.get()

    shown = manage("migratealltenants", f"--rollback={rollout.pk}", "--dry-run")
    refused = manage("migratealltenants", f"--rollback={rollout.pk}", "--confirm=2")
    result = manage("migratealltenants", f"--rollback={rollout.pk}", "--confirm=1")
    again = manage("migratealltenants", f"--rollback={rollout.pk}", "--no-input")

    assert "A rollout over 1 tenant:" in shown.out
    assert refused.code == 2
    assert (result.code, result.err) == (0, "")
    assert look(acme)["rows"].keys() == before["rows"].keys()
    assert look(acme) == before
    assert (again.code, "has been rolled back by rollout" in again.err) == (1, True)


@pytest.mark.parametrize("option", ["users", "--tenant-id=acme", "--fake", "--label=tier=free"])
def test_migratealltenants__rollback_goes_with_no_selector_and_target(plane: None, option: str) -> None:
    result = manage("migratealltenants", "--rollback=1", option)
    assert result.code == 2
    assert "--rollback takes its tenants and steps from the rollout" in result.err


def test_migratealltenants__rollback_of_what_is_not_there(plane: None) -> None:
    result = manage("migratealltenants", "--rollback=99", "--no-input")
    assert (result.code, result.err) == (1, "CommandError: Rollout 99 does not exist.\n")


def test_showtenantmigrations__names_the_run_that_applied_each(acme: Tenant) -> None:
    first, last = MigrationRun.objects.order_by("pk")
    execute(acme, "INSERT INTO django_migrations (app, name, applied) VALUES ('products', '0001_initial', now())")

    rows: list[dict[str, Any]] = json.loads(manage("showtenantmigrations", TENANT, "--format=json").out)

    runs = {f"{row['app_label']}.{row['name']}": row["run_id"] for row in rows if row["applied"]}
    assert runs == {
        "users.0001_initial": first.pk,
        "users.0002_email_unique": first.pk,
        "users.0003_full_name": first.pk,
        "users.0004_remove_name_parts": first.pk,
        "users.0005_address": last.pk,
        "products.0001_initial": None,
    }
    assert f"run {last.pk})\n" in manage("showtenantmigrations", TENANT, "users").out
