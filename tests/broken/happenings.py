"""What a test has happen while a migration runs, by place; not in the migrations' package, which Django reloads."""

from collections.abc import Callable
from typing import Any

Happening = Callable[[Any, Any], None]
# In the process that migrates.
HAPPENINGS: dict[str, Happening] = {}
