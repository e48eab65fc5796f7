"""Whole processes: exit codes, streams, signals."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings as configured
from django.utils import timezone

from migrations_api.models import MigrationRun, Rollout, RunStep
from tenants.models import Tenant
from tests import catalog
from tests.broken.orders_slow import GATE

ROOT = Path(__file__).resolve().parent.parent
GIVE_UP = 60  # seconds
MODULE = "from tests.settings import *\nMIGRATION_MODULES = {{'orders': 'tests.broken.{package}'}}\n"


@pytest.fixture
def start(plane: None, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start `manage.py …` on the control plane of this test, with broken migrations if a package is named."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, package: str = "", **environment: str) -> "subprocess.Popen[str]":
        settings = "tests.settings"
        if package:
            (tmp_path / "chosen_settings.py").write_text(MODULE.format(package=package))
            settings = "chosen_settings"
        process = subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "DATABASE_URL": url(configured.DATABASES["default"]["NAME"]),
                "TEST_RUN": configured.SUFFIX,
                "DJANGO_SETTINGS_MODULE": settings,
                "PYTHONPATH": str(tmp_path),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A test run that a shell has put into the background ignores SIGINT, and so would what it starts.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def url(database: str) -> str:
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{database}").geturl()


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=GIVE_UP)
    return process.returncode, out, err


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + GIVE_UP
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)


def shop() -> dict[str, Any]:
    return catalog.dsn(configured.TENANT_DATABASES["shop"])


@contextmanager
def closed_gate() -> Iterator[None]:
    """While this lasts, orders.0003_gate of orders_slow does not come to its end in a schema tenant."""
    with catalog.cursor(shop()) as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [GATE])
        yield


def sessions() -> int:
    """How many sessions stand before the gate."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'active' AND query LIKE 'DO %%try_advisory_xact%%'"
    )
    return int(catalog.query(shop(), statement, [])[0][0])


def wait_for_round() -> None:
    """Until the driver renews the lease of its rollout, as it does once in each round."""
    before = Rollout.objects.get().lease_expires_at
    wait_until(lambda: Rollout.objects.get().lease_expires_at != before)


def wait_for_stop(process: "subprocess.Popen[str]") -> str:
    """What it says on stderr once the first signal has arrived."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line == "Stopping: the step in flight is finished, nothing new is started. Once more cancels it.\n"
    return line


def applied(tenant_id: str) -> list[tuple[str, str]]:
    return catalog.migrations(shop(), f"public_{tenant_id}")


def expire_leases() -> None:
    past = timezone.now() - timedelta(seconds=1)
    MigrationRun.objects.active().update(lease_expires_at=past)
    Rollout.objects.filter(lease_expires_at__isnull=False).update(lease_expires_at=past)


def ledger(tenant_id: str) -> int:
    return int(catalog.query(shop(), f"SELECT count(*) FROM public_{tenant_id}.ledger")[0][0])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["migratetenant", "--tenant-id=unknown"], 1, "Tenant 'unknown' does not exist."),
        (["migratetenant"], 2, "the following arguments are required: --tenant-id"),
        (["migratealltenants"], 0, ""),
        (["createtenant", "--no-input"], 2, "--tenant-id and --isolation must be given"),
        (["createtenant", "--tenant-id=acme", "--name=Acme", "--database=shop"], 2, "No answer to 'Isolation'"),
    ],
)
def test_exit_code__and_errors_on_stderr(start: Any, arguments: list[str], code: int, message: str) -> None:
    returncode, out, err = ended(start(*arguments))

    assert returncode == code
    assert message in err
    assert "Traceback" not in out + err
    assert ("There are no tenants to migrate.\n" in out) == (code == 0)


@pytest.mark.parametrize(
    ("database_url", "message"),
    [
        ("", "The control plane has no tables yet. Run: python manage.py migrate\n"),
        (
            "postgresql://someone:s3cret@127.0.0.1:1/plane",
            "The control plane failed: The database server refused the connection.\n",
        ),
    ],
)
def test_control_plane__that_is_not_there_is_told(start: Any, database_url: str, message: str) -> None:
    code, out, err = ended(start("showtenants", DATABASE_URL=database_url or url("postgres")))

    assert (code, out, err) == (1, "", f"CommandError: {message}")


def test_some_failed__is_exit_3_and_pipes_get_no_control_characters(
    start: Any, make_tenant: Callable[..., Tenant]
) -> None:
    make_tenant("acme")
    make_tenant("globex")

    arguments = ("migratealltenants", "--executor=parallel")
    code, out, err = ended(start(*arguments, package="orders_failing_data", TERM="xterm-256color"))

    assert code == 3
    assert "✓ Tenant 'acme' migrated successfully." in out
    assert "✗ Migrations failed for tenant 'globex': orders.0003_channel: " in out
    assert err == (
        "1 × ValueError in orders.0003_channel\n"
        f"For those that were not migrated: manage.py rollout retry {Rollout.objects.get().pk}\n"
        "CommandError: 1 of 2 tenants was not migrated.\n"
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out + err)


def test_table__piped_has_no_control_characters(start: Any, make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("acme")

    _, out, err = ended(start("showtenants", FORCE_COLOR="1", TERM="xterm-256color"))

    assert "acme" in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out + err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop__finishes_the_step_and_lists_the_rest(
    start: Any, make_tenant: Callable[..., Tenant], number: int
) -> None:
    make_tenant("acme")
    with closed_gate():
        process = start("migratetenant", "--tenant-id=acme", package="orders_slow")
        wait_until(sessions)
        process.send_signal(number)
        wait_for_stop(process)

    code, out, err = ended(process)

    assert code == 1
    assert "  orders/0003_gate.py ... OK\n" in out
    assert err.startswith("CommandError: Stopped migrating tenant 'acme'. Not started:\n  orders/0004_note.py\n")
    run = MigrationRun.objects.get()
    assert (run.state, run.error_code) == ("canceled", "canceled")
    done = [str(step) for step in run.steps.filter(state="done")]
    assert done[-1] == "orders.0003_gate"
    assert sorted(f"{app}.{name}" for app, name in applied("acme")) == sorted(done)
    assert not run.steps.exclude(state__in=["done", "pending"]).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("executor", "busy"), [("sequential", 1), ("parallel", 2)])
def test_stop__of_a_rollout_tells_stopped_from_not_started(
    start: Any, make_tenant: Callable[..., Tenant], executor: str, busy: int, number: int
) -> None:
    tenants = [make_tenant(name).tenant_id for name in ("acme", "globex", "initech")]
    arguments = ("migratealltenants", f"--executor={executor}", "--max-concurrency=2")
    with closed_gate():
        process = start(*arguments, package="orders_slow")
        wait_until(lambda: sessions() == busy)
        process.send_signal(number)
        wait_for_stop(process)
        if executor == "parallel":
            wait_until(lambda: Rollout.objects.get().state == "canceling")
            # The round that cancels the rollout may begin just after its state was read; the workers are told in it.
            wait_for_round()
            wait_for_round()

    code, out, err = ended(process)

    assert code == 3
    lines = [f"  - {name} - stopped half-way\n" for name in tenants[:busy]]
    lines += [f"  - {name} - not started\n" for name in tenants[busy:]]
    assert all(line in out for line in lines)
    assert out.endswith(
        f"  Total: 0 tenants migrated, 0 unchanged, 0 failed, 0 skipped, {3 - busy} not started, "
        f"{busy} stopped half-way\n"
    )
    rollout = Rollout.objects.get()
    assert err == (
        f"For those that were not migrated: manage.py rollout retry {rollout.pk}\n"
        "CommandError: 3 of 3 tenants were not migrated.\n"
    )
    assert rollout.state == "canceled"
    assert set(MigrationRun.objects.values_list("state", flat=True)) == {"canceled"}
    assert all(("orders", "0003_gate") in applied(name) for name in tenants[:busy])
    assert all(("orders", "0004_note") not in applied(name) for name in tenants[:busy])
    assert all(catalog.tables(shop(), f"public_{name}") == set() for name in tenants[busy:])


@pytest.mark.parametrize(("executor", "busy"), [("sequential", 1), ("parallel", 2)])
def test_second_stop__cancels_the_statement(
    start: Any, make_tenant: Callable[..., Tenant], executor: str, busy: int
) -> None:
    tenants = [make_tenant(name).tenant_id for name in ("acme", "globex")]
    with closed_gate():
        process = start("migratealltenants", f"--executor={executor}", package="orders_slow")
        wait_until(lambda: sessions() == busy)
        process.send_signal(signal.SIGINT)
        wait_for_stop(process)
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)

    assert code == 3
    assert err.startswith("Canceling the statement that is running.\n")
    assert f", {busy} failed, 0 skipped, {2 - busy} not started\n" in out
    failed = MigrationRun.objects.filter(state="failed")
    assert {(run.failed_step, run.sqlstate) for run in failed} == {("orders.0003_gate", "57014")}
    assert failed.count() == busy
    assert all("orders_parcel" not in catalog.tables(shop(), f"public_{name}") for name in tenants[:busy])


def test_kill__then_the_same_command_again(start: Any, make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("acme")
    command = ("migratetenant", "--tenant-id=acme")
    with closed_gate():
        process = start(*command, package="orders_slow")
        wait_until(sessions)
        wait_until(lambda: RunStep.objects.filter(state="running").exists())
        process.kill()
        ended(process)
        wait_until(lambda: not sessions())

    at_once, _, reason = ended(start(*command, package="orders_slow"))
    expire_leases()
    code, out, _ = ended(start(*command, package="orders_slow"))

    assert (at_once, code) == (4, 0)
    assert "has an unfinished run" in reason
    assert "  orders/0003_gate.py ... OK\n" in out
    first, second = MigrationRun.objects.order_by("pk")
    assert (first.state, first.error_code, first.failed_step) == ("failed", "worker_lost", "orders.0003_gate")
    assert second.state == "succeeded"
    assert ledger("acme") == 1


@pytest.mark.parametrize("executor", ["sequential", "parallel"])
def test_kill__of_a_rollout_then_the_same_command_again(
    start: Any, make_tenant: Callable[..., Tenant], executor: str
) -> None:
    tenants = [make_tenant(name).tenant_id for name in ("acme", "globex", "initech")]
    command = ("migratealltenants", f"--executor={executor}", "--max-concurrency=2")
    with closed_gate():
        process = start(*command, package="orders_slow")
        wait_until(lambda: sessions() == (2 if executor == "parallel" else 1))
        process.kill()
        process.wait(GIVE_UP)
        if executor == "sequential":
            wait_until(lambda: not sessions())
    ended(process)  # and its workers, who finish the step that they are in

    expire_leases()
    code, out, _ = ended(start(*command, package="orders_slow"))

    assert code == 0
    assert "  Total: 3 tenants migrated, 0 unchanged, 0 failed, 0 skipped, 0 not started\n" in out
    assert [ledger(name) for name in tenants] == [1, 1, 1]
    assert all(("orders", "0004_note") in applied(name) for name in tenants)
    assert not MigrationRun.objects.active().exists()
    assert set(Rollout.objects.values_list("state", flat=True)) == {"failed", "succeeded"}


def test_pipe__that_nobody_reads_fails_no_migration(start: Any, make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("acme")
    make_tenant("globex")
    process = start("migratealltenants")
    process.stdout.close()

    assert process.wait(GIVE_UP) == 1
    assert "Traceback" not in process.stderr.read()
    assert list(MigrationRun.objects.values_list("state", flat=True)) == ["succeeded", "succeeded"]


def test_locale__that_has_no_check_mark_ends_no_command(start: Any, make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("acme")

    code, out, err = ended(start("migratealltenants", PYTHONIOENCODING="ascii"))

    assert (code, err) == (0, "")
    assert "\\u2713 Tenant 'acme' migrated successfully.\n" in out


def test_question__that_is_interrupted_shows_no_traceback(start: Any, make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant("acme")
    assert ended(start("migratetenant", "--tenant-id=acme"))[0] == 0
    with catalog.cursor({**shop(), "options": "-c lock_timeout=0"}) as other:
        other.execute(f"BEGIN; LOCK TABLE {tenant.schema_name}.django_migrations IN ACCESS EXCLUSIVE MODE")
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND query LIKE '%%django_migrations%%'"
        )
        for _ in range(10):
            process = start("showtenants")
            wait_until(lambda: catalog.query(shop(), waiting, []))
            process.send_signal(signal.SIGINT)
            code, out, err = ended(process)
            # It waits for the lock no longer than a second, in which the signal may not have arrived.
            if "lock timeout" not in out:
                break

    assert (code, out, err) == (1, "", "CommandError: Stopped.\n")
