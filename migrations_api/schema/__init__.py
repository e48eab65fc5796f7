"""Write a migration's operations in a fluent way: `from migrations_api.schema import Schema`.

What comes out is a flat list of Django's operations. Migrations that use it need nothing of the service but this
package, which imports only Django.
"""

from migrations_api.schema.builder import Schema
from migrations_api.schema.exceptions import InvalidBlueprint

__all__ = ["InvalidBlueprint", "Schema"]
