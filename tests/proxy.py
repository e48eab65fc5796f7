"""A TCP proxy before a PostgreSQL server: it reads what clients send, and steps in where a test has set a trap."""

import re
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
STATEMENT, SERVER_KEY, READY = b"Q", b"K", b"Z"
# The proxy looks up that often whether it was told to end.
TICK: Final = 0.2  # seconds


class Moment(StrEnum):
    """Of a statement: the server has not got it, is carrying it out, or has answered and the client does not know."""

    BEFORE = "before"
    WHILE = "while"
    AFTER = "after"


@dataclass(frozen=True, kw_only=True)
class Trap:
    """What is done at the `nth` statement that matches `pattern`, of those after the first that matches `since`."""

    pattern: str = ""
    nth: int = 1
    since: str = ""
    moment: Moment = Moment.BEFORE
    act: "Callable[[Link], None]"


class Link:
    """One client's connection, and the proxy's own one with the server on its behalf."""

    def __init__(self, client: socket.socket, server: socket.socket, proxy: "Proxy") -> None:
        self.backend_pid = 0
        self._client, self._server, self._proxy = client, server, proxy
        self._from_client, self._from_server = b"", b""
        self._is_started = False
        self._sprung: Trap | None = None
        self._dark = False

    def cut(self) -> None:
        """Both ends see that the connection is gone."""
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def black_hole(self) -> None:
        """Nothing arrives any more, and nobody is told: as behind a firewall that has forgotten the connection."""
        self._dark = True

    def relay(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._client, selectors.EVENT_READ, self._client_says)
            selector.register(self._server, selectors.EVENT_READ, self._server_says)
            while not self._proxy.is_closed:
                if self._dark:
                    self._proxy.closed.wait(TICK)
                    continue
                for key, _ in selector.select(TICK):
                    try:
                        data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    except OSError:
                        data = b""
                    if not data:
                        return
                    key.data(data)

    def _client_says(self, data: bytes) -> None:
        self._from_client += data
        while message := self._next_of_client():
            if message[:1] != STATEMENT or not self._is_started:
                self._send(self._server, message)
                continue
            trap = self._proxy.sprung_by(message[5:-1].decode(errors="replace"))
            if trap and trap.moment == Moment.BEFORE:
                trap.act(self)
            if not self._dark:
                self._send(self._server, message)
            if trap and trap.moment == Moment.WHILE:
                trap.act(self)
            if trap and trap.moment == Moment.AFTER:
                self._sprung = trap

    def _next_of_client(self) -> bytes:
        head = 1 if self._is_started else 0
        message, self._from_client = _cut_off(self._from_client, head)
        if message and not self._is_started:
            (code,) = struct.unpack("!I", message[4:8])
            if code in {SSL_REQUEST, GSS_REQUEST}:
                self._send(self._client, b"N")
                return self._next_of_client()
            self._is_started = code != CANCEL_REQUEST
            if self._is_started:
                self._send(self._server, message)
                return self._next_of_client()
        return message

    def _server_says(self, data: bytes) -> None:
        self._from_server += data
        while True:
            message, self._from_server = _cut_off(self._from_server, 1)
            if not message:
                return
            if message[:1] == SERVER_KEY:
                (self.backend_pid,) = struct.unpack("!I", message[5:9])
            if message[:1] == READY and self._sprung:
                trap, self._sprung = self._sprung, None
                trap.act(self)
            if not self._sprung and not self._dark:
                self._send(self._client, message)

    @staticmethod
    def _send(end: socket.socket, data: bytes) -> None:
        with suppress(OSError):
            end.sendall(data)


def _cut_off(data: bytes, head: int) -> tuple[bytes, bytes]:
    """The first whole message, and the rest; the length stands behind a head of so many bytes."""
    if len(data) < head + 4:
        return b"", data
    end = head + struct.unpack("!I", data[head : head + 4])[0]
    return (data[:end], data[end:]) if len(data) >= end else (b"", data)


class Proxy:
    """`mode` is what becomes of new connections: relayed, refused, cut at once, or accepted and never answered."""

    def __init__(self, server: dict[str, Any]) -> None:
        self._server = server
        self.closed = threading.Event()
        self.mode = "relay"
        self.statements: list[str] = []
        self._traps: list[Trap] = []
        self._lock = threading.Lock()
        self._links: set[Link] = set()
        self._threads: list[threading.Thread] = []
        self._listener = self._listen(0)

    @property
    def is_closed(self) -> bool:
        return self.closed.is_set()

    @property
    def settings(self) -> dict[str, Any]:
        """Django's connection settings of the server, by way of the proxy."""
        options = {
            key: value for key, value in self._server.get("OPTIONS", {}).items() if key not in {"host", "sslmode"}
        }
        options |= {"sslmode": "disable", "gssencmode": "disable"}
        return {**self._server, "HOST": "127.0.0.1", "PORT": str(self.port), "OPTIONS": options}

    def set(self, *traps: Trap) -> None:
        """Each springs once."""
        with self._lock:
            self._traps, self.statements = list(traps), []

    def sprung_by(self, statement: str) -> Trap | None:
        with self._lock:
            self.statements.append(statement)
            for trap in self._traps:
                if _matches(self.statements, trap):
                    self._traps.remove(trap)
                    return trap
        return None

    @property
    def is_sprung(self) -> bool:
        return not self._traps

    def refuse(self) -> None:
        """Nobody listens, and what was connected is cut."""
        # Otherwise whoever waits in accept() would still be connected with.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def hush(self) -> None:
        """Whoever connects gets no answer any more, and what was connected is cut."""
        self.mode = "silent"
        self.cut()

    def listen(self) -> None:
        self._listener = self._listen(self.port)
        self._run(self._accept)

    def cut(self) -> None:
        for link in list(self._links):
            link.cut()

    def __enter__(self) -> "Proxy":
        self._run(self._accept)
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed.set()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        listener.settimeout(TICK)
        self.port: int = listener.getsockname()[1]
        return listener

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        listener = self._listener
        while not self.is_closed:
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:  # it was closed
                return
            client.setblocking(True)
            self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with closing(client):
            if self.mode == "silent":
                self.closed.wait()
            if self.mode != "relay":
                return
            with closing(self._connect()) as server:
                link = Link(client, server, self)
                self._links.add(link)
                link.relay()
                self._links.discard(link)

    def _connect(self) -> socket.socket:
        host = self._server.get("HOST") or self._server.get("OPTIONS", {}).get("host") or "localhost"
        port = int(self._server.get("PORT") or 5432)
        if str(host).startswith("/"):
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.connect(str(Path(host) / f".s.PGSQL.{port}"))
            return server
        return socket.create_connection((host, port))


def _matches(statements: list[str], trap: Trap) -> bool:
    """Whether the last of the statements is the one that the trap waits for."""
    counted = statements
    if trap.since:
        first = next((place for place, each in enumerate(statements) if re.search(trap.since, each)), None)
        counted = [] if first is None else statements[first + 1 :]
    if not counted or not re.search(trap.pattern, counted[-1]):
        return False
    return sum(bool(re.search(trap.pattern, each)) for each in counted) == trap.nth


@contextmanager
def proxy(server: dict[str, Any]) -> Iterator[Proxy]:
    with Proxy(server) as proxy:
        yield proxy
