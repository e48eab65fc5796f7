"""Sessions that a thread keeps open from one tenant to the next, one for each database server."""

import os
import threading
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from tenants.servers import DatabaseSettings


class Keepable(Protocol):
    def is_with(self, settings: DatabaseSettings) -> bool:
        """Whether it is with that server, by those settings."""

    def close(self) -> None:
        """End it; it may be used again, and connects anew."""


S = TypeVar("S", bound=Keepable)

# A forked process must neither use nor end its parent's sessions, which dropping them would do.
_inherited: Final[list[Any]] = []


class Kept(threading.local, Generic[S]):
    """Those of one kind, of the thread that asks."""

    def __init__(self, make: Callable[[DatabaseSettings], S]) -> None:
        self._make = make
        self._owner = os.getpid()
        self._by_server: dict[str, S] = {}
        _kinds.add(self)

    def find(self, server: str, settings: DatabaseSettings) -> S:
        """The session with that server, one that is not yet connected if there is none with those settings."""
        if self._owner != os.getpid():
            _inherited.extend(self._by_server.values())
            self._owner, self._by_server = os.getpid(), {}
        found = self._by_server.get(server)
        if found is None or not found.is_with(settings):
            if found is not None:
                found.close()
            found = self._by_server[server] = self._make(settings)
        return found

    def close(self) -> None:
        for session in self._by_server.values():
            session.close()


_kinds: Final[set[Kept[Any]]] = set()


def close_kept() -> None:
    """End those of this thread, of every kind."""
    for kind in _kinds:
        kind.close()
