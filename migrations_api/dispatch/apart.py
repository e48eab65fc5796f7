"""A question that needs the process for itself, asked from one that has other things to do.

The child is a new interpreter and no fork: whoever asks may have threads. It imports nothing of the project before
Django is set up, and so this module does not either.
"""

from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import django
from django.utils.module_loading import import_string

_context = get_context("spawn")


class NoAnswer(Exception):
    """The child did not answer in time, or ended without an answer."""


def ask_apart(function: str, arguments: Any, *, seconds: float) -> Any:
    """What `function`, a dotted path, returns of `arguments` in a process of its own, which is killed after that time.

    Both are pickled. Raises NoAnswer, or what the function raised.
    """
    parent, child = _context.Pipe()
    process = _context.Process(target=_answer, args=(child,), name="tenant-migrations apart", daemon=True)
    process.start()
    child.close()
    try:
        parent.send((function, arguments))
        if not parent.poll(seconds):
            raise NoAnswer
        raised, found = parent.recv()
    except (EOFError, OSError) as error:
        raise NoAnswer from error
    finally:
        process.kill()
        process.join()
        parent.close()
    if raised:
        raise found
    return found


def _answer(pipe: Connection) -> None:
    django.setup()
    # Only now what is in the message can be made again: rows are of models.
    function, arguments = pipe.recv()
    try:
        answer = False, import_string(function)(*arguments)
    except Exception as error:  # noqa: BLE001 - told to whoever asked
        answer = True, error
    pipe.send(answer)
