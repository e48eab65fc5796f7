import os
import pty
import re
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, TextIO

import pytest
from django.core.management.base import OutputWrapper
from django.core.management.color import no_style

from migrations_api.events import Event, RunEnded, RunPlanned, RunStarted, StepFinished, StepStarted
from migrations_api.management.presenter import FleetPresenter
from migrations_api.management.progress import with_bar

MAKE = partial(FleetPresenter, style=no_style(), verbosity=1, live=True, continues=True)


def events(run_id: int, tenant_id: str) -> Iterator[Event]:
    about: Any = {"run_id": run_id, "tenant_id": tenant_id}
    step: Any = {**about, "file": "orders/0001_initial.py", "backwards": False}
    yield RunStarted(**about, tenant_name=tenant_id)
    yield RunPlanned(**about, target="", steps=1, unknown=())
    yield StepStarted(**step)
    yield StepFinished(**step, faked=False, seconds=0.1)
    yield RunEnded(**about, state="succeeded", steps=1, error_code="", failed_step="", message="")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, TextIO]]:
    """A terminal that is stderr: the end to read from and the one to write to."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        yield master, screen
    os.close(master)


def seen(master: int) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(master, 100_000).decode()).replace("\r", "\n")


def test_bar__counts_tenants_below_whole_lines(terminal: tuple[int, TextIO]) -> None:
    master, screen = terminal
    with with_bar(MAKE, OutputWrapper(screen), 2) as (_, emit):
        for number, tenant_id in enumerate(["acme", "globex"]):
            for event in events(number, tenant_id):
                emit(event)
    text = seen(master)
    assert "\n  orders/0001_initial.py ... OK\n" in text
    assert re.search(r"1/2 .*globex: orders/0001_initial.py", text)
    assert "2/2" in text


def test_bar__leaves_piped_lines_alone(terminal: tuple[int, TextIO], capsys: pytest.CaptureFixture[str]) -> None:
    master, _ = terminal
    with with_bar(MAKE, OutputWrapper(sys.stdout), 1) as (_, emit):
        for event in events(1, "acme"):
            emit(event)
    assert capsys.readouterr().out == (
        "Migrating tenant: acme\n  orders/0001_initial.py ... OK\n✓ Tenant 'acme' migrated successfully.\n\n"
    )
    assert "1/1" in seen(master)


def test_bar__is_away_where_stderr_is_piped(capsys: pytest.CaptureFixture[str]) -> None:
    with with_bar(MAKE, OutputWrapper(sys.stdout), 1) as (presenter, emit):
        assert emit is presenter
    assert capsys.readouterr().err == ""
