"""The whole service on a port of its own, on the control plane of the test that starts it."""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import GIVE_UP, Process, output, processes, wait_until

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[str]:
    """The address of a `serve` that is ready to carry out work; `options` are those of processes()."""
    with processes(folder) as start:
        process = start("serve", "--port=0", "--threads=4", **options)
        wait_until(lambda: process.poll() is not None or _is_ready(process))
        assert process.poll() is None, output(process)
        yield _address(process)
        process.terminate()
        process.wait(GIVE_UP)


def _address(process: Process) -> str:
    found = re.search(r"^API    (http://127\.0\.0\.1:\d+)/tenants$", output(process), re.M)
    return found[1] if found else ""


def _is_ready(process: Process) -> bool:
    try:
        return bool(_address(process)) and download(f"{_address(process)}/readyz") != b""
    except (urllib.error.HTTPError, ConnectionError):
        return False


def download(url: str, token: str = "") -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=GIVE_UP) as response:  # noqa: S310
        content: bytes = response.read()
    return content


def post(url: str, token: str, body: Any) -> Any:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=GIVE_UP) as response:  # noqa: S310
        return json.loads(response.read())


def client_environment(url: str, token: str, **more: str) -> dict[str, str]:
    """What a client's process sees: no variable of ours but these."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    return {**kept, "SERVICE_URL": url, "API_TOKEN": token, **more}
