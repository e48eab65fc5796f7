"""Times the executor with its protocol and without; a process of its own, for `protocol`.

What is left out is replaced here, so that the product has no switch by which it could be lost.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import django

django.setup()

from django.db import connections
from psycopg2 import sql

from migrations_api.executor import Options, execute, execution
from migrations_api.executor.journal import JournalKeeper
from migrations_api.executor.migrator import TenantMigrator
from migrations_api.executor.verification import Faults
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.sources import source_for
from migrations_api.orchestrator.work import work
from migrations_api.plan import Plan, Step, Target
from tenants.backends import backend_for
from tenants.binding import open_connection
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant
from tenants.sessions import session_settings

WHOLE = Target()
BEFORE = Target(app_label="orders", migration_name="0002_ledger_entry")
PENDING = Target(app_label="orders", migration_name="0003_order_total")
Migrate = Callable[[Tenant, Target], float]


class Nobody:
    """An observer that keeps no record."""

    def planned(self, plan: Plan) -> None: ...
    def step_started(self, step: Step) -> None: ...
    def step_finished(self, result: object) -> None: ...
    def journal(self, step: Step, **values: object) -> None: ...
    def should_stop(self) -> bool:
        return False


@contextmanager
def unchecked_session(tenant: Tenant, *, application_name: str, **options: Any) -> Iterator[Any]:
    with closing(open_connection(session_settings(tenant, application_name=application_name))) as connection:
        connection.ensure_connection()
        yield connection


def execute_directly(self: object, run: Callable[..., Any], *statement: Any) -> Any:
    return run(*statement)


@contextmanager
def no_protocol() -> Iterator[None]:
    with ExitStack() as patches:
        for name, value in {
            "tenant_session": unchecked_session,
            "tenant_lock": lambda *_, **__: nullcontext(),
            "faults": lambda *_: Faults(),
            "absent_tables": lambda *_: [],
            "present_tables": lambda *_: set(),
        }.items():
            patches.enter_context(patch.object(execution, name, value))
        for name in ("_require_own_schema", "_require_nothing_outside"):
            patches.enter_context(patch.object(TenantMigrator, name, lambda *_: None))
        patches.enter_context(patch.object(JournalKeeper, "count", execute_directly))
        yield


def without(tenant: Tenant, target: Target) -> float:
    source = source_for(tenant.isolation)
    with no_protocol():
        began = time.perf_counter()
        outcome = execute(tenant, source, target, Options(), observer=Nobody(), application_name="unprotected")
        seconds = time.perf_counter() - began
    assert outcome.end == "succeeded", outcome
    return seconds


def protected(tenant: Tenant, target: Target) -> float:
    """A worker's whole part of it: the claim, the lease and what is written at the end included."""
    run = request_run(tenant, Request(target=target, via="api"))
    began = time.perf_counter()
    work(run.pk, emit=lambda event: None, should_stop=lambda: False)
    seconds = time.perf_counter() - began
    assert MigrationRun.objects.get(pk=run.pk).state == "succeeded"
    return seconds


def emptied(tenants: list[Tenant]) -> None:
    for tenant in tenants:
        with closing(open_connection(backend_for(tenant).connection_settings(tenant))) as connection:
            statement = sql.SQL("DROP SCHEMA {0} CASCADE; CREATE SCHEMA {0}").format(sql.Identifier(tenant.schema_name))
            connection.ensure_connection()
            connection.connection.cursor().execute(statement)


def from_zero(migrate: Migrate, tenants: list[Tenant]) -> list[float]:
    emptied(tenants)
    return [migrate(tenant, WHOLE) for tenant in tenants]


def one_pending(migrate: Migrate, tenants: list[Tenant]) -> list[float]:
    for tenant in tenants:
        without(tenant, BEFORE)
    return [migrate(tenant, PENDING) for tenant in tenants]


def nothing_pending(migrate: Migrate, tenants: list[Tenant]) -> list[float]:
    return [migrate(tenant, PENDING) for tenant in tenants]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    tenants = [
        create_tenant(tenant_id=f"t{n}", name="", isolation=Isolation.SCHEMA, database="shop")
        for n in range(options.tenants)
    ]
    print(f"{options.tenants} schema tenants, one after the other; median milliseconds of {options.rounds} rounds")
    for name, measure in (("from zero", from_zero), ("one pending", one_pending), ("nothing to do", nothing_pending)):
        took: dict[Migrate, list[float]] = {without: [], protected: []}
        for number in range(options.rounds):
            # In turn, so that what else goes on in the machine meets both.
            for migrate in (without, protected) if number % 2 else (protected, without):
                took[migrate] += measure(migrate, tenants)
        off, on = (statistics.median(each) * 1000 for each in took.values())
        print(f"  {name:<14} without {off:8.1f}   with {on:8.1f}   {on / off:5.2f} x")
    connections.close_all()


if __name__ == "__main__":
    main()
