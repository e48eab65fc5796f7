"""Write a migration's operations in a fluent way: `from migrations_api.schema import Schema`.

What comes out is a flat list of Django's operations. Migrations that use it need nothing of the service but this
package, which imports only Django.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from migrations_api.schema.exceptions import InvalidBlueprint

if TYPE_CHECKING:
    from migrations_api.schema.builder import Schema

__all__ = ["InvalidBlueprint", "Schema"]


def __getattr__(name: str) -> Any:
    """The builder is loaded by migrations that are written with it: plans need to know its operations alone."""
    if name == "Schema":
        return import_module("migrations_api.schema.builder").Schema
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
