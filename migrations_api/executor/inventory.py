"""All that the catalog says of a schema, by name: two schemas with equal inventories have equal dumps.

Each catalog row is taken whole, but for what numbers objects or counts rows: what a newer PostgreSQL adds to it is
compared, too.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Final

from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg2 import sql

# By kind and name, what is said of each object: the text of a JSON value.
Inventory = Mapping[tuple[str, str], str | None]

_OWNER: Final = "CASE WHEN {0} = mine.oid THEN 'owner' ELSE pg_get_userbyid({0}) END"
_RIGHTS: Final = """
    (SELECT jsonb_agg(jsonb_build_array(CASE a.grantee WHEN {owner} THEN 'owner' ELSE a.grantee::regrole::text END,
                                        a.privilege_type, a.is_grantable)
                      ORDER BY a.grantee <> {owner}, a.grantee::regrole::text, a.privilege_type)
       FROM aclexplode(COALESCE({acl}, acldefault('{kind}', {owner}))) a)
"""

# By the dependencies of the schema, as listing its relations from pg_class reads those of all schemas. The columns of an
# index go by number: it keeps the names that they had before they were renamed.
INVENTORY_SQL: Final = f"""
    WITH mine AS (SELECT oid FROM pg_roles WHERE rolname = current_user),
    space AS (SELECT n.* FROM pg_namespace n WHERE n.nspname = %(schema)s),
    own AS (
        SELECT c.* FROM pg_depend d JOIN pg_class c ON c.oid = d.objid
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_namespace'::regclass
           AND d.refobjid = (SELECT oid FROM space)
    ),
    related AS (
        SELECT own.*, '' AS ontable FROM own
        UNION ALL
        SELECT c.*, own.relname::text FROM own JOIN pg_index i ON i.indrelid = own.oid
          JOIN pg_class c ON c.oid = i.indexrelid
    )
    SELECT 'schema', '', jsonb_build_object(
             'owner', {_OWNER.format("nspowner")},
             'rights', {_RIGHTS.format(owner="nspowner", acl="nspacl", kind="n")},
             'comment', obj_description(space.oid, 'pg_namespace'))
      FROM space, mine
    UNION ALL
    SELECT 'object', i.type || ' ' || COALESCE(i.name, i.identity), NULL
      FROM pg_depend d, pg_identify_object(d.classid, d.objid, 0) i
     WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = (SELECT oid FROM space)
    UNION ALL
    SELECT 'relation', r.relname, to_jsonb(r) - '{{oid,relname,relnamespace,reltype,relowner,relam,relfilenode,relpages,
             reltuples,relallvisible,relallfrozen,reltoastrelid,relhasindex,relhasrules,relhastriggers,relhassubclass,
             relfrozenxid,relminmxid,relacl,relnatts}}'::text[] || jsonb_build_object(
             'owner', {_OWNER.format("r.relowner")},
             'rights', CASE WHEN r.relkind = 'S' THEN {_RIGHTS.format(owner="r.relowner", acl="r.relacl", kind="s")}
                            ELSE {_RIGHTS.format(owner="r.relowner", acl="r.relacl", kind="r")} END,
             'method', (SELECT amname FROM pg_am WHERE oid = r.relam),
             'toast', (SELECT reloptions FROM pg_class t WHERE t.oid = r.reltoastrelid),
             'view', CASE WHEN r.relkind IN ('v', 'm') THEN pg_get_viewdef(r.oid) END,
             'comment', obj_description(r.oid, 'pg_class'))
      FROM related r, mine
    UNION ALL
    SELECT 'column', r.relname || '.' || CASE r.relkind WHEN 'i' THEN a.attnum::text ELSE a.attname END,
            to_jsonb(a) - '{{attrelid,attname,atttypid,attnum,attcacheoff,
             atthasmissing,attmissingval,attcollation,attacl}}'::text[] || jsonb_build_object(
             'place', (SELECT count(*) FROM pg_attribute b
                        WHERE b.attrelid = r.oid AND b.attnum BETWEEN 1 AND a.attnum AND NOT b.attisdropped),
             'type', format_type(a.atttypid, a.atttypmod),
             'collation', (SELECT nullif(a.attcollation, t.typcollation)::regcollation::text
                             FROM pg_type t WHERE t.oid = a.atttypid),
             'default', (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d
                          WHERE d.adrelid = r.oid AND d.adnum = a.attnum),
             'rights', CASE WHEN a.attacl IS NOT NULL
                            THEN {_RIGHTS.format(owner="r.relowner", acl="a.attacl", kind="c")} END,
             'comment', col_description(r.oid, a.attnum))
      FROM related r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'constraint', own.relname || '.' || k.conname, to_jsonb(k) - '{{oid,conname,connamespace,conrelid,contypid,
             conindid,conparentid,confrelid,conkey,confkey,conpfeqop,conppeqop,conffeqop,conexclop,conbin,
             confdelsetcols}}'::text[] || jsonb_build_object(
             'definition', pg_get_constraintdef(k.oid),
             'index', (SELECT relname FROM pg_class WHERE oid = k.conindid),
             'comment', obj_description(k.oid, 'pg_constraint'))
      FROM own JOIN pg_constraint k ON k.conrelid = own.oid
    UNION ALL
    SELECT 'index', own.relname || '.' || c.relname, to_jsonb(i) - '{{indexrelid,indrelid,indkey,indcollation,indclass,
             indexprs,indpred,indcheckxmin}}'::text[] || jsonb_build_object(
             'definition', replace(pg_get_indexdef(c.oid), format(' ON %%I.', %(schema)s::text), ' ON '))
      FROM own JOIN pg_index i ON i.indrelid = own.oid JOIN pg_class c ON c.oid = i.indexrelid
    UNION ALL
    SELECT 'sequence', own.relname, to_jsonb(s) - '{{seqrelid,seqtypid}}'::text[] || jsonb_build_object(
             'type', format_type(s.seqtypid, NULL),
             'owned_by', (SELECT jsonb_build_array(d.deptype, t.relname, a.attname)
                            FROM pg_depend d JOIN pg_class t ON t.oid = d.refobjid
                            JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
                           WHERE d.classid = 'pg_class'::regclass AND d.objid = own.oid AND d.objsubid = 0
                             AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')))
      FROM own JOIN pg_sequence s ON s.seqrelid = own.oid
    UNION ALL
    SELECT 'enum', t.typname, jsonb_build_object(
             'labels', (SELECT jsonb_agg(e.enumlabel ORDER BY e.enumsortorder)
                          FROM pg_enum e WHERE e.enumtypid = t.oid),
             'owner', {_OWNER.format("t.typowner")},
             'rights', {_RIGHTS.format(owner="t.typowner", acl="t.typacl", kind="T")},
             'comment', obj_description(t.oid, 'pg_type'))
      FROM mine, pg_depend d JOIN pg_type t ON t.oid = d.objid AND t.typtype = 'e'
     WHERE d.classid = 'pg_type'::regclass AND d.refclassid = 'pg_namespace'::regclass
       AND d.refobjid = (SELECT oid FROM space)
    UNION ALL
    SELECT 'object', 'trigger ' || own.relname || '.' || t.tgname, NULL
      FROM own JOIN pg_trigger t ON t.tgrelid = own.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT 'object', 'rule ' || own.relname || '.' || w.rulename, NULL
      FROM own JOIN pg_rewrite w ON w.ev_class = own.oid AND w.rulename <> '_RETURN'
    UNION ALL
    SELECT 'object', 'policy ' || own.relname || '.' || p.polname, NULL
      FROM own JOIN pg_policy p ON p.polrelid = own.oid
    UNION ALL
    SELECT 'object', 'inheritance of ' || own.relname, NULL
      FROM own JOIN pg_inherits h ON own.oid IN (h.inhrelid, h.inhparent)
    UNION ALL
    SELECT 'object', 'publication of ' || own.relname, NULL
      FROM own JOIN pg_publication_rel p ON p.prrelid = own.oid
    UNION ALL
    SELECT 'object', 'security label on ' || own.relname, NULL
      FROM own JOIN pg_seclabel l ON l.classoid = 'pg_class'::regclass AND l.objoid = own.oid
"""  # noqa: S608 - nothing in it comes from outside

# Of a database that is the tenant's alone.
DATABASE_SQL: Final = """
    SELECT 'database', kind || ' ' || name, facts FROM (
        SELECT 'extension' AS kind, extname::text AS name, to_jsonb(extversion) AS facts FROM pg_extension
        UNION ALL SELECT 'schema', nspname, NULL FROM pg_namespace WHERE nspname !~ '^pg_'
        UNION ALL SELECT 'event trigger', evtname, NULL FROM pg_event_trigger
        UNION ALL SELECT 'publication', pubname, NULL FROM pg_publication
        UNION ALL SELECT 'language', lanname, NULL FROM pg_language
        UNION ALL SELECT 'foreign data wrapper', fdwname, NULL FROM pg_foreign_data_wrapper
        UNION ALL SELECT 'cast', castsource::regtype || ' as ' || casttarget::regtype, NULL FROM pg_cast
                   WHERE oid >= 16384
        UNION ALL SELECT 'setting', setrole::regrole::text, to_jsonb(setconfig) FROM pg_db_role_setting
                   WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
        UNION ALL SELECT 'large objects', '', to_jsonb(count(*)) FROM pg_largeobject_metadata
    ) found
"""


def inventory(connection: BaseDatabaseWrapper, schema: str, *, whole_database: bool) -> Inventory:
    """Of the first schema on the session's search_path, so that its own name stands nowhere in it.

    With `whole_database`, with what else a database may hold. The place that each sequence stands at is a part of it.
    """
    with connection.cursor() as cursor:
        cursor.execute(INVENTORY_SQL, {"schema": schema})
        found = {(kind, name): facts for kind, name, facts in cursor.fetchall()}
        if whole_database:
            cursor.execute(DATABASE_SQL)
            found |= {(kind, name): facts for kind, name, facts in cursor.fetchall()}
        if sequences := sorted(name for kind, name in found if kind == "sequence"):
            cursor.execute(_positions(schema, sequences))
            found |= {("position", name): place for name, place in cursor.fetchall()}
    return found


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
