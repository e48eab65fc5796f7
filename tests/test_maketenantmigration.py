"""`maketenantmigration`: what it writes, what it says, and what it refuses."""

import importlib
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.test import override_settings

from migrations_api.exceptions import CannotCreateMigration
from migrations_api.plan.creator import new_migration, write
from tests.command_line import Result, manage
from tests.processes import ROOT

RUFF = Path(sysconfig.get_path("scripts")) / "ruff"
Make = Callable[..., Result]


@pytest.fixture
def package(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the migrations of `orders`, which is where they are read from."""
    folder = tmp_path / f"copied_{tmp_path.name}"
    shutil.copytree(ROOT / "examples/shop/orders/migrations", folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings.MIGRATION_MODULES = {"orders": folder.name}
    return folder


MODELS = """
from django.db import models
from django.db.models.functions import Now


class Invoice(models.Model):
    created_at = models.DateTimeField(auto_now_add=True, db_default=Now())
    updated_at = models.DateTimeField(auto_now=True, db_default=Now())

    class Meta:
        db_table = "invoices"
"""


@pytest.fixture
def billing(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new app with a model and an empty package of migrations."""
    name = f"billing_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name / "migrations").mkdir(parents=True)
    for file, content in {"__init__.py": "", "migrations/__init__.py": "", "models.py": MODELS}.items():
        (tmp_path / name / file).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    installed = [*settings.INSTALLED_APPS, name]
    with override_settings(INSTALLED_APPS=installed, TENANT_APPS=[*settings.TENANT_APPS, name]):
        yield name
    del apps.all_models[name]
    apps.clear_cache()


def has_drift(app_label: str) -> bool:
    importlib.invalidate_caches()
    try:
        call_command("makemigrations", app_label, check_changes=True, verbosity=0)
    except SystemExit as error:
        return bool(error.code)
    return False


def require_formatted(path: Path) -> str:
    """Whatever the line length."""
    for length in ("88", "120"):
        for command in (["format", "--check", "--diff"], ["check", "--select=E,F,I,W"]):
            done = subprocess.run(
                [RUFF, *command, "--isolated", f"--line-length={length}", path],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return path.read_text()


def test_empty__follows_the_newest_and_drifts_from_nothing(plane: None, package: Path) -> None:
    made = manage("maketenantmigration", "orders", "clean_up", "--empty")
    assert (made.code, made.out, made.err) == (0, f"Created {package.name}/0006_clean_up.py\n", "")
    assert require_formatted(package / "0006_clean_up.py") == (
        "from django.db import migrations\n"
        "\n"
        "\n"
        "class Migration(migrations.Migration):\n"
        "    dependencies = [\n"
        '        ("orders", "0005_revenue_view"),\n'
        "    ]\n"
        "\n"
        "    operations = []\n"
    )
    assert not has_drift("orders")

    again = manage("maketenantmigration", "orders", "clean_up_more")
    assert again.out == f"Created {package.name}/0007_clean_up_more.py\n"
    assert '("orders", "0006_clean_up"),' in (package / "0007_clean_up_more.py").read_text()


@pytest.mark.parametrize("table", ["Order", "order", "orders_order"])
def test_table__changes_a_model_by_its_name_or_its_table_s(plane: None, package: Path, table: str) -> None:
    made = manage("maketenantmigration", "orders", "add_reference", f"--table={table}")
    assert (made.code, made.out, made.err) == (0, f"Created {package.name}/0006_add_reference.py\n", "")
    assert require_formatted(package / "0006_add_reference.py") == (
        "from django.db import migrations\n"
        "from migrations_api.schema import Schema\n"
        "\n"
        "\n"
        "class Migration(migrations.Migration):\n"
        "    # What keeps nobody waiting cannot be done in a transaction.\n"
        "    atomic = False\n"
        "\n"
        "    dependencies = [\n"
        '        ("orders", "0005_revenue_view"),\n'
        "    ]\n"
        "\n"
        "    operations = [\n"
        "        *Schema.table(\n"
        '            "Order",\n'
        "            lambda table: [\n"
        '                # table.string("reference", 32).nullable().index(),\n'
        "            ],\n"
        "        ),\n"
        "    ]\n"
    )
    assert not has_drift("orders")


@pytest.mark.parametrize("table", ["Invoice", "invoices"])
def test_create__makes_the_first_migration_of_a_matching_model(plane: None, billing: str, table: str) -> None:
    assert has_drift(billing)
    made = manage("maketenantmigration", billing, "initial", f"--create={table}")
    assert (made.code, made.out, made.err) == (0, f"Created {billing}/migrations/0001_initial.py\n", "")
    assert require_formatted(Path(billing) / "migrations/0001_initial.py") == (
        "from django.db import migrations\n"
        "from migrations_api.schema import Schema\n"
        "\n"
        "\n"
        "class Migration(migrations.Migration):\n"
        "    initial = True\n"
        "\n"
        "    dependencies = []\n"
        "\n"
        "    operations = [\n"
        "        *Schema.create(\n"
        '            "Invoice",\n'
        "            lambda table: [\n"
        '                table.big_increments("id"),\n'
        "                table.timestamps(),\n"
        "            ],\n"
        '            db_table="invoices",\n'
        "        ),\n"
        "    ]\n"
    )
    assert not has_drift(billing)


def test_create__a_model_that_is_still_to_be_written(db: None, package: Path) -> None:
    made = manage("maketenantmigration", "orders", "add_refunds", "--create=Refund")
    assert (made.code, made.out) == (0, f"Created {package.name}/0006_add_refunds.py\n")
    text = require_formatted(package / "0006_add_refunds.py")
    assert '"Refund",' in text
    assert "atomic" not in text


REFUSED = {
    "an app that is not installed": (
        ("nowhere", "x"),
        2,
        "App 'nowhere' is not installed; choose from: orders, plans, products, users.",
    ),
    "an app of the control plane": (
        ("auth", "x"),
        2,
        "App 'auth' is in neither TENANT_APPS nor SHARED_APPS; choose from: orders, plans, products, users.",
    ),
    "a name that is none": (
        ("orders", "add-total"),
        2,
        "'add-total' is no name of a migration: at most 247 letters, digits and underscores. Its number is put before "
        "it.",
    ),
    "a name that is taken": (
        ("orders", "order_total"),
        1,
        "App 'orders' has a migration of that name already: 0003_order_total.",
    ),
    "a table that is there": (
        ("orders", "x", "--create=orders_order"),
        2,
        "A migration of app 'orders' makes Order already. Use --table Order.",
    ),
    "a table that is nobody's": (
        ("orders", "x", "--create=invoices"),
        2,
        "'invoices' is neither a model nor a table of models.py of app 'orders'. Write the model first, or name it as "
        "it will be called, such as Invoice.",
    ),
    "a table that is not there": (
        ("orders", "x", "--table=Refund"),
        2,
        "No migration of app 'orders' makes a table of 'Refund'; those that there are: LedgerEntry, Order, OrderLine.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused__and_nothing_is_written(db: None, package: Path, case: str) -> None:
    arguments, code, message = REFUSED[case]
    before = sorted(package.iterdir())
    result = manage("maketenantmigration", *arguments)
    assert (result.code, result.out, result.err) == (code, "", f"CommandError: {message}\n")
    assert [path for path in sorted(package.iterdir()) if path.name != "__pycache__"] == before


def test_refused__several_newest_migrations(db: None, broken: Callable[..., None]) -> None:
    broken(orders="orders_conflict")
    result = manage("maketenantmigration", "orders", "x")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("CommandError: App 'orders' has more than one newest migration: ")
    assert result.err.endswith("To merge them run 'python manage.py makemigrations --merge orders'\n")


def test_refused__an_app_without_migrations(db: None, billing: str) -> None:
    shutil.rmtree(Path(billing) / "migrations")
    result = manage("maketenantmigration", billing, "x")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"CommandError: App '{billing}' has no package of migrations: make {billing}.migrations.\n"
    with override_settings(MIGRATION_MODULES={billing: None}):
        result = manage("maketenantmigration", billing, "x")
    message = f"App '{billing}' has no package of migrations, as MIGRATION_MODULES says."
    assert (result.code, result.err) == (2, f"CommandError: {message}\n")


def test_write__overwrites_nothing_and_says_where_it_could_not(package: Path) -> None:
    new = new_migration("orders", "clean_up")
    new.path.write_text("somebody's")
    with pytest.raises(CannotCreateMigration, match=r"0006_clean_up\.py cannot be written: File exists\."):
        write(new)
    assert new.path.read_text() == "somebody's"
    shutil.rmtree(package)
    with pytest.raises(CannotCreateMigration, match="No such file or directory"):
        write(new)


def test_refused__two_things_at_once(db: None) -> None:
    result = manage("maketenantmigration", "orders", "x", "--create=A", "--table=B")
    assert result.code == 2
    assert "argument --table: not allowed with argument --create" in result.err
