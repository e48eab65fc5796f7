import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

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


class Terminal:
    """A terminal that is read all the time: nobody can write more to one than its small buffer holds."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.screen = os.fdopen(slave, "w")
        self._read = b""
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        # The last writer's end of file is an error of its own on Linux.
        with suppress(OSError):
            while chunk := os.read(self.master, 4096):
                self._read += chunk

    def shown(self) -> str:
        """Everything, without control sequences, once nobody writes any more."""
        self.screen.close()
        self._reader.join()
        os.close(self.master)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._read.decode()).replace("\r", "\n")


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal that is stderr. No fixture: pytest puts its own stderr in place when a test begins."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal.screen)
    return terminal


def test_bar__counts_tenants_below_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    with with_bar(MAKE, OutputWrapper(terminal.screen), lambda: 2) as (_, emit):
        for number, tenant_id in enumerate(["acme", "globex"]):
            for event in events(number, tenant_id):
                emit(event)
    text = terminal.shown()
    assert "\n  orders/0001_initial.py ... OK\n" in text
    assert re.search(r"1/2 .*globex: orders/0001_initial.py", text)
    assert "2/2" in text


def test_bar__leaves_piped_lines_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = open_terminal(monkeypatch)
    with with_bar(MAKE, OutputWrapper(sys.stdout), lambda: 1) as (_, emit):
        for event in events(1, "acme"):
            emit(event)
    assert capsys.readouterr().out == (
        "Migrating tenant: acme\n  orders/0001_initial.py ... OK\n✓ Tenant 'acme' migrated successfully.\n\n"
    )
    assert "1/1" in terminal.shown()


def test_bar__is_away_where_stderr_is_piped(capsys: pytest.CaptureFixture[str]) -> None:
    with with_bar(MAKE, OutputWrapper(sys.stdout), lambda: 1) as (presenter, emit):
        assert emit is presenter
    assert capsys.readouterr().err == ""
