"""Bring a tenant that stands in the middle of a step to one of its ends. Nothing is guessed: the journal and the
catalog say what is there, and a way that they do not bear out is refused.
"""

import re
from typing import Final

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_migrate
from psycopg2 import sql

from migrations_api.exceptions import RepairImpossible
from migrations_api.executor import signals
from migrations_api.executor.applied import TenantRecorder
from migrations_api.executor.diagnosis import RECORD, REDO, UNDO, Half, diagnosis, models_of
from migrations_api.executor.journal import JournalKeeper, Tell, flush_deferred
from migrations_api.plan import Applied, MigrationSource
from tenants.app_sets import tenant_apps
from tenants.driver_errors import translated
from tenants.models import Tenant

# What a REINDEX CONCURRENTLY that failed leaves beside the index.
LEFT_BY_REINDEX: Final = re.compile(r"_cc(new|old)\d*\Z")


def require_possible(half: Half, way: str) -> None:
    """Raise RepairImpossible for a way that what is there does not bear out."""
    chosen = diagnosis(half).way(way)
    if not chosen.possible:
        raise RepairImpossible(chosen.does)


def place_of(half: Half, way: str) -> tuple[int, int]:
    """Where the repair begins, as a journal has it, in the direction that it bears on: undoing counts backwards."""
    begun = int(half.is_cut_off or half.restartable)
    return (half.total - half.done - begun if way == UNDO else half.done), begun


def tell_receivers(tenant: Tenant, source: MigrationSource, applied: Applied) -> None:
    """Send post_migrate, which the run that stopped half-way did not come to; `default` is the tenant."""
    state = models_of(source, applied)
    signals.send(
        post_migrate, configs=tenant_apps(tenant.isolation), state_apps=signals.final_apps(state), migrations=[]
    )


def repair(connection: BaseDatabaseWrapper, tenant: Tenant, half: Half, way: str, *, tell: Tell) -> None:
    """Go that way, which is possible, with `default` being the tenant and its lock held; raises what operations do.

    `tell` is told how far it is, from place_of() on.
    """
    keeper = JournalKeeper(connection, tell=tell, start=place_of(half, way))
    if way in {REDO, UNDO}:
        _clear(connection, half)
        cleared = half.towards(way)
        forwards = half.backwards if way == UNDO else not half.backwards
        keeper.at(place_of(cleared, way)[0])
        with connection.execute_wrapper(keeper.count):
            _carry_out(connection, cleared, keeper, forwards=forwards)
        keeper.at(half.total)
    if way == REDO:
        _rebuild(connection, tenant, half)
    recorded = half.backwards if way == UNDO else not half.backwards
    if way in {RECORD, REDO, UNDO} and half.recorded != recorded:
        _write(TenantRecorder(connection, tenant.schema_name), half, applied=recorded)


def _write(recorder: TenantRecorder, half: Half, *, applied: bool) -> None:
    with translated():
        if applied:
            recorder.record_applied(*half.key)
            return
        for key in [*half.migration.replaces, half.key]:
            recorder.record_unapplied(*key)


def _clear(connection: BaseDatabaseWrapper, half: Half) -> None:
    if half.remnant is not None:
        with connection.cursor() as cursor:
            cursor.execute(half.remnant.removal)


def _rebuild(connection: BaseDatabaseWrapper, tenant: Tenant, half: Half) -> None:
    with connection.cursor() as cursor:
        for name in half.other_invalid:
            statement = (
                "DROP INDEX CONCURRENTLY {}" if LEFT_BY_REINDEX.search(name) else "REINDEX INDEX CONCURRENTLY {}"
            )
            cursor.execute(sql.SQL(statement).format(sql.Identifier(tenant.schema_name, name)))


def _carry_out(connection: BaseDatabaseWrapper, half: Half, keeper: JournalKeeper, *, forwards: bool) -> None:
    """The operations between where the tenant stands and that end of the step."""
    state, last = half.state.clone(), half.total - 1
    if forwards:
        for operation in half.operations[: half.applied]:
            operation.state_forwards(half.key[0], state)
        numbered = list(enumerate(half.operations))[half.applied :]
    else:
        numbered = [(last - place, each) for place, each in enumerate(half.operations[: half.applied])]
    part = keeper.journaled(half.migration, numbered)
    with connection.schema_editor(atomic=False) as editor:
        (part.apply if forwards else part.unapply)(state, editor)
        flush_deferred(editor)
