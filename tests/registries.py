"""How often models are rendered."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db.migrations.state import StateApps


@contextmanager
def registries() -> Iterator[list[int]]:
    """An entry for each registry that is filled meanwhile."""
    found: list[int] = []
    make = StateApps.__init__

    def counted(self: StateApps, *given: Any, **named: Any) -> None:
        found.append(len(found))
        make(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StateApps, "__init__", counted)
        yield found
