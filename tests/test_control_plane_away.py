"""Whoever works on runs comes to an end when the control plane is gone, whether it refuses or says nothing."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections

from migrations_api.orchestrator.coordinator import coordinate
from migrations_api.orchestrator.requests import Request, request_run
from tenants.backends.base import server_cursor
from tenants.binding import open_connection
from tenants.models import Tenant
from tenants.servers import CONNECT_TIMEOUT, KEEPALIVES, database_settings
from tests import catalog
from tests.faults import CLAIM, JOURNAL, PACKAGES, PROGRESS, THE_END, begun
from tests.forks import work_on
from tests.processes import CONF, GIVE_UP, wait_until
from tests.proxy import Link, Moment, Proxy, Trap, proxy

MakeTenant = Callable[..., Tenant]
URL = "postgresql://me@db.example/plane"
SOCKET_OPTIONS = {
    "TCP_KEEPIDLE": KEEPALIVES["keepalives_idle"],
    "TCP_KEEPINTVL": KEEPALIVES["keepalives_interval"],
    "TCP_KEEPCNT": KEEPALIVES["keepalives_count"],
    "TCP_USER_TIMEOUT": KEEPALIVES["tcp_user_timeout"],
}
LOCKED_TABLES = """
    SELECT l.relation::regclass, l.mode FROM pg_locks l JOIN pg_stat_activity a USING (pid)
     WHERE l.locktype = 'relation' AND a.datname = current_database() AND a.application_name LIKE %s
"""
_context = get_context("fork")


@pytest.fixture
def impatient(settings: Any) -> Any:
    settings.TENANT_MIGRATIONS = {**CONF, "connect_timeout": 2}
    return settings


@pytest.fixture
def control_plane(plane: None, impatient: Any) -> Iterator[Proxy]:
    database = impatient.DATABASES["default"]
    with proxy({**database, "OPTIONS": {**database["OPTIONS"], "connect_timeout": 2}}) as before:
        yield before


def by_way_of(control_plane: Proxy, do: Callable[[], object]) -> BaseProcess:
    """A process of its own, which may have workers, and which reaches the control plane through the proxy."""

    def child() -> None:
        connections.settings[DEFAULT_DB_ALIAS].update(control_plane.settings)
        do()

    connections.close_all()
    process = _context.Process(target=child)
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    """Its exit code; None if it has not come to an end."""
    process.join(GIVE_UP)
    code = process.exitcode
    process.kill()
    process.join()
    return code


def test_url__limits_how_long_a_silent_server_is_waited_for() -> None:
    assert database_settings("default", URL)["OPTIONS"] == {"connect_timeout": CONNECT_TIMEOUT, **KEEPALIVES}


def test_url__may_say_otherwise() -> None:
    options = database_settings("default", f"{URL}?connect_timeout=60&keepalives=0&tcp_user_timeout=5000")["OPTIONS"]
    assert {name: int(options[name]) for name in ("connect_timeout", "keepalives", "tcp_user_timeout")} == {
        "connect_timeout": 60,
        "keepalives": 0,
        "tcp_user_timeout": 5000,
    }


@pytest.mark.parametrize("option", SOCKET_OPTIONS)
def test_session__is_given_up_by_the_kernel_when_the_host_is_gone(control_plane: Proxy, option: str) -> None:
    number = getattr(socket, option, None)
    if number is None:
        pytest.skip("not of this system")
    with closing(open_connection(control_plane.settings)) as connection:
        connection.ensure_connection()
        with socket.socket(fileno=os.dup(connection.connection.fileno())) as ours:
            assert ours.getsockopt(socket.IPPROTO_TCP, number) == SOCKET_OPTIONS[option]


def test_session__of_a_server_whose_settings_say_nothing_is_given_up_too(control_plane: Proxy) -> None:
    given = control_plane.settings
    bare = {**given, "OPTIONS": {name: given["OPTIONS"][name] for name in ("sslmode", "gssencmode")}}
    with (
        server_cursor(bare) as cursor,
        socket.socket(fileno=os.dup(cursor.connection.fileno())) as ours,
    ):
        found = {name: ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in SOCKET_OPTIONS}
    assert found == SOCKET_OPTIONS


def test_connecting__with_a_server_that_says_nothing_is_given_up(control_plane: Proxy) -> None:
    control_plane.hush()
    with (
        closing(open_connection(control_plane.settings)) as connection,
        pytest.raises(OperationalError, match="timeout expired"),
    ):
        connection.ensure_connection()


@pytest.mark.parametrize("lose", [Proxy.refuse, Proxy.hush], ids=["refuses", "says nothing"])
@pytest.mark.parametrize("executor", ["sequential", "parallel"])
@pytest.mark.parametrize("statement", [CLAIM, PROGRESS])
def test_foreground__ends(
    make_tenant: MakeTenant, control_plane: Proxy, lose: Callable[[Proxy], None], executor: str, statement: str
) -> None:
    for tenant_id in ("acme", "globex"):
        make_tenant(tenant_id)
    control_plane.set(Trap(pattern=statement, moment=Moment.AFTER, act=lambda link: lose(control_plane)))
    process = by_way_of(control_plane, lambda: call_command("migratealltenants", executor=executor, verbosity=0))
    assert ended(process) == 1
    assert control_plane.is_sprung


@pytest.mark.parametrize("lose", [Proxy.refuse, Proxy.hush], ids=["refuses", "says nothing"])
def test_coordinator__ends_when_told_to(
    make_tenant: MakeTenant, control_plane: Proxy, lose: Callable[[Proxy], None]
) -> None:
    request_run(make_tenant(), Request(via="api"))
    told = _context.Event()
    control_plane.set(Trap(pattern=PROGRESS, moment=Moment.AFTER, act=lambda link: lose(control_plane)))
    process = by_way_of(control_plane, lambda: coordinate(should_stop=told.is_set))
    wait_until(lambda: control_plane.is_sprung)
    told.set()
    assert ended(process) == 0


@pytest.mark.parametrize("statement", [JOURNAL, THE_END])
def test_worker__waits_for_a_control_plane_that_stands_still_and_keeps_no_table_locked(
    make_tenant: MakeTenant, broken: Callable[..., None], control_plane: Proxy, statement: str
) -> None:
    """As when its server is stopped, whose kernel goes on to acknowledge what arrives."""
    broken(**PACKAGES)
    tenant = make_tenant()
    begun(tenant)
    run = request_run(tenant, Request(via="api"))
    stands, goes_on = threading.Event(), threading.Event()

    def stand(link: Link) -> None:
        stands.set()
        goes_on.wait(GIVE_UP)

    control_plane.set(Trap(pattern=statement, act=stand))
    process = by_way_of(control_plane, lambda: work_on(run.pk))
    assert stands.wait(GIVE_UP)
    held = catalog.query(catalog.tenant_dsn(tenant), LOCKED_TABLES, [f"%tenant={tenant.tenant_id}"])
    goes_on.set()
    assert ended(process) == 0
    assert held == []
    run.refresh_from_db()
    assert run.state == "succeeded"
