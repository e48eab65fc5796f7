"""Runs that stop in the middle of tests.broken.orders_step, and what the tenant shows of it."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from django.conf import settings as configured
from django.db.models.functions import Now
from psycopg2 import sql

from migrations_api.executor import Options
from migrations_api.models import MigrationRun, RunStep
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.recorder import Recorder
from migrations_api.orchestrator.repairs import diagnosis_of, request_repair
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import Step, Target
from tenants.models import Tenant
from tests import catalog, stock

APPS: Final = ["examples.shop.users", "examples.shop.products", "examples.shop.orders"]
MODULES: Final = {"orders": "tests.broken.orders_step"}
BEFORE, STEP = ("orders", "0001_initial"), ("orders", "0002_step")
# What shows in the catalog that an operation is there, by its place; TRUE where all of it is.
SHOWN: Final = (
    "SELECT to_regclass('orders_parcel') IS NOT NULL AND"
    " (SELECT count(*) = 1 FROM pg_constraint WHERE contype = 'f' AND conrelid = to_regclass('orders_parcel'))",
    "SELECT EXISTS (SELECT FROM pg_attribute a LEFT JOIN pg_attrdef d ON (adrelid, adnum) = (attrelid, attnum)"
    " WHERE attrelid = 'orders_order'::regclass AND attname = 'channel' AND d.oid IS NULL"
    " AND atttypid = 'varchar'::regtype)",
    "SELECT count(*) = 2 FROM ledger WHERE migration LIKE 'data%'",
    "SELECT to_regclass('orders_box') IS NOT NULL AND to_regclass('orders_lid') IS NOT NULL",
    "SELECT coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('orders_new_idx')"
    " AND indrelid = 'orders_order'::regclass), false)",
    "SELECT to_regclass('orders_old_idx') IS NULL",
    "SELECT coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('orders_state_idx')"
    " AND indrelid = 'orders_order'::regclass), false)",
    "SELECT to_regclass('orders_tray') IS NOT NULL AND EXISTS (SELECT FROM ledger WHERE migration = 'whole')",
    "SELECT coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('orders_reference_key')), false)",
    "SELECT NOT EXISTS (SELECT FROM pg_attribute"
    " WHERE attrelid = 'orders_slip'::regclass AND attname = 'note' AND NOT attisdropped)",
)
PLACES: Final = range(len(SHOWN))
# Of these operations the catalog tells whether a statement that nobody heard the end of was carried out.
TOLD_BY_THE_CATALOG: Final = {0, 1, 4, 5, 6, 8, 9}


class WorkerDied(BaseException):
    """Nothing in the worker catches it, as nothing catches SIGKILL."""


def never() -> bool:
    return False


def carry_out(run: MigrationRun) -> MigrationRun:
    work(run.pk, emit=lambda event: None, should_stop=never)
    run.refresh_from_db()
    return run


def ask(tenant: Tenant, name: str) -> MigrationRun:
    return request_run(tenant, Request(target=Target(app_label="orders", migration_name=name), options=Options()))


def migrate(tenant: Tenant, name: str) -> MigrationRun:
    run = carry_out(ask(tenant, name))
    assert run.state == "succeeded", run.message
    return run


def repair(run: MigrationRun, way: str, *, reason: str = "") -> MigrationRun:
    return carry_out(request_repair(run, way, reason=reason, by="ops", via="command"))


@contextmanager
def interrupted(act: Callable[[], None], *, at: tuple[int, int], instead: bool = False) -> Iterator[None]:
    """`act` is called once that is in the journal, or `instead` of its being written."""
    write = Recorder.journal

    def journal(recorder: Recorder, step: Step, *, operation: int, statements: int) -> None:
        if instead and (operation, statements) == at:
            act()
        write(recorder, step, operation=operation, statements=statements)
        if not instead and (operation, statements) == at:
            act()

    Recorder.journal = journal  # type: ignore[method-assign]
    try:
        yield
    finally:
        Recorder.journal = write  # type: ignore[method-assign]


def die() -> None:
    raise WorkerDied


def terminate() -> None:
    """End the session of the run that is being carried out."""
    server = catalog.dsn({**configured.DATABASES["default"], "NAME": "postgres"})
    ended = catalog.query(
        server,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE 'tenant-migrations%%'"
        " AND datname ~ %s",
        [f"{configured.SUFFIX}(_db)?$"],
    )
    assert (True,) in ended


def abandoned(run: MigrationRun, *, at: tuple[int, int], instead: bool = False) -> MigrationRun:
    """The run as it is settled after its worker died there."""
    died = False
    try:
        with interrupted(die, at=at, instead=instead):
            carry_out(run)
    except WorkerDied:
        died = True
    assert died, RunStep.objects.filter(run=run).values()
    settle(run)
    return run


def settle(run: MigrationRun) -> None:
    """As when the lease of a worker that is gone has run out."""
    MigrationRun.objects.filter(pk=run.pk).update(lease_expires_at=Now() - timedelta(seconds=1))
    settle_abandoned()
    run.refresh_from_db()


def journal_of(run: MigrationRun) -> tuple[str, int | None, int]:
    step = run.steps.get(name=STEP[1])
    return step.state, step.operation, step.statements


def shown(tenant: Tenant) -> list[bool]:
    """Which operations of the step the catalog shows."""
    with catalog.cursor(catalog.tenant_dsn(tenant)) as cursor:
        cursor.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(tenant.schema_name)))
        found = []
        for question in SHOWN:
            cursor.execute(question)
            found.append(cursor.fetchone()[0])
    return found


def run_sql(tenant: Tenant, statement: str) -> None:
    with catalog.cursor(catalog.tenant_dsn(tenant)) as cursor:
        cursor.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(tenant.schema_name)))
        cursor.execute(statement)


def require_true(run: MigrationRun) -> dict[str, bool]:
    """The diagnosis says nothing that the catalog does not bear out; returns which ways it calls possible."""
    found = diagnosis_of(run)
    truth = shown(run.tenant)
    standings = [each.standing for each in found.operations]
    for standing, is_there in zip(standings, truth, strict=True):
        assert standing == "unclear" or (standing == "done") == is_there, (standings, truth)
    assert standings.count("unclear") <= 1
    assert found.recorded == (STEP in catalog.migrations(catalog.tenant_dsn(run.tenant), run.tenant.schema_name))
    return {way.name: way.possible for way in found.ways}


def standing_of(arguments: dict[str, Any], schema: str) -> tuple[object, ...]:
    rows = catalog.rows(arguments, schema)
    entries = sorted(name for _, name in rows["ledger"])
    rest = {table: found for table, found in rows.items() if table not in {"ledger", "django_migrations"}}
    return catalog.dump(arguments, schema), sorted(catalog.migrations(arguments, schema)), entries, rest


@functools.cache
def boundary(key: tuple[str, str]) -> tuple[object, ...]:
    """Where stock Django brings a schema that it migrates to there."""
    arguments, schema = catalog.dsn(configured.TENANT_DATABASES["shop"]), "public_boundary"
    catalog.query(arguments, f"CREATE SCHEMA {schema}")
    try:
        stock.migrate(configured.TENANT_DATABASES["shop"], schema, APPS, *key, modules=MODULES)
        return standing_of(arguments, schema)
    finally:
        catalog.query(arguments, f"DROP SCHEMA {schema} CASCADE")


def require_boundary(tenant: Tenant, key: tuple[str, str]) -> None:
    assert standing_of(catalog.tenant_dsn(tenant), tenant.schema_name) == boundary(key)
