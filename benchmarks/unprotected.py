"""Times the executor with its protocol and without; a process of its own, for `protocol`.

What is left out is replaced here, so that the product has no switch by which it could be lost.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import django

django.setup()

from django.db import connections
from psycopg2 import sql

from benchmarks.peers.app_set import LAST
from benchmarks.processor import processor_time
from migrations_api.dispatch.pace import Pace
from migrations_api.executor import Options, execute, execution, migrate_pass, repertoire
from migrations_api.executor.applied import TABLE
from migrations_api.executor.entry import Entry
from migrations_api.executor.journal import JournalKeeper
from migrations_api.executor.migrator import TenantMigrator
from migrations_api.executor.outcome import Nobody
from migrations_api.executor.verification import Faults, present_tables
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.fleet import observe
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.share import work_on
from migrations_api.orchestrator.sources import source_for
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target, plan_to
from tenants import relay
from tenants.backends import backend_for
from tenants.binding import open_connection
from tenants.kept import close_kept
from tenants.models import Isolation, Tenant
from tenants.preflight import NOTHING
from tenants.provisioning import create_tenant
from tenants.sessions import session_settings
from tenants.watch import Reader

WHOLE = Target()


def _at(app: str, name: str) -> Target:
    return Target(app_label=app, migration_name=name)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What tenants are brought to: from `before`, from nothing, or from where the last case has left them."""

    before: Target | None = None
    target: Target = WHOLE
    is_empty: bool = False


FROM_ZERO = Case(is_empty=True)
# By the name of the set of apps.
CASES = {
    "thirty": {
        "from zero": FROM_ZERO,
        "one script": Case(before=_at("billing", "0007_entry_cause"), target=_at(*LAST[:2])),
        "nothing to do": Case(),
    },
    "shop": {
        "from zero": FROM_ZERO,
        "one with data": Case(before=_at("orders", "0002_ledger_entry"), target=_at("orders", "0003_order_total")),
        "one script": Case(before=_at("products", "0002_seed_categories"), target=_at("products", "0003_price_check")),
        "nothing to do": Case(target=_at("products", "0003_price_check")),
    },
}
Carry = Callable[[Sequence[Tenant]], object]
# Makes ready what carries out the part of some of the tenants.
Migrate = Callable[[Sequence[Tenant], Target], AbstractContextManager[Carry]]


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds a tenant: the median of the wall's, and the processors' of client and server together."""

    wall: float
    processor: float


def nothing(*_: object, **__: object) -> None: ...


@contextmanager
def unchecked_session(tenant: Tenant, *, application_name: str, **options: Any) -> Iterator[Any]:
    with closing(open_connection(session_settings(tenant, application_name=application_name))) as connection:
        connection.ensure_connection()
        yield connection


class Unlocked(Entry):
    """Only reads where the tenant stands."""

    def statements(self, connection: Any) -> sql.Composable:
        return NOTHING

    def expressions(self, home: Any) -> Sequence[sql.Composable]:
        _, isolation, is_new, _, applied, *_ = super().expressions(home)
        return sql.Literal("true"), isolation, is_new, sql.SQL("false"), applied, sql.Literal(0), sql.Literal(0)


def home(tenant: Tenant, connection: Any, reader: Reader, **options: Any) -> SimpleNamespace:
    return SimpleNamespace(has_record=bool(present_tables(reader, tenant.schema_name, [TABLE])))


def opened(
    tenant: Tenant,
    connection: Any,
    *,
    writable: bool,
    opening: sql.Composable = NOTHING,
    asked: Sequence[sql.Composable] = (),
) -> Sequence[Any]:
    """A session that is passed on becomes the tenant's, and is not looked at."""
    if opening == NOTHING:
        return ()
    with connection.cursor() as cursor:
        cursor.execute(opening + sql.SQL("SELECT ") + sql.SQL(", ").join(asked))
        row: Sequence[Any] = cursor.fetchone()
    return row


def unverified(self: Any) -> Any:
    return self._outcome(execution.End.SUCCEEDED, None, after=self.plan.applied)


def execute_directly(self: object, run: Callable[..., Any], *statement: Any) -> Any:
    return run(*statement)


@contextmanager
def no_protocol() -> Iterator[None]:
    with ExitStack() as patches:
        for name, value in {
            "tenant_session": unchecked_session,
            "tenant_lock": lambda *_, **__: nullcontext(),
            "model_marks": nothing,
            "Entry": Unlocked,
        }.items():
            patches.enter_context(patch.object(execution, name, value))
        for owner, name, value in (
            (execution._Work, "_require_nothing_there", nothing),
            (migrate_pass, "faults", lambda *_: Faults()),
            (migrate_pass.MigratePass, "_verified", unverified),
            (relay, "refuse_control_plane", nothing),
            (relay, "check_session", opened),
            (relay, "check_home", home),
            (relay.Relay, "_of_the_driver", nothing),
            (relay.Relay, "_make_new", nothing),
            (TenantMigrator, "_settle", TenantMigrator._record),
            (TenantMigrator, "_require_nothing_outside", nothing),
            (JournalKeeper, "count", execute_directly),
        ):
            patches.enter_context(patch.object(owner, name, value))
        yield


@contextmanager
def without(tenants: Sequence[Tenant], target: Target) -> Iterator[Carry]:
    def carry_out(some: Sequence[Tenant]) -> None:
        for tenant in some:
            execute_alone(tenant, target)

    with no_protocol():
        yield carry_out


def execute_alone(tenant: Tenant, target: Target) -> None:
    source = source_for(tenant.isolation)
    outcome = execute(tenant, source, target, Options(), observer=Nobody(), application_name="unprotected")
    assert outcome.end == "succeeded", outcome


@contextmanager
def protected(tenants: Sequence[Tenant], target: Target) -> Iterator[Carry]:
    """A worker's whole part of it: the claim, the lease and what is written at the end included."""
    runs = {tenant.pk: request_run(tenant, Request(target=target, via="api")).pk for tenant in tenants}

    def carry_out(some: Sequence[Tenant]) -> None:
        run_ids = [runs[tenant.pk] for tenant in some]
        work_on(run_ids, emit=nothing, should_stop=lambda: False, leave=no_longer_in_time)

    yield carry_out


def no_longer_in_time(run_ids: Sequence[int]) -> None:
    """What a share leaves behind when it takes too long."""
    for run_id in run_ids:
        work(run_id, emit=nothing, should_stop=lambda: False)


def emptied(tenants: Sequence[Tenant]) -> None:
    for tenant in tenants:
        with closing(open_connection(backend_for(tenant).connection_settings(tenant))) as connection:
            statement = sql.SQL("DROP SCHEMA {0} CASCADE; CREATE SCHEMA {0}").format(sql.Identifier(tenant.schema_name))
            connection.ensure_connection()
            connection.connection.cursor().execute(statement)


def timed(migrate: Migrate, tenants: Sequence[Tenant], target: Target, server: int) -> Took:
    """Of tenants of which nothing is known yet, in sessions that are not open yet; as many at once as a worker gets."""
    repertoire.clear()
    close_kept()
    took, pace, rest = list[float](), Pace(), list(tenants)
    with migrate(tenants, target) as carry_out:
        processor = processor_time(server)
        while rest:
            some, rest = rest[: pace.share], rest[pace.share :]
            began = time.perf_counter()
            carry_out(some)
            took.extend([(time.perf_counter() - began) / len(some)] * len(some))
            pace.ended(len(some))
        processor = processor_time(server) - processor
    require_migrated(tenants, target)
    return Took(wall=statistics.median(took), processor=processor / len(tenants))


def require_migrated(tenants: Sequence[Tenant], target: Target) -> None:
    """Whatever was left out, the tenants stand where they should."""
    source = source_for(Isolation.SCHEMA)
    for tenant_id, seen in observe(tenants).items():
        assert seen.applied is not None, (tenant_id, seen.error)
        assert not plan_to(source, seen.applied, target).steps, tenant_id
    assert not MigrationRun.objects.exclude(state="succeeded").exists()


def measured(case: Case, migrate: Migrate, tenants: Sequence[Tenant], server: int) -> Took:
    if case.is_empty:
        emptied(tenants)
    if case.before is not None:
        take_back(tenants, case.before)
    return timed(migrate, tenants, case.target, server)


def take_back(tenants: Sequence[Tenant], target: Target) -> None:
    with without(tenants, target) as carry_out:
        carry_out(tenants)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--server", type=int, required=True, help="The server's process id.")
    parser.add_argument("--apps", choices=CASES, required=True)
    options = parser.parse_args()
    tenants = [
        create_tenant(tenant_id=f"t{n}", name="", isolation=Isolation.SCHEMA, database="shop")
        for n in range(options.tenants)
    ]
    for name, case in CASES[options.apps].items():
        rounds: dict[Migrate, list[Took]] = {without: [], protected: []}
        for number in range(options.rounds):
            # In turn, so that what else goes on in the machine meets both.
            for migrate in (without, protected) if number % 2 else (protected, without):
                rounds[migrate].append(measured(case, migrate, tenants, options.server))
        for kind in ("wall", "processor"):
            off, on = (min(getattr(took, kind) for took in each) * 1000 for each in rounds.values())
            print(f"  {name:<14} {kind:<10} without {off:8.1f}   with {on:8.1f}   {on / off:5.2f} x")
    connections.close_all()


if __name__ == "__main__":
    main()
