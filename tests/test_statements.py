from collections.abc import Callable
from typing import Any

import pytest
from django.db import migrations
from psycopg2 import sql

from tests.small_app import Code, MakeTenant, migrate, migration, query, standing_at_first


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
