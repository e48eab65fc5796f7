from collections.abc import Callable
from typing import Any

import pytest
from django.db import migrations
from psycopg2 import sql

from migrations_api.executor import Options, execute
from migrations_api.executor.outcome import End
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Plan, Target
from tenants.models import Isolation, Tenant
from tenants.preflight import home_facts
from tenants.watch import watch_of
from tests.small_app import Code, MakeTenant, add_field, migrate, migration, query, standing_at_first


@pytest.mark.parametrize(
    "statement",
    [
        "SET work_mem TO '1MB'",
        b"SET work_mem TO '1MB'",
        sql.SQL("SET {} TO '1MB'").format(sql.Identifier("work_mem")),
        sql.Composed([sql.SQL("SET work_mem TO "), sql.Literal("1MB")]),
    ],
    ids=["text", "bytes", "formatted", "composed"],
)
def test_session__is_heard_of_whatever_says_it(make_tenant: MakeTenant, code: Code, statement: Any) -> None:
    """What may stay in a session keeps it from being passed on, in whichever form the driver was given it."""
    sessions = []

    def say(apps: Any, editor: Any) -> None:
        sessions.append(editor.connection.connection.info.backend_pid)
        with editor.connection.cursor() as cursor:
            cursor.execute(statement)

    code(m2=migration("m2", migrations.RunPython(say)))
    tenants = standing_at_first(make_tenant, 4)
    assert [migrate(tenant).state for tenant in tenants] == ["succeeded"] * 4
    assert len(set(sessions)) == 4


@pytest.mark.parametrize("write", [str, str.encode, sql.SQL], ids=["text", "bytes", "composed"])
def test_unlocked__is_heard_of_whatever_says_it(
    make_tenant: MakeTenant, code: Code, write: Callable[[str], Any]
) -> None:
    """No lock tells of a function that is changed."""
    [tenant] = standing_at_first(make_tenant, 1)
    query(tenant, "CREATE FUNCTION public.one_of_all() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    try:
        changed = "CREATE OR REPLACE FUNCTION public.one_of_all() RETURNS int LANGUAGE sql AS 'SELECT 2'"

        def change(apps: Any, editor: Any) -> None:
            with editor.connection.cursor() as cursor:
                cursor.execute(write(changed))

        code(m2=migration("m2", migrations.RunPython(change)))
        run = migrate(tenant)
        assert (run.state, run.error_code) == ("failed", "outside_tenant")
        assert query(tenant, "SELECT public.one_of_all()") == [(1,)]
    finally:
        query(tenant, "DROP FUNCTION public.one_of_all()")


class Silent:
    def planned(self, plan: Plan) -> None: ...
    def step_started(self, step: Any) -> None: ...
    def step_finished(self, result: Any) -> None: ...
    def journal(self, step: Any, **values: Any) -> None: ...
    def should_stop(self) -> bool:
        return False


@pytest.mark.parametrize("is_passed_on", [True, False])
def test_entry__sees_what_came_since_the_home_was_looked_at(
    make_tenant: MakeTenant, code: Code, *, is_passed_on: bool
) -> None:
    """Between the look and the lock, another may have migrated the tenant from zero."""
    code(m2=migration("m2", add_field("total"), atomic=is_passed_on))
    tenants = [make_tenant(f"t{number}", Isolation.SCHEMA) for number in range(4)]
    assert [migrate(tenant).state for tenant in tenants[:3]] == ["succeeded"] * 3
    last = tenants[3]
    watch = watch_of(last)
    assert watch is not None
    before = home_facts(watch, [last.schema_name])[last.schema_name]
    assert migrate(last).state == "succeeded"
    outcome = execute(
        Tenant.objects.get(pk=last.pk),
        source_for(Isolation.SCHEMA),
        Target(),
        Options(),
        observer=Silent(),
        application_name="test",
        home=before,
    )
    assert (outcome.end, outcome.failure, outcome.results) == (End.SUCCEEDED, None, ())
