"""Several callers at once, each with a connection of its own."""

import threading
from collections.abc import Callable
from typing import Any

from django.db import connections

from tenants.exceptions import ServiceError

GIVE_UP = 60  # seconds


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Make all the calls at the same moment; what each returned, or how it was refused. Any other exception is raised.

    Their connections are made before, so that none has a head start.
    """
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)
    raised: list[BaseException] = []

    def make(number: int) -> None:
        try:
            connections["default"].ensure_connection()
            barrier.wait(GIVE_UP)
            results[number] = calls[number]()
        except ServiceError as refusal:
            results[number] = refusal
        except BaseException as error:  # noqa: BLE001 - it would end with the thread, unseen
            raised.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=make, args=(number,), daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GIVE_UP)
    if raised:
        raise raised[0]
    assert not any(thread.is_alive() for thread in threads)
    return results
