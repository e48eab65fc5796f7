"""What tests of rollback, reset and refresh have in common."""

import re
from collections.abc import Callable
from typing import Any

from psycopg2 import sql

from migrations_api.executor import Options
from migrations_api.models import Action, MigrationRun
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.rollbacks import chosen, request_rollback
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target
from tenants.models import Tenant
from tests import catalog
from tests.http_api import carry_out

MakeTenant = Callable[..., Tenant]


def migrate(tenant: Tenant, *target: str, **options: Any) -> MigrationRun:
    app_label, name = (*target, None, None)[:2]
    request = Request(target=Target(app_label=app_label, migration_name=name), options=Options(**options))
    return carry_out(request_run(tenant, request).pk)


def ask(tenant: Tenant, **which: Any) -> MigrationRun:
    return request_rollback(tenant, chosen(tenant, **which), Request(action=Action.ROLLBACK))


def succeeded(run: MigrationRun) -> MigrationRun:
    ended = carry_out(run.pk)
    assert ended.state == "succeeded", (ended.error_code, ended.message)
    return ended


def roll_back(tenant: Tenant, **which: Any) -> MigrationRun:
    return succeeded(ask(tenant, **which))


def whole(tenant: Tenant, action: Action) -> MigrationRun:
    return succeeded(request_run(tenant, Request(action=action)))


def work_for(run: MigrationRun, steps: int, *, requeues: bool = True) -> MigrationRun:
    """A worker goes down after so many steps, and leaves the rest to the next, or cancels it."""
    asked = iter(range(steps))
    work(run.pk, emit=lambda event: None, should_stop=lambda: next(asked, None) is None, requeues=requeues)
    run.refresh_from_db()
    return run


def look(tenant: Tenant) -> dict[str, Any]:
    """The dump and the rows; of `django_migrations`, what is applied and in which order.

    A column that is dropped and added again is the last of its table: PostgreSQL knows no other place.
    """
    arguments, schema = catalog.tenant_dsn(tenant), tenant.schema_name
    rows = {table: _rows(arguments, schema, table) for table in catalog.tables(arguments, schema)}
    there = rows.pop("django_migrations", None) is not None
    lines = catalog.dump(arguments, schema).splitlines()
    return {
        "rows": rows,
        "applied": catalog.migrations(arguments, schema) if there else [],
        "dump": sorted(line.removesuffix(",") for line in lines if line),
    }


def _rows(arguments: Any, schema: str, table: str) -> list[Any]:
    """Each as JSON, but for what holds the time of day."""
    columns = sql.SQL("SELECT to_jsonb(t) FROM {} t").format(sql.Identifier(schema, table))
    found = [row for (row,) in catalog.query(arguments, columns)]
    times = re.compile(r"\d{4}-\d\d-\d\dT")
    kept = [{name: value for name, value in row.items() if not times.match(str(value))} for row in found]
    return sorted(kept, key=repr)


def execute(tenant: Tenant, statement: str) -> None:
    catalog.query(catalog.tenant_dsn(tenant), f'SET search_path TO "{tenant.schema_name}"; {statement}')


def steps(run: MigrationRun) -> list[tuple[str, bool, str]]:
    return [(str(step), step.backwards, step.state) for step in run.steps.all()]
