"""What the catalog says of a tenant, beside what was recorded; each question costs what the tenant has."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import truncate_name
from django.db.migrations.operations import CreateModel
from django.db.migrations.state import ModelState, ProjectState
from psycopg2 import sql

from migrations_api.plan import Plan
from tenants.watch import Question, Reader

# By the dependencies of the schema: listing a schema's tables from pg_class reads those of all schemas.
FAULTS: Final = Question(
    name="faults",
    types=("text",),
    statement="""
    WITH own AS (
        SELECT d.objid AS oid FROM pg_depend d
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_namespace'::regclass
           AND d.refobjid = (SELECT oid FROM pg_namespace WHERE nspname = %s)
    )
    SELECT 'index', c.relname FROM own JOIN pg_index i ON i.indrelid = own.oid JOIN pg_class c ON c.oid = i.indexrelid
     WHERE NOT i.indisvalid
    UNION ALL
    SELECT 'constraint', r.conname FROM own JOIN pg_constraint r ON r.conrelid = own.oid WHERE NOT r.convalidated
""",
)
PRESENT: Final = Question(
    name="present",
    types=("text[]", "text"),
    statement="""
    SELECT name FROM unnest(%s::text[]) AS name
     WHERE to_regclass(quote_ident(%s) || '.' || quote_ident(name)) IS NOT NULL
""",
)
# Both at once: what a run has left.
LEFT: Final = Question(
    name="left_behind",
    types=("text", "text[]", "text"),
    statement=f"""{FAULTS.statement}
    UNION ALL
    SELECT 'absent', name FROM unnest(%s::text[]) AS name
     WHERE to_regclass(quote_ident(%s) || '.' || quote_ident(name)) IS NULL
""",  # noqa: S608 - both are our own
)
UNOCCUPIED: Final = sql.SQL("""NOT EXISTS (
    SELECT FROM pg_depend d JOIN pg_namespace n ON n.oid = d.refobjid
     WHERE d.refclassid = 'pg_namespace'::regclass AND n.nspname = {}
)""")
VALID_SQL: Final = """
    SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass(quote_ident(%s) || '.' || quote_ident(%s))
"""
COLUMN_SQL: Final = """
    SELECT EXISTS (SELECT FROM pg_attribute a WHERE a.attname = %s AND NOT a.attisdropped
                      AND a.attrelid = to_regclass(quote_ident(%s) || '.' || quote_ident(%s)))
"""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What PostgreSQL keeps and does not trust: half-built indexes, and constraints that old rows may break."""

    invalid_indexes: frozenset[str] = frozenset()
    unvalidated: frozenset[str] = field(default_factory=frozenset)

    def since(self, before: "Faults") -> "Faults":
        return Faults(
            invalid_indexes=self.invalid_indexes - before.invalid_indexes,
            unvalidated=self.unvalidated - before.unvalidated,
        )


def unoccupied(schema: str) -> sql.Composed:
    """An expression for whether nothing at all is in the schema."""
    return UNOCCUPIED.format(sql.Literal(schema))


def is_unoccupied(connection: BaseDatabaseWrapper, schema: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT ") + unoccupied(schema))
        return bool(cursor.fetchone()[0])


def faults(reader: Reader, schema: str) -> Faults:
    """An index that CREATE INDEX CONCURRENTLY left half-built is maintained but never used."""
    return _faults(reader.rows(FAULTS, schema))


def left_behind(reader: Reader, schema: str, tables: Iterable[str]) -> tuple[Faults, list[str]]:
    """The faults, and which of the tables the schema does not have."""
    found = reader.rows(LEFT, schema, sorted(tables), schema)
    return _faults(found), sorted(name for kind, name in found if kind == "absent")


def _faults(found: Iterable[tuple[str, str]]) -> Faults:
    found = list(found)
    return Faults(
        invalid_indexes=frozenset(name for kind, name in found if kind == "index"),
        unvalidated=frozenset(name for kind, name in found if kind == "constraint"),
    )


def absent_tables(reader: Reader, schema: str, tables: Iterable[str]) -> list[str]:
    """Which of the tables the schema does not have."""
    names = sorted(tables)
    if not names:
        return []
    return sorted(set(names) - present_tables(reader, schema, names))


def present_tables(reader: Reader, schema: str, tables: Iterable[str]) -> set[str]:
    return {name for (name,) in reader.rows(PRESENT, sorted(tables), schema)}


def index_validity(connection: BaseDatabaseWrapper, schema: str, index: str) -> bool | None:
    """Whether PostgreSQL trusts the index; None where there is none of that name."""
    with connection.cursor() as cursor:
        cursor.execute(VALID_SQL, [schema, index])
        row = cursor.fetchone()
    return None if row is None else bool(row[0])


def has_column(connection: BaseDatabaseWrapper, schema: str, table: str, column: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(COLUMN_SQL, [column, schema, table])
        return bool(cursor.fetchone()[0])


def tables_of(plan: Plan, state: ProjectState, connection: BaseDatabaseWrapper) -> set[str]:
    """The tables that the plan's steps have made and that are still there in `state`, the models after them."""
    made = {
        (migration.app_label, operation.name_lower)
        for migration, backwards in plan.migrations
        if not backwards
        for operation in migration.operations
        if isinstance(operation, CreateModel)
    }
    models = (state.models[key] for key in made if key in state.models)
    return {table_name(model, connection) for model in models if _has_table(model)}


def first_tables(plan: Plan, connection: BaseDatabaseWrapper) -> set[str]:
    """The tables that the plan makes in a tenant that has none of it."""
    return {
        table_name(ModelState(migration.app_label, operation.name, [], operation.options), connection)
        for migration, backwards in plan.migrations
        if migration.initial and not backwards
        for operation in migration.operations
        if isinstance(operation, CreateModel) and _has_table_by(operation.options)
    }


def _has_table(model: ModelState) -> bool:
    return _has_table_by(model.options)


def _has_table_by(options: dict[str, object]) -> bool:
    # A swapped model has its table elsewhere, or none.
    return bool(options.get("managed", True)) and not options.get("proxy") and not options.get("swappable")


def table_name(model: ModelState, connection: BaseDatabaseWrapper) -> str:
    """As the server has it, which cuts a name off after 63 bytes; Django shortens only those that it makes itself."""
    limit = connection.ops.max_name_length() or 63
    given = model.options.get("db_table")
    named = str(given).strip('"') if given else truncate_name(f"{model.app_label}_{model.name_lower}", limit)
    return named.encode()[:limit].decode(errors="ignore")
