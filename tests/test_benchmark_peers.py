"""What the comparison with the peers computes without a clock, and the apps that it migrates."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import app_set
from benchmarks.peers.databases import Truth
from benchmarks.peers.processes import Command, run
from benchmarks.peers.report import Figure, best_peer, section, sql_alone, table
from benchmarks.peers.tools import pending_batch
from tenants.backends import backend_for
from tenants.models import Tenant
from tests import catalog, stock


def figure(tool: str, *seconds: float, is_peer: bool = False, **values: Any) -> Figure:
    given = {"tenants": 200, "measured": 200, "mebibytes": 80, "statements": None, "sessions": 1.0, **values}
    return Figure(tool=tool, variant="4", is_peer=is_peer, seconds=seconds, **given)


def command(code: str, cwd: Path) -> Command:
    return Command(arguments=[sys.executable, "-c", code], cwd=cwd)


def test_run__of_what_fails_ends_with_what_it_wrote(tmp_path: Path) -> None:
    code = "print('of', 'stdout', flush=True); raise SystemExit('of' + ' stderr')"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(command(code, tmp_path), bytecode=tmp_path)
    assert caught.value.__notes__ == ["The end of what it wrote:\nof stdout\nof stderr\n"]


def test_run__keeps_bytecode_whatever_this_process_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "measured.py").touch()
    run(command("import measured", tmp_path), bytecode=tmp_path / "bytecode")
    assert list((tmp_path / "bytecode").rglob("measured.*.pyc"))
    assert not (tmp_path / "__pycache__").exists()


def test_figure__is_the_median_per_tenant() -> None:
    assert figure("ours", 9.0, 2.0, 3.0).milliseconds == 15.0
    assert figure("ours", 2.0, 3.0).milliseconds == 12.5


def test_figure__of_a_part_of_the_fleet_says_what_the_whole_takes() -> None:
    loop = figure("plain migrate", 5.0, measured=5)
    assert (loop.milliseconds, loop.whole) == (1000.0, 200.0)


def test_figure__of_an_empty_fleet_is_the_process() -> None:
    start = figure("ours", 0.3, tenants=0, measured=0)
    assert (start.milliseconds, start.whole) == (300.0, 0.3)


def test_best_peer__is_the_fastest_executor_of_a_peer_and_nothing_else() -> None:
    figures = [
        figure("ours", 1.0),
        figure("theirs", 40.0, is_peer=True),
        figure("others", 20.0, is_peer=True),
        figure("SQL alone", 0.2),
    ]
    assert (best_peer(figures), sql_alone(figures)) == (100.0, 1.0)
    assert (best_peer(figures[:1]), sql_alone(figures[:1])) == (None, None)


def test_table__has_both_ratios() -> None:
    figures = [figure("ours", 0.5, statements=2.25), figure("theirs", 25.0, is_peer=True), figure("SQL alone", 0.25)]
    assert table("200 schemas, nothing to do", figures).splitlines() == [
        "200 schemas, nothing to do",
        "              ms/tenant  x best peer  x SQL alone  seconds  MiB  statements  sessions",
        "ours, 4            2.50         50.0         2.00     0.50   80         2.2      1.00",
        "theirs, 4           125         1.00          100    25.00   80                  1.00",
        "SQL alone, 4       1.25          100         1.00     0.25   80                  1.00",
    ]


def test_table__without_a_peer_or_the_sql_has_no_ratios() -> None:
    assert table("", [figure("ours", 0.5)]).splitlines()[-1].split() == ["ours,", "4", "2.50", "0.50", "80", "1.00"]


def test_section__is_what_is_appended() -> None:
    written = section("2026-11-20", ["2 processors", "Python 3.11"], "python -m benchmarks peers", ["a\nb", "c"])
    assert written == (
        "\n## 2026-11-20\n\n2 processors; Python 3.11.\n\n`python -m benchmarks peers`\n\n```\na\nb\n\nc\n```\n"
    )


def test_truth__batches_end_with_the_row_of_a_migration() -> None:
    row = "INSERT INTO \"django_migrations\" VALUES ('billing', '0008_account_closed_on');"
    truth = Truth(
        applied=2,
        dump="",
        rows=Counter(),
        statements=(
            'CREATE TABLE "django_migrations" ();',
            "CREATE TABLE a ();",
            row,
            'INSERT INTO "django_content_type";',
        ),
    )
    assert truth.batches == ['CREATE TABLE "django_migrations" ();CREATE TABLE a ();' + row, truth.statements[3]]
    assert truth.records == truth.statements[0] + row + truth.statements[3]
    assert pending_batch(truth) == truth.batches[0]


def test_app_set__is_what_it_says_and_migrates(
    tmp_path: Path, make_tenant: Callable[..., Tenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = make_tenant()
    app_set.write(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    database = backend_for(tenant).connection_settings(tenant)

    stock.migrate(database, tenant.schema_name, app_set.INSTALLED)
    changes = stock.manage(database, tenant.schema_name, app_set.INSTALLED, "makemigrations", "--check", "--dry-run")

    dsn = catalog.tenant_dsn(tenant)
    app, name, table, column = app_set.LAST
    applied = [key for key in catalog.migrations(dsn, tenant.schema_name) if key[0] in app_set.APPS]
    tables = {each for each in catalog.tables(dsn, tenant.schema_name) if each.startswith(app_set.APPS)}
    nullable = catalog.query(
        dsn,
        "SELECT is_nullable FROM information_schema.columns WHERE (table_name, column_name) = (%s, %s)",
        [table, column],
    )
    assert changes.stdout == "No changes detected\n"
    assert (len(applied), len(app_set.APPS)) == (app_set.MIGRATIONS, 4)
    assert max(key for key in applied if key[0] == app) == (app, name)
    # Three models of each app, and the table between two of them.
    assert len(tables) == 4 * (3 + 1)
    assert nullable == [("YES",)]
