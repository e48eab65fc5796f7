"""Where a tenant really stands, read beside the service, and whether what a run says of it is true."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings as configured
from psycopg2 import sql

from migrations_api.models import MigrationRun
from tenants.models import Tenant
from tests import catalog, stock

Keys = frozenset[tuple[str, str]]
# Of stock Django, where stand what applied: the catalog after each step that it made.
Boundaries = Mapping[Keys, tuple[str, ...]]

SHOP = ["examples.shop.users", "examples.shop.products", "examples.shop.orders"]
DONE = {"done", "faked"}
# One line for each column, constraint, index and view of the schema that the session stands in.
CATALOG = """
WITH mine AS (SELECT * FROM pg_class WHERE relnamespace = current_schema()::regnamespace)
SELECT concat_ws(' ', 'column', c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                 a.attidentity, pg_get_expr(d.adbin, d.adrelid), row_number() OVER (PARTITION BY c.oid ORDER BY attnum))
  FROM mine c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE c.relkind <> 'i'
UNION ALL
SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated)
  FROM pg_constraint WHERE connamespace = current_schema()::regnamespace
UNION ALL
SELECT concat_ws(' ', 'index', replace(pg_get_indexdef(oid), quote_ident(current_schema()) || '.', ''))
  FROM mine WHERE relkind = 'i'
UNION ALL
SELECT concat_ws(' ', 'view', relname, pg_get_viewdef(oid)) FROM mine WHERE relkind = 'v'
ORDER BY 1
"""
INVALID = """
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE c.relnamespace = current_schema()::regnamespace AND NOT (i.indisvalid AND i.indisready) ORDER BY 1
"""
STEP_BY_STEP = f"""
import json
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
first = MigrationExecutor(connection)
first.recorder.ensure_schema()
targets = [[tuple(target)] for target in json.loads(TARGETS)]
plan = [(None, None)]
for target in [*targets, first.loader.graph.leaf_nodes()]:
    plan += [step for step in first.migration_plan(target) if step not in plan]
for migration, _ in plan:
    if migration:
        MigrationExecutor(connection).migrate([(migration.app_label, migration.name)])
    with connection.cursor() as cursor:
        cursor.execute({CATALOG!r})
        lines = [line for line, in cursor]
    print(json.dumps([sorted(MigrationExecutor(connection).loader.applied_migrations), lines]))
"""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """`rows` are those of `django_migrations`, of which none may be there twice; `ledger` counts the data step's."""

    rows: tuple[tuple[str, str], ...]
    catalog: tuple[str, ...]
    invalid: tuple[str, ...]
    ledger: int

    @property
    def applied(self) -> Keys:
        return frozenset(self.rows)


def truth(tenant: Tenant) -> Truth:
    with catalog.cursor(catalog.tenant_dsn(tenant)) as cursor:
        cursor.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(tenant.schema_name)))

        def read(statement: str) -> list[tuple[Any, ...]]:
            cursor.execute(statement)
            return list(cursor.fetchall())

        there = {name for (name,) in read("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")}
        rows = read("SELECT app, name FROM django_migrations ORDER BY id") if "django_migrations" in there else []
        return Truth(
            rows=tuple((app, name) for app, name in rows),
            catalog=tuple(line for (line,) in read(CATALOG)),
            invalid=tuple(name for (name,) in read(INVALID)),
            ledger=read("SELECT count(*) FROM ledger")[0][0] if "ledger" in there else 0,
        )


@functools.cache
def boundaries(*targets: tuple[str, str], **broken: str) -> Boundaries:
    """What stock Django makes of an empty database, step by step, with those broken packages by app.

    It goes to one target after the other, then to the end.
    """
    modules = {app: f"tests.broken.{package}" for app, package in broken.items()}
    name = f"boundaries_{configured.SUFFIX}"
    database = {**configured.TENANT_DATABASES["shop"], "NAME": name}
    plane = catalog.dsn(configured.DATABASES["default"])
    catalog.query(plane, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    code = f"TARGETS = {json.dumps(targets)!r}{STEP_BY_STEP}"
    try:
        done = stock.manage(database, "public", SHOP, "shell", "-v0", "-c", code, modules=modules)
        assert done.returncode == 0, done.stderr
    finally:
        catalog.query(plane, sql.SQL("DROP DATABASE {}").format(sql.Identifier(name)))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {frozenset((app, name) for app, name in applied): tuple(lines) for applied, lines in found}


def is_clean(found: Truth, stock_boundaries: Boundaries) -> bool:
    """Whether the tenant stands where stock Django stands with just these applied; or is as empty as it was made."""
    if not found.catalog and not found.rows:
        return True
    return not found.invalid and stock_boundaries.get(found.applied) == found.catalog


def lies(run: MigrationRun, found: Truth, stock_boundaries: Boundaries) -> list[str]:
    """What the run says of its tenant that is not so, one line each."""
    clean = is_clean(found, stock_boundaries)
    target = max(stock_boundaries, key=len)
    told = run.applied_after.keys if run.applied_after else None
    steps = {(step.app_label, step.name): step for step in run.steps.all()}
    done = {key for key, step in steps.items() if step.state in DONE}
    true = {key for key, step in steps.items() if (key in found.applied) != step.backwards}
    # A repair brings its tenant to a boundary, and not further.
    arrived = clean and (run.repair_of_id is not None or found.applied == target)
    claims = {
        "it has ended": not run.is_active,
        "succeeded": run.state != "succeeded" or arrived,
        f"{run.state}, on a boundary": run.state == "partial" or clean,
        "partial": run.state != "partial" or not clean,
        "what is applied now": told is None or told == found.applied,
        "its steps": done == true,
        "each migration was recorded once": len(found.rows) == len(found.applied),
    }
    return [f"run {run.pk} of {run.tenant_id} ({run.state}): {claim}" for claim, holds in claims.items() if not holds]
