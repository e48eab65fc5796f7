"""A connection pooler in transaction mode, as small as one can be: all clients share one session with the server.

It speaks enough of PostgreSQL's protocol, version 3, for clients that use simple queries: a client has the server from
its first message until the server says that it is outside of a transaction. Startup options are the pooler's own, as
with every pooler that is told to ignore those of its clients, and so is the process id.
"""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
PROTOCOL = 196608
POOLER_PID = 1  # no server process has it
PORT = 6432


class Pooler:
    """One session with the server, and what its clients have asked of it."""

    def __init__(self, server: dict[str, Any]) -> None:
        self._turn = threading.Lock()
        self._server, self._greeting = _log_in(server)
        self.queries: list[str] = []

    def serve(self, client: socket.socket) -> None:
        with client, suppress(ConnectionError, OSError):
            length, code = struct.unpack("!ii", _exactly(client, 8))
            while code in {SSL_REQUEST, GSS_REQUEST}:
                client.sendall(b"N")
                length, code = struct.unpack("!ii", _exactly(client, 8))
            _exactly(client, length - 8)
            client.sendall(_message(b"R", struct.pack("!i", 0)) + self._greeting + _key() + _message(b"Z", b"I"))
            while self._transaction(client):
                pass

    def _transaction(self, client: socket.socket) -> bool:
        kind, body = _read(client)
        with self._turn:
            while kind != b"X":
                if kind == b"Q":
                    self.queries.append(body.rstrip(b"\0").decode())
                self._server.sendall(_message(kind, body))
                if self._answer(client) == b"I":
                    return True
                kind, body = _read(client)
        return False

    def _answer(self, client: socket.socket) -> bytes:
        while True:
            kind, body = _read(self._server)
            client.sendall(_message(kind, body))
            if kind == b"Z":
                return body

    def close(self) -> None:
        self._server.close()


def _log_in(server: dict[str, Any]) -> tuple[socket.socket, bytes]:
    """A session without a password, and the parameters that the server tells of it."""
    host, port = str(server["host"]), int(server.get("port") or 5432)
    if host.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{host}/.s.PGSQL.{port}")
    else:
        connection = socket.create_connection((host, port))
    words = ["user", server["user"], "database", server["dbname"], "client_encoding", "UTF8", ""]
    startup = struct.pack("!i", PROTOCOL) + b"".join(word.encode() + b"\0" for word in words)
    connection.sendall(struct.pack("!i", len(startup) + 4) + startup)
    greeting = b""
    while True:
        kind, body = _read(connection)
        assert kind in b"RSKZN", body
        assert kind != b"R" or body == b"\0\0\0\0", "the pooler knows no passwords"
        if kind == b"S":
            greeting += _message(kind, body)
        if kind == b"Z":
            return connection, greeting


def _key() -> bytes:
    return _message(b"K", struct.pack("!ii", POOLER_PID, 0))


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _read(connection: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(connection, 1)
    (length,) = struct.unpack("!i", _exactly(connection, 4))
    return kind, _exactly(connection, length - 4)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise ConnectionResetError
        found += piece
    return found


@contextmanager
def pooler(server: dict[str, Any], folder: Path) -> Iterator[Pooler]:
    """A pooler for psycopg2's arguments that answers at PORT in that folder, which is a socket's."""
    pool = Pooler(server)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / f".s.PGSQL.{PORT}"))
    listener.listen()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=pool.serve, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield pool
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        pool.close()
