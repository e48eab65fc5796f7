"""What a schema is made of, one line for each column, constraint, index and view, whatever its name."""

from typing import Final

from django.db.backends.utils import CursorWrapper

from migrations_api.executor.applied import TABLE
from tenants.backends import backend_for
from tenants.backends.base import server_cursor
from tenants.models import Tenant

SHOWN: Final = 20
# The order of columns is that in which they were added, and of no account here.
STRUCTURE_SQL: Final = """
    WITH mine AS (
        SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = %s AND c.relname <> %s
    )
    SELECT concat_ws(' ', 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                     CASE WHEN a.attnotnull THEN 'NOT NULL' END, pg_get_expr(d.adbin, d.adrelid))
      FROM mine c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE c.relkind IN ('r', 'p')
    UNION ALL
    SELECT concat_ws(' ', 'constraint', c.relname, r.conname, pg_get_constraintdef(r.oid))
      FROM pg_constraint r JOIN mine c ON c.oid = r.conrelid WHERE r.contype <> 'n'
    UNION ALL
    SELECT concat_ws(' ', 'index', c.relname, CASE WHEN NOT i.indisvalid THEN '(invalid)' END)
      FROM mine c JOIN pg_index i ON i.indexrelid = c.oid
    UNION ALL
    SELECT concat_ws(' ', 'view', c.relname) FROM mine c WHERE c.relkind IN ('v', 'm')
"""


def differences(tenant: Tenant, shadow: Tenant) -> tuple[str, ...]:
    """Lines that only one of them has, marked + for the tenant's and - for the other's; the first twenty."""
    own, others = _structure(tenant), _structure(shadow)
    found = [*(f"+ {line}" for line in own - others), *(f"- {line}" for line in others - own)]
    return tuple(sorted(found, key=lambda line: (line[2:], line[0]))[:SHOWN])


def _structure(tenant: Tenant) -> set[str]:
    with server_cursor(backend_for(tenant).connection_settings(tenant)) as cursor:
        # Definitions name what is not on the path with its schema.
        cursor.execute("SELECT set_config('search_path', quote_ident(%s), false)", [tenant.schema_name])
        return _lines(cursor, tenant.schema_name)


def _lines(cursor: CursorWrapper, schema: str) -> set[str]:
    cursor.execute(STRUCTURE_SQL, [schema, TABLE])
    return {line for (line,) in cursor.fetchall()}
