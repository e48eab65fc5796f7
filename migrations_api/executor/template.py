"""What a new tenant is copied from: the tables, rows and sequences that the migrations leave, and no more.

The statements are those that PostgreSQL itself deparses, without the schema's name, and are carried out in one
transaction in the new tenant. What is not covered here is missing in the copy: whoever copies compares inventories.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.utils import CursorWrapper
from psycopg2 import sql

from migrations_api.exceptions import NotCopyable
from migrations_api.executor.applied import TABLE
from migrations_api.executor.inventory import Inventory, digest_of
from migrations_api.executor.model_types import ModelTypes
from migrations_api.executor.verification import faults
from tenants.watch import OwnSession

# Of rows, which are kept in the control plane.
MAX_CHARACTERS: Final = 16_000_000

_SEQUENCE: Final = """
    format('INCREMENT BY %%s MINVALUE %%s MAXVALUE %%s START WITH %%s CACHE %%s%%s', s.seqincrement, s.seqmin, s.seqmax,
           s.seqstart, s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' END)
"""
_GIVEN: Final = """
    (SELECT string_agg(split_part(each, '=', 1) || '=' || quote_literal(substr(each, strpos(each, '=') + 1)), ', ')
       FROM unnest(own.reloptions) each)
"""
# `part` orders them; the rows come between the tables and what cannot be a part of them. A constraint that is a part of
# its table costs a fraction of one that is added. Of foreign keys, only those of tables without rows are: all rows are
# looked at at once where the key is added, and one by one where it is there before them.
STATEMENTS_SQL: Final = f"""
    WITH space AS (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s),
    own AS (
        SELECT c.* FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_namespace'::regclass
           AND d.refobjid = (SELECT oid FROM space)
    ),
    enums AS (
        SELECT t.* FROM pg_depend d JOIN pg_type t ON t.oid = d.objid AND t.typtype = 'e'
         WHERE d.classid = 'pg_type'::regclass AND d.refclassid = 'pg_namespace'::regclass
           AND d.refobjid = (SELECT oid FROM space)
    ),
    belongings AS (
        SELECT d.objid, d.deptype, t.relname, a.attrelid, a.attnum, a.attname
          FROM own JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = own.oid AND d.objsubid = 0
          JOIN pg_class t ON t.oid = d.refobjid JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
         WHERE own.relkind = 'S' AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    ),
    columns AS (
        SELECT own.oid AS table_oid, a.attnum, concat(
                 format('%%I %%s', a.attname, format_type(a.atttypid, a.atttypmod)),
                 CASE WHEN a.attcollation <> t.typcollation THEN ' COLLATE ' || a.attcollation::regcollation END,
                 CASE WHEN a.attidentity <> '' THEN (
                        SELECT format(' GENERATED %%s AS IDENTITY (SEQUENCE NAME %%I %%s)',
                                      CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, q.relname,
                                      {_SEQUENCE})
                          FROM belongings b JOIN pg_sequence s ON s.seqrelid = b.objid JOIN own q ON q.oid = b.objid
                         WHERE b.deptype = 'i' AND b.attrelid = own.oid AND b.attnum = a.attnum)
                      WHEN a.attgenerated <> '' THEN
                        format(' GENERATED ALWAYS AS (%%s) %%s', pg_get_expr(d.adbin, d.adrelid),
                               CASE a.attgenerated WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END)
                      WHEN a.atthasdef THEN ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) END,
                 CASE WHEN a.attnotnull THEN ' ' || COALESCE('CONSTRAINT ' || quote_ident(k.conname) || ' ', '')
                                                 || 'NOT NULL' END) AS definition
          FROM own JOIN pg_attribute a ON a.attrelid = own.oid AND a.attnum > 0 AND NOT a.attisdropped
          JOIN pg_type t ON t.oid = a.atttypid
          LEFT JOIN pg_attrdef d ON d.adrelid = own.oid AND d.adnum = a.attnum
          LEFT JOIN pg_constraint k ON k.conrelid = own.oid AND k.contype = 'n' AND k.conkey = ARRAY[a.attnum]
         WHERE own.relkind = 'r'
    ),
    constraints AS (
        SELECT own.oid AS table_oid, k.oid, k.contype,
               format('CONSTRAINT %%I %%s', k.conname, pg_get_constraintdef(k.oid)) AS definition,
               k.convalidated AND CASE WHEN k.contype <> 'f' THEN NOT k.condeferrable
                 ELSE own.relname <> ALL(%(filled)s::text[]) AND k.confrelid <= own.oid AND EXISTS (
                   SELECT FROM pg_constraint u WHERE u.conindid = k.conindid AND u.contype IN ('p', 'u')) END AS within
          FROM own JOIN pg_constraint k ON k.conrelid = own.oid WHERE k.contype IN ('c', 'f', 'p', 'u', 'x')
    )
    SELECT 1 AS part, oid, format('CREATE TYPE %%I AS ENUM (%%s)', typname,
             (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder)
                FROM pg_enum WHERE enumtypid = enums.oid))
      FROM enums
    UNION ALL
    SELECT 2, own.oid, format('CREATE SEQUENCE %%I AS %%s %%s', relname, format_type(s.seqtypid, NULL), {_SEQUENCE})
      FROM own JOIN pg_sequence s ON s.seqrelid = own.oid
     WHERE NOT EXISTS (SELECT FROM belongings b WHERE b.objid = own.oid AND b.deptype = 'i')
    UNION ALL
    SELECT 3, oid, format('CREATE %%sTABLE %%I (%%s)%%s', CASE relpersistence WHEN 'u' THEN 'UNLOGGED ' END, relname,
             (SELECT string_agg(definition, ', ' ORDER BY place, number)
                FROM (SELECT 1 AS place, attnum::bigint AS number, definition FROM columns WHERE table_oid = own.oid
                      UNION ALL
                      SELECT 2, oid::bigint, definition FROM constraints WHERE table_oid = own.oid AND within) parts),
             ' WITH (' || {_GIVEN} || ')')
      FROM own WHERE relkind = 'r'
    UNION ALL
    SELECT 4, b.objid, format('ALTER SEQUENCE %%I OWNED BY %%I.%%I', own.relname, b.relname, b.attname)
      FROM belongings b JOIN own ON own.oid = b.objid WHERE b.deptype = 'a'
    UNION ALL
    SELECT CASE k.contype WHEN 'f' THEN 7 ELSE 5 END, min(k.oid),
           format('ALTER TABLE %%I %%s', own.relname, string_agg('ADD ' || k.definition, ', ' ORDER BY k.oid))
      FROM own JOIN constraints k ON k.table_oid = own.oid
     WHERE NOT k.within GROUP BY own.oid, own.relname, k.contype
    UNION ALL
    SELECT 6, i.indexrelid,
           replace(pg_get_indexdef(i.indexrelid), format(' ON %%I.%%I USING ', %(schema)s, own.relname),
                   format(' ON %%I USING ', own.relname))
      FROM own JOIN pg_index i ON i.indrelid = own.oid
     WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = own.oid)
    UNION ALL
    SELECT 8, oid, format('CREATE VIEW %%I (%%s)%%s AS %%s', relname,
             (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = own.oid),
             ' WITH (' || {_GIVEN} || ')', rtrim(pg_get_viewdef(oid), ';'))
      FROM own WHERE relkind = 'v'
    UNION ALL
    SELECT 9, objid, format('COMMENT ON %%s IS %%L', subject, obj_description(objid, catalog))
      FROM (
        SELECT oid AS objid, 'pg_class' AS catalog, CASE relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW'
                 ELSE 'SEQUENCE' END || ' ' || quote_ident(relname) AS subject FROM own WHERE relkind IN ('r', 'v', 'S')
        UNION ALL
        SELECT c.oid, 'pg_class', 'INDEX ' || quote_ident(c.relname)
          FROM own JOIN pg_index i ON i.indrelid = own.oid JOIN pg_class c ON c.oid = i.indexrelid
        UNION ALL
        SELECT k.oid, 'pg_constraint', format('CONSTRAINT %%I ON %%I', k.conname, own.relname)
          FROM own JOIN pg_constraint k ON k.conrelid = own.oid
        UNION ALL
        SELECT oid, 'pg_type', 'TYPE ' || quote_ident(typname) FROM enums
      ) subjects
     WHERE obj_description(objid, catalog) IS NOT NULL
    UNION ALL
    SELECT 9, own.oid, format('COMMENT ON COLUMN %%I.%%I IS %%L', relname, attname, col_description(own.oid, attnum))
      FROM own JOIN pg_attribute a ON a.attrelid = own.oid AND a.attnum > 0 AND NOT a.attisdropped
     WHERE col_description(own.oid, attnum) IS NOT NULL
    UNION ALL
    SELECT 10, own.oid, format('GRANT %%s ON %%s%%I TO %%s%%s', a.privilege_type,
             CASE WHEN relkind = 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END, relname,
             CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
             CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
      FROM own, aclexplode(relacl) a WHERE a.grantee <> relowner
    UNION ALL
    SELECT 11, own.oid, format('GRANT %%s (%%I) ON TABLE %%I TO %%s%%s', a.privilege_type, attname, relname,
             CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
             CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
      FROM own JOIN pg_attribute c ON c.attrelid = own.oid AND c.attnum > 0 AND NOT c.attisdropped,
           aclexplode(c.attacl) a WHERE a.grantee <> relowner
     ORDER BY 1, 2
"""  # noqa: S608 - nothing in it comes from outside
FIRST_AFTER_ROWS: Final = 5

# What PostgreSQL writes of `status IN ('a', 'b')`, it reads as casts of each value: the array has to be one already.
_ARRAY_OF_VARCHAR: Final = re.compile(r"""('(?:[^']|'')*'|"(?:[^"]|"")*")|(?<=::character varying)\]\)::text\[\]""")

TABLES_SQL: Final = """
    SELECT c.relname, ARRAY(SELECT a.attname::text FROM pg_attribute a
                             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                             ORDER BY a.attnum)
      FROM pg_depend d JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'r'
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_namespace'::regclass AND c.relname <> %s
       AND d.refobjid = (SELECT oid FROM pg_namespace WHERE nspname = %s)
     ORDER BY c.oid
"""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table's rows as COPY writes them."""

    table: str
    columns: tuple[str, ...]
    text: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Template:
    """`record` are the rows of django_migrations but for their times, `positions` where each sequence stands.

    `types` is what Django's own receivers of post_migrate would add, None where only they can tell; `unvalidated` are
    the constraints that old rows may break.
    """

    tables: tuple[str, ...]
    rows: tuple[Rows, ...]
    record: tuple[tuple[int, str, str], ...]
    positions: tuple[tuple[str, int, bool], ...]
    rest: tuple[str, ...]
    inventory_digest: str
    unvalidated: tuple[str, ...]
    types: ModelTypes | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        rows = tuple(Rows(**{**each, "columns": tuple(each["columns"])}) for each in given["rows"])
        lists = {name: tuple(map(_frozen, value)) for name, value in given.items() if isinstance(value, list)}
        types = given["types"] and ModelTypes(**given["types"])
        return cls(**{**given, **lists, "rows": rows, "types": types})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_template(connection: DatabaseWrapper, schema: str, found: Inventory) -> Template:
    """The template that the schema, which is the first on the session's path and has the inventory `found`, makes.

    Raises NotCopyable for more rows than are kept.
    """
    rows = tuple(_rows(connection, schema))
    with connection.cursor() as cursor:
        cursor.execute(STATEMENTS_SQL, {"schema": schema, "filled": [each.table for each in rows]})
        statements = [(part, _as_parsed(text)) for part, _, text in cursor.fetchall()]
        cursor.execute(sql.SQL("SELECT id, app, name FROM {} ORDER BY id").format(sql.Identifier(schema, TABLE)))
        record = tuple(cursor.fetchall())
    places = sorted((name, (place or "").split()) for (kind, name), place in found.items() if kind == "position")
    return Template(
        tables=tuple(text for part, text in statements if part < FIRST_AFTER_ROWS),
        rows=rows,
        record=record,
        positions=tuple((name, int(place[0]), len(place) > 1) for name, place in places),
        rest=tuple(text for part, text in statements if part >= FIRST_AFTER_ROWS),
        inventory_digest=digest_of(found),
        unvalidated=tuple(sorted(faults(OwnSession(connection), schema).unvalidated)),
    )


def _as_parsed(statement: str) -> str:
    return _ARRAY_OF_VARCHAR.sub(lambda match: match[1] or "]::character varying[])::text[]", statement)


def _rows(connection: DatabaseWrapper, schema: str) -> list[Rows]:
    found: list[Rows] = []
    size = 0
    with connection.cursor() as cursor:
        cursor.execute(TABLES_SQL, [TABLE, schema])
        for table, columns in cursor.fetchall():
            if not columns:
                _require_empty(cursor, schema, table)
                continue
            text = io.StringIO()
            statement = sql.SQL("COPY {} ({}) TO STDOUT").format(sql.Identifier(schema, table), _listed(columns))
            cursor.copy_expert(statement, text)
            if count := cursor.rowcount:
                found.append(Rows(table=table, columns=tuple(columns), text=text.getvalue(), count=count))
                size += len(found[-1].text)
    if size > MAX_CHARACTERS:
        raise NotCopyable(f"Its migrations write {size} characters of rows; {MAX_CHARACTERS} are kept in a template.")
    return found


def _require_empty(cursor: CursorWrapper, schema: str, table: str) -> None:
    cursor.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(schema, table)))
    if cursor.fetchone()[0]:
        raise NotCopyable(f"The table {table} has rows without a column that could be copied.")


def _listed(columns: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def replay(connection: DatabaseWrapper, schema: str, template: Template) -> None:
    """Make all of it in the schema, which is empty and the first on the session's path, in the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.execute(";\n".join(template.tables))
        for rows in template.rows:
            statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
                sql.Identifier(schema, rows.table), _listed(rows.columns)
            )
            cursor.copy_expert(statement, io.StringIO(rows.text))
            if cursor.rowcount != rows.count:
                raise NotCopyable(f"Of {rows.count} rows of {rows.table}, {cursor.rowcount} were copied.")
        # As one message, and so without parameters.
        cursor.execute(sql.SQL(";\n").join([*_filled_in(schema, template), *map(sql.SQL, template.rest)]))


def _filled_in(schema: str, template: Template) -> list[sql.Composable]:
    """The record, and where the sequences stand."""
    record = sql.SQL(
        "INSERT INTO {} (id, app, name, applied) SELECT *, clock_timestamp()"
        " FROM unnest({}::bigint[], {}::text[], {}::text[])"
    )
    positions = sql.SQL(
        "SELECT setval(to_regclass(quote_ident({}) || '.' || quote_ident(name)), place, called)"
        " FROM unnest({}::text[], {}::bigint[], {}::boolean[]) AS t (name, place, called)"
    )
    return [
        record.format(sql.Identifier(schema, TABLE), *_as_arrays(template.record)),
        positions.format(sql.Literal(schema), *_as_arrays(template.positions)),
    ]


def _as_arrays(rows: Sequence[Sequence[Any]]) -> Iterator[sql.Composable]:
    return (sql.Literal(list(column)) for column in zip(*rows, strict=True))


def require_exact(template: Template, found: Inventory) -> None:
    """Raise NotCopyable unless the catalog says of the copy what it said of the original."""
    if digest_of(found) != template.inventory_digest:
        raise NotCopyable("The copy's catalog is not what the migrations leave.")
