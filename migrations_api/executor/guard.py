"""What a transaction has touched outside of its tenant, read from the locks that it holds and the rows that it made."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg2 import sql

# Whatever changes rows or definitions takes a lock on the relation that lasts until the end of the transaction, and
# whatever drops another object one on that. A foreign key takes one on the table that it points to as well, which is
# what shared schemas are named for.
LOCKED_SQL: Final = """
    SELECT 'pg_class', l.relation::bigint, n.nspname, c.relname
      FROM pg_locks l LEFT JOIN pg_class c ON c.oid = l.relation LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.granted
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
    UNION ALL
    SELECT l.classid::regclass::text, l.objid::bigint, NULL, NULL
      FROM pg_locks l
     WHERE l.pid = pg_backend_pid() AND l.locktype = 'object' AND l.mode = 'AccessExclusiveLock' AND l.granted
       AND l.classid IN ('pg_namespace'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass)
"""
NAMED_SQL: Final = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = ANY(%s::oid[])
    UNION ALL
    SELECT nspname, '' FROM pg_namespace WHERE oid = ANY(%s::oid[])
    UNION ALL
    SELECT n.nspname, p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
     WHERE p.oid = ANY(%s::oid[])
    UNION ALL
    SELECT n.nspname, t.typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
     WHERE t.oid = ANY(%s::oid[])
"""
NAMED_CATALOGS: Final = ("pg_class", "pg_namespace", "pg_proc", "pg_type")

# Statements that make, change or grant what is not locked for it. What only SQL inside of the server says is not seen.
UNLOCKED: Final = re.compile(
    r"\b(CREATE|ALTER|DROP|COMMENT\s+ON)\s+(OR\s+REPLACE\s+)?"
    r"(SCHEMA|FUNCTION|PROCEDURE|ROUTINE|AGGREGATE|TYPE|DOMAIN|EXTENSION)\b|\b(GRANT|REVOKE|DO|CALL)\b",
    re.IGNORECASE,
)
# A row of this transaction, or of a savepoint of it: visible though its transaction is still in progress. That is only
# asked of the few rows that are as young as the transaction.
_MADE: Final = """
    age({0}.xmin) <= age(mine.xid8::xid) AND pg_xact_status((
        CASE WHEN {0}.xmin::text::bigint >= mine.low THEN mine.high ELSE mine.high + 4294967296 END
        + {0}.xmin::text::bigint)::text::xid8) = 'in progress'
"""
MADE_SQL: Final = f"""
    WITH mine AS (
        SELECT xid8, xid8::text::bigint / 4294967296 * 4294967296 AS high, xid8::text::bigint % 4294967296 AS low
          FROM (SELECT pg_current_xact_id_if_assigned() AS xid8) one WHERE xid8 IS NOT NULL
    )
    SELECT n.nspname, '' FROM pg_namespace n, mine WHERE {_MADE.format("n")}
    UNION ALL
    SELECT n.nspname, c.relname FROM mine, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE {_MADE.format("c")}
    UNION ALL
    SELECT n.nspname, p.proname FROM mine, pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
     WHERE {_MADE.format("p")}
    UNION ALL
    SELECT n.nspname, t.typname FROM mine, pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
     WHERE {_MADE.format("t")}
    UNION ALL
    SELECT n.nspname, t.typname
      FROM mine, pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace
     WHERE {_MADE.format("e")}
"""  # noqa: S608 - nothing in it comes from outside

# Names are looked up one by one, which costs a new session a fraction of a join. A name without a schema is visible
# through the search_path; that of a relation which is gone is its number. There is a row at least, since a transaction
# has a lock on its own number; which of them count is told apart here, since to plan that costs more than to send them.
STANDING: Final = sql.SQL("""
    SELECT current_schemas(false)::text[], current_user::text, l.locktype, l.mode, l.classid::bigint,
           coalesce(l.relation, l.objid)::bigint, l.relation::regclass::text
      FROM pg_lock_status() l WHERE l.pid = pg_backend_pid() AND l.granted
""")
READING: Final = frozenset({"AccessShareLock", "RowShareLock"})
# The catalogs of what is dropped, by their numbers, which are the same on every server.
OBJECTS: Final = {1247: "pg_type", 1255: "pg_proc", 2615: "pg_namespace"}
QUALIFIED: Final = re.compile(r'(?P<schema>"(?:[^"]|"")+"|[^".]+)\.(?P<name>.+)', re.DOTALL)

# A schema and what is in it; the schema itself has an empty name.
Thing = tuple[str, str]
Dropped = dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a session stands in the middle of a transaction, and what that has touched."""

    path: tuple[str, ...]
    user: str
    # What lies in none of the path's schemas.
    things: frozenset[Thing]
    dropped: Dropped


@lru_cache(maxsize=256)
def may_be_unlocked(statement: str) -> bool:
    """Whether it may make, change or grant what it takes no lock on."""
    return bool(UNLOCKED.search(statement))


def standing(connection: BaseDatabaseWrapper) -> Standing:
    with connection.cursor() as cursor:
        cursor.execute(STANDING)
        return standing_of(cursor.fetchall())


def standing_of(found: Sequence[tuple[Any, ...]]) -> Standing:
    """What the rows that STANDING returns say."""
    things, dropped = set[Thing](), Dropped()
    for _, _, kind, mode, catalog, oid, name in found:
        if kind == "object":
            if mode == "AccessExclusiveLock" and catalog in OBJECTS:
                dropped.setdefault(OBJECTS[catalog], []).append(oid)
        elif kind != "relation" or mode in READING:
            continue
        elif name is None or name.isdigit():
            dropped.setdefault("pg_class", []).append(oid)
        elif qualified := QUALIFIED.fullmatch(name):
            things.add((_unquoted(qualified["schema"]), _unquoted(qualified["name"])))
    return Standing(path=tuple(found[0][0]), user=found[0][1], things=frozenset(things), dropped=dropped)


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def locked_things(connection: BaseDatabaseWrapper) -> tuple[set[Thing], Dropped]:
    """What this transaction changes, and by catalog the oids of what it has dropped."""
    with connection.cursor() as cursor:
        cursor.execute(LOCKED_SQL)
        found = cursor.fetchall()
    dropped: Dropped = defaultdict(list)
    for catalog, oid, schema, _ in found:
        if schema is None:
            dropped[catalog].append(oid)
    return {(schema, name) for _, _, schema, name in found if schema is not None}, dropped


def made_things(connection: BaseDatabaseWrapper) -> set[Thing]:
    """What this transaction has made or changed without a lock; reads catalogs that grow with every tenant."""
    with connection.cursor() as cursor:
        cursor.execute(MADE_SQL)
        return set(cursor.fetchall())


def named_things(connection: BaseDatabaseWrapper, dropped: Dropped) -> set[Thing]:
    """What another transaction drops, as this session still sees it."""
    with connection.cursor() as cursor:
        cursor.execute(NAMED_SQL, [dropped.get(catalog, []) for catalog in NAMED_CATALOGS])
        return set(cursor.fetchall())


def outside(things: Collection[Thing], own_schemas: Collection[str]) -> list[str]:
    """Those that lie in none of the schemas, but for what PostgreSQL keeps for itself."""
    return sorted(
        f"{schema}.{name}" if name else f"schema {schema}"
        for schema, name in things
        if schema not in own_schemas and not schema.startswith("pg_") and schema != "information_schema"
    )
