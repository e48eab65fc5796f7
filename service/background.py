"""`manage.py serve` in the background, for the demo: python -m service.background {start,stop} [--port 8000].

The server inherits a lock on its pid file, which the kernel releases when the last of its processes is gone; so the
number in the file is trusted only while somebody holds the lock.
"""

import argparse
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PID_FILE = ROOT / "var" / "service.pid"
LOG_FILE = ROOT / "var" / "service.log"
TIMEOUT = 60.0  # seconds


def start(port: int) -> str:
    """Start the service unless it runs; returns what to tell, and raises RuntimeError with the log when it ends."""
    PID_FILE.parent.mkdir(exist_ok=True)
    with PID_FILE.open("a+") as lock:
        if not _acquire(lock.fileno()):
            return f"The service runs on port {_noted()[1]} already; `make stop` ends it."
        _require_free(port)
        with LOG_FILE.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "manage.py", "serve", f"--port={port}"],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
        lock.truncate(0)
        lock.write(f"{process.pid} {port}")
    _wait(lambda: _is_ready(port) or process.poll() is not None)
    if process.poll() is not None or not _is_ready(port):
        raise RuntimeError(f"The service did not start:\n{LOG_FILE.read_text()[-2000:]}")
    return f"The service runs on http://127.0.0.1:{port} in the background, and logs to {LOG_FILE.relative_to(ROOT)}."


def stop() -> str:
    if not PID_FILE.exists():
        return "The service does not run."
    with PID_FILE.open("r+") as lock:
        if _acquire(lock.fileno()):
            return "The service does not run."
        os.kill(_noted()[0], signal.SIGTERM)
        if not _wait(lambda: _acquire(lock.fileno())):
            raise RuntimeError("The service does not end; it may be finishing a migration. Try again.")
    return "The service has ended."


def _noted() -> tuple[int, int]:
    process, port = PID_FILE.read_text().split()
    return int(process), int(port)


def _require_free(port: int) -> None:
    """What listens there already would answer that it is ready."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise RuntimeError(
            f"Port {port} cannot be had: {os.strerror(error.errno or 0)}. Choose another, as in `make demo PORT=8001`."
        ) from error


def _acquire(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service.background", description="The service for the demo.")
    parser.add_argument("command", choices=["start", "stop"])
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    try:
        told = start(options.port) if options.command == "start" else stop()
    except RuntimeError as error:
        sys.exit(str(error))
    sys.stdout.write(f"{told}\n")


if __name__ == "__main__":
    main()
