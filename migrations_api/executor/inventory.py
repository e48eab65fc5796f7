"""All that the catalog says of a schema, by name: two schemas with equal inventories have equal dumps.

Each catalog row is taken whole, but for what numbers objects or counts rows: what a newer PostgreSQL adds to it is
compared, too.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg2 import sql

# By kind and name, what is said of each object, as text.
Inventory = Mapping[tuple[str, str], str | None]

# By catalog, its columns that say nothing of what the object is; those that hold expressions are told as PostgreSQL
# deparses them.
EXEMPT: Final = {
    "pg_class": {
        *("oid", "relname", "relnamespace", "reltype", "relowner", "relam", "relfilenode", "relpages", "reltuples"),
        *("relallvisible", "relallfrozen", "reltoastrelid", "relhasindex", "relhasrules", "relhastriggers"),
        *("relhassubclass", "relfrozenxid", "relminmxid", "relacl", "relnatts"),
    },
    "pg_attribute": {
        *("attrelid", "attname", "atttypid", "attnum", "attcacheoff", "atthasmissing", "attmissingval"),
        *("attcollation", "attacl", "attndims"),
    },
    "pg_constraint": {
        *("oid", "conname", "connamespace", "conrelid", "contypid", "conindid", "conparentid", "confrelid", "conkey"),
        *("confkey", "conpfeqop", "conppeqop", "conffeqop", "conexclop", "conbin", "confdelsetcols"),
    },
    "pg_index": {
        *("indexrelid", "indrelid", "indkey", "indcollation", "indclass", "indexprs", "indpred", "indcheckxmin"),
    },
    "pg_sequence": {"seqrelid", "seqtypid"},
}
COLUMNS_SQL: Final = """
    SELECT c.relname, a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
     WHERE a.attrelid = ANY(%s::regclass[]) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""

_OWNER: Final = "CASE WHEN {0} = mine.oid THEN 'owner' ELSE pg_get_userbyid({0}) END"
# Where they are what the owner has by default, none.
_RIGHTS: Final = """
    (SELECT string_agg(concat_ws(' ', CASE a.grantee WHEN 0 THEN 'PUBLIC' WHEN {owner} THEN 'owner'
                                                     ELSE a.grantee::regrole::text END,
                                 a.privilege_type, a.is_grantable), ', '
                       ORDER BY a.grantee <> {owner}, a.grantee, a.privilege_type)
       FROM aclexplode(nullif({acl}, acldefault('{kind}', {owner}))) a)
"""

# By the dependencies of the schema, as listing its relations from pg_class reads those of all schemas. The columns of
# an index go by number: it keeps the names that they had before they were renamed.
INVENTORY_SQL: Final = f"""
    WITH mine AS (SELECT oid FROM pg_roles WHERE rolname = current_user),
    space AS (SELECT n.* FROM pg_namespace n WHERE n.nspname = %(schema)s),
    own AS (
        SELECT c.* FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_namespace'::regclass
           AND d.refobjid = (SELECT oid FROM space)
    ),
    related AS (
        SELECT own.* FROM own
        UNION ALL
        SELECT c.* FROM own JOIN pg_index i ON i.indrelid = own.oid JOIN pg_class c ON c.oid = i.indexrelid
    )
    SELECT 'schema', '', ROW(
             {_OWNER.format("nspowner")}, {_RIGHTS.format(owner="nspowner", acl="nspacl", kind="n")},
             obj_description(space.oid, 'pg_namespace'))::text
      FROM space, mine
    UNION ALL
    SELECT 'object', i.type || ' ' || COALESCE(i.name, replace(i.identity, format('%%I.', %(schema)s::text), '')), NULL
      FROM pg_depend d, pg_identify_object(d.classid, d.objid, 0) i
     WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = (SELECT oid FROM space)
       AND d.classid <> 'pg_class'::regclass
    UNION ALL
    SELECT 'relation', r.relname, ROW({{pg_class}},
             {_OWNER.format("r.relowner")},
             CASE r.relkind WHEN 'S' THEN {_RIGHTS.format(owner="r.relowner", acl="r.relacl", kind="s")}
                            WHEN 'i' THEN NULL
                            ELSE {_RIGHTS.format(owner="r.relowner", acl="r.relacl", kind="r")} END,
             (SELECT amname FROM pg_am WHERE oid = r.relam),
             (SELECT reloptions FROM pg_class t WHERE t.oid = r.reltoastrelid),
             CASE WHEN r.relkind IN ('v', 'm') THEN pg_get_viewdef(r.oid) END,
             obj_description(r.oid, 'pg_class'))::text
      FROM related r, mine
    UNION ALL
    SELECT 'column', r.relname || '.' || CASE r.relkind WHEN 'i' THEN a.attnum::text ELSE a.attname END,
           ROW({{pg_attribute}},
             row_number() OVER (PARTITION BY r.oid ORDER BY a.attnum),
             format_type(a.atttypid, a.atttypmod),
             CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END,
             CASE WHEN a.atthasdef THEN (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d
                                          WHERE d.adrelid = r.oid AND d.adnum = a.attnum) END,
             CASE WHEN a.attacl IS NOT NULL
                  THEN {_RIGHTS.format(owner="r.relowner", acl="a.attacl", kind="c")} END,
             col_description(r.oid, a.attnum))::text
      FROM related r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
      JOIN pg_type t ON t.oid = a.atttypid
     WHERE r.relkind <> 'S'
    UNION ALL
    SELECT 'constraint', own.relname || '.' || k.conname, ROW({{pg_constraint}},
             pg_get_constraintdef(k.oid), (SELECT relname FROM pg_class WHERE oid = k.conindid),
             obj_description(k.oid, 'pg_constraint'))::text
      FROM own JOIN pg_constraint k ON k.conrelid = own.oid
    UNION ALL
    SELECT 'index', own.relname || '.' || c.relname, ROW({{pg_index}},
             replace(pg_get_indexdef(c.oid), format(' ON %%I.', %(schema)s::text), ' ON '))::text
      FROM own JOIN pg_index i ON i.indrelid = own.oid JOIN pg_class c ON c.oid = i.indexrelid
    UNION ALL
    SELECT 'sequence', own.relname, ROW({{pg_sequence}},
             format_type(s.seqtypid, NULL),
             (SELECT concat_ws(' ', d.deptype, quote_ident(t.relname), quote_ident(a.attname))
                FROM pg_depend d JOIN pg_class t ON t.oid = d.refobjid
                JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
               WHERE d.classid = 'pg_class'::regclass AND d.objid = own.oid AND d.objsubid = 0
                 AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')))::text
      FROM own JOIN pg_sequence s ON s.seqrelid = own.oid
    UNION ALL
    SELECT 'enum', t.typname, ROW(
             ARRAY(SELECT e.enumlabel FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder),
             {_OWNER.format("t.typowner")}, {_RIGHTS.format(owner="t.typowner", acl="t.typacl", kind="T")},
             obj_description(t.oid, 'pg_type'))::text
      FROM mine, pg_depend d JOIN pg_type t ON t.oid = d.objid AND t.typtype = 'e'
     WHERE d.classid = 'pg_type'::regclass AND d.refclassid = 'pg_namespace'::regclass
       AND d.refobjid = (SELECT oid FROM space)
    UNION ALL
    SELECT 'trigger', own.relname || '.' || t.tgname, pg_get_triggerdef(t.oid)
      FROM own JOIN pg_trigger t ON t.tgrelid = own.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT 'rule', own.relname || '.' || w.rulename, pg_get_ruledef(w.oid)
      FROM own JOIN pg_rewrite w ON w.ev_class = own.oid AND w.rulename <> '_RETURN'
    UNION ALL
    SELECT 'policy', own.relname || '.' || p.polname, NULL
      FROM own JOIN pg_policy p ON p.polrelid = own.oid
    UNION ALL
    SELECT 'inheritance', own.relname || ' of ' || h.inhparent::regclass::text, NULL
      FROM own JOIN pg_inherits h ON h.inhrelid = own.oid
    UNION ALL
    SELECT 'publication', own.relname || ' by ' || u.pubname, NULL
      FROM own JOIN pg_publication_rel p ON p.prrelid = own.oid JOIN pg_publication u ON u.oid = p.prpubid
    UNION ALL
    SELECT 'security label', own.relname, l.label
      FROM own JOIN pg_seclabel l ON l.classoid = 'pg_class'::regclass AND l.objoid = own.oid
"""  # noqa: S608 - nothing in it comes from outside

# Of a database that is the tenant's alone.
DATABASE_SQL: Final = """
    SELECT 'database', kind || ' ' || name, facts FROM (
        SELECT 'extension' AS kind, extname::text AS name, extversion AS facts FROM pg_extension
        UNION ALL SELECT 'schema', nspname, NULL FROM pg_namespace WHERE nspname !~ '^pg_'
        UNION ALL SELECT 'event trigger', evtname, NULL FROM pg_event_trigger
        UNION ALL SELECT 'publication', pubname, NULL FROM pg_publication
        UNION ALL SELECT 'language', lanname, NULL FROM pg_language
        UNION ALL SELECT 'foreign data wrapper', fdwname, NULL FROM pg_foreign_data_wrapper
        UNION ALL SELECT 'cast', castsource::regtype || ' as ' || casttarget::regtype, NULL FROM pg_cast
                   WHERE oid >= 16384
        UNION ALL SELECT 'setting', setrole::regrole::text, setconfig::text FROM pg_db_role_setting
                   WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
        UNION ALL SELECT 'large objects', '', count(*)::text FROM pg_largeobject_metadata
    ) found
"""


def inventory(connection: DatabaseWrapper, schema: str, *, whole_database: bool) -> Inventory:
    """Of the first schema on the session's search_path, so that its own name stands nowhere in it.

    With `whole_database`, with what else a database may hold. The place that each sequence stands at is a part of it.
    """
    columns = _columns(connection)
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(INVENTORY_SQL).format(**columns), {"schema": schema})
        found = {(kind, name): facts for kind, name, facts in cursor.fetchall()}
        if whole_database:
            cursor.execute(DATABASE_SQL)
            found |= {(kind, name): facts for kind, name, facts in cursor.fetchall()}
        if sequences := sorted(name for kind, name in found if kind == "sequence"):
            cursor.execute(_positions(schema, sequences))
            found |= {("position", name): place for name, place in cursor.fetchall()}
    return found


# By the server's version, which decides what columns its catalogs have.
_known_columns: dict[int, dict[str, sql.Composable]] = {}
ALIASES: Final = {"pg_class": "r", "pg_attribute": "a", "pg_constraint": "k", "pg_index": "i", "pg_sequence": "s"}


def _columns(connection: DatabaseWrapper) -> dict[str, sql.Composable]:
    version = connection.connection.info.server_version
    if version not in _known_columns:
        compared: defaultdict[str, list[sql.Identifier]] = defaultdict(list)
        with connection.cursor() as cursor:
            cursor.execute(COLUMNS_SQL, [list(EXEMPT)])
            for catalog, name in cursor.fetchall():
                if name not in EXEMPT[catalog]:
                    compared[catalog].append(sql.Identifier(ALIASES[catalog], name))
        _known_columns[version] = {catalog: sql.SQL(", ").join(names) for catalog, names in compared.items()}
    return _known_columns[version]


def _positions(schema: str, sequences: Sequence[str]) -> sql.Composable:
    each = sql.SQL("SELECT {}, concat(last_value, CASE WHEN is_called THEN ' called' END) FROM {}")
    return sql.SQL(" UNION ALL ").join(
        each.format(sql.Literal(name), sql.Identifier(schema, name)) for name in sequences
    )


def digest_of(found: Inventory) -> str:
    content = sorted([kind, name, facts or ""] for (kind, name), facts in found.items())
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def differences(one: Inventory, other: Inventory) -> list[str]:
    """What only one of them has, or has otherwise, such as `column users_user.email`."""
    keys = one.keys() | other.keys()
    return sorted(" ".join(key).strip() for key in keys if one.get(key, ...) != other.get(key, ...))
