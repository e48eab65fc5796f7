import http.client
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrations_api.models import Coordinator, MigrationRun
from migrations_api.orchestrator.requests import Request, request_run
from tenants.models import Tenant
from tests.command_line import manage
from tests.processes import GIVE_UP, Process, output, processes, wait_until

Start = Callable[..., Process]


@pytest.fixture
def serve(plane: None, tmp_path: Path) -> Iterator[Start]:
    """Start `serve` on a free port and wait until it answers and a coordinator leads."""
    with processes(tmp_path) as start:

        def begin(*arguments: str) -> Process:
            process = start("serve", "--port=0", "--threads=2", *arguments)
            wait_until(lambda: "Admin" in output(process) or process.poll() is not None)
            wait_until(lambda: leader() and answers(process))
            return process

        yield begin


def leader() -> int:
    names = Coordinator.objects.filter(leading=True).order_by("-seen_at").values_list("name", flat=True)
    return int(names[0].rpartition(":")[2]) if names else 0


def port(process: Process) -> int:
    found = re.search(r"^API    http://127\.0\.0\.1:(\d+)/tenants$", output(process), re.M)
    assert found, output(process)
    return int(found[1])


def get(process: Process, path: str = "/tenants", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port(process), timeout=GIVE_UP)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def answers(process: Process) -> bool:
    return get(process).status < 500


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def web_servers(process: Process) -> list[int]:
    return [int(pid) for pid in re.findall(r"web server started as process (\d+)", output(process))]


def test_serve__answers_and_carries_out(make_tenant: Callable[..., Tenant], serve: Start) -> None:
    process = serve()
    assert f"Docs   http://127.0.0.1:{port(process)}/docs\n" in output(process)
    assert f"Admin  http://127.0.0.1:{port(process)}/admin/\n" in output(process)
    run = request_run(make_tenant(), Request(via="api"))
    wait_until(lambda: MigrationRun.objects.get(pk=run.pk).state == "succeeded")


def test_serve__what_dies_is_started_again(serve: Start) -> None:
    process = serve()
    coordinator, [web] = leader(), web_servers(process)

    os.kill(coordinator, signal.SIGKILL)
    wait_until(lambda: leader() not in {0, coordinator})
    os.kill(web, signal.SIGKILL)
    wait_until(lambda: len(web_servers(process)) == 2)
    assert answers(process)
    assert process.poll() is None


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_serve__a_signal_ends_both_and_then_itself(serve: Start, how: signal.Signals) -> None:
    process = serve()
    children = [leader(), *web_servers(process)]
    process.send_signal(how)
    assert process.wait(GIVE_UP) == 0
    assert not any(map(is_alive, children))
    assert not Coordinator.objects.exists()


def test_serve__killed_it_leaves_nobody_behind(serve: Start) -> None:
    process = serve()
    children = [leader(), *web_servers(process)]
    process.kill()
    wait_until(lambda: not any(map(is_alive, children)))


def test_serve__port_in_use_is_told_at_once(plane: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        result = manage("serve", f"--port={taken}")
    assert result.code == 1
    assert result.err == (
        f"CommandError: Cannot listen on 127.0.0.1 port {taken}: Address already in use. "
        "Choose another with --port, or end what listens there.\n"
    )


def test_serve__without_tables_says_what_to_do(plane: None, monkeypatch: Any) -> None:
    from django.db.migrations.loader import MigrationLoader
    from django.db.migrations.recorder import MigrationRecorder

    applied = MigrationRecorder.applied_migrations
    monkeypatch.setattr(
        MigrationRecorder,
        "applied_migrations",
        lambda self: {key: row for key, row in applied(self).items() if key[0] != "tenants"},
    )
    result = manage("serve", "--port=0")
    assert result.code == 1
    newest = max(name for app, name in MigrationLoader(None).disk_migrations if app == "tenants")
    assert result.err == f"CommandError: The control plane lacks tenants.{newest}. Run: python manage.py migrate\n"


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_serve__port_is_checked(plane: None, port: str) -> None:
    assert manage("serve", f"--port={port}").code == 2


def test_access_log__has_the_request_id_and_no_query(serve: Start) -> None:
    process = serve()
    response = get(process, "/tenants?search=s3cret", **{"X-Request-ID": "from-the-pipeline"})
    assert response.getheader("X-Request-ID") == "from-the-pipeline"
    wait_until(lambda: "from-the-pipeline" in output(process))
    line = next(line for line in output(process).splitlines() if "from-the-pipeline" in line)
    assert '"method": "GET", "path": "/tenants", "status": ' in line
    assert "s3cret" not in output(process)
