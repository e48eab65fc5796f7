"""Statements of the control plane that a session plans once, and only where the session is the caller's own."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connection, connections, transaction

from migrations_api.models.prepared import Statement, fetch_row
from migrations_api.orchestrator.requests import Request, request_run
from tests import catalog
from tests.faults import fork
from tests.forks import join, work_on
from tests.pooler import PORT, pooler
from tests.small_app import Code, MakeTenant, add_field, migrate, migration

OF_EVERY_RUN = {"claim_runs", "begin_run", "end_runs"}
DIVIDE = Statement("divide", "SELECT %(dividend)s / %(divisor)s, %(dividend)s", {"dividend": "int", "divisor": "int"})


def plane() -> dict[str, Any]:
    return catalog.dsn(configured.DATABASES["default"])


def prepared() -> dict[str, tuple[Any, int]]:
    """Of this thread's session: when each was prepared, and how often it was executed."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, prepare_time, generic_plans + custom_plans FROM pg_prepared_statements")
        return {name: (since, times) for name, since, times in cursor.fetchall()}


def divide(dividend: int, divisor: int) -> Any:
    return fetch_row(DIVIDE, {"dividend": dividend, "divisor": divisor})


@pytest.fixture(autouse=True)
def new_session(transactional_db: None) -> None:
    connection.close()


def pid() -> int:
    connection.ensure_connection()
    return int(connection.connection.info.backend_pid)


def terminate(pid: int) -> None:
    catalog.query(plane(), "SELECT pg_terminate_backend(%s, 5000)", [pid])


def test_session__plans_each_statement_once(make_tenant: MakeTenant, code: Code) -> None:
    code(m2=migration("m2", add_field("total")))
    assert migrate(make_tenant("one")).state == "succeeded"
    first = prepared()
    assert first.keys() >= OF_EVERY_RUN
    assert [migrate(make_tenant(name)).state for name in ("two", "three")] == ["succeeded"] * 2
    # Others are for runs that take their time.
    for name in OF_EVERY_RUN:
        since, times = first[name]
        assert prepared()[name] == (since, 3 * times)


def test_session__of_a_forked_process_prepares_its_own() -> None:
    assert divide(7, 2) == (3, 7)

    def child() -> None:
        assert divide(9, 2) == (4, 9)
        assert prepared()["divide"][1] == 1

    assert join(fork(child)) == [0]
    assert divide(7, 2) == (3, 7)


def test_session__that_is_new_prepares_anew(make_tenant: MakeTenant, code: Code) -> None:
    code(m2=migration("m2", add_field("total")))
    assert migrate(make_tenant("one")).state == "succeeded"
    tenant, before = make_tenant("two"), pid()
    connection.close()
    run = migrate(tenant)
    assert (run.state, run.attempt) == ("succeeded", 1)
    assert pid() != before
    assert prepared().keys() >= OF_EVERY_RUN


def test_session__that_was_cut_between_two_statements() -> None:
    assert divide(7, 2) == (3, 7)
    before = pid()
    terminate(before)
    assert divide(7, 2) == (3, 7)
    assert pid() != before
    assert prepared()["divide"][1] == 1


def test_transaction__that_is_rolled_back_leaves_them_prepared() -> None:
    with transaction.atomic():
        assert divide(7, 2) == (3, 7)
        transaction.set_rollback(True)
    since, times = prepared()["divide"]
    with transaction.atomic():
        with transaction.atomic():
            assert divide(9, 2) == (4, 9)
            transaction.set_rollback(True)
        assert divide(9, 2) == (4, 9)
    assert prepared()["divide"] == (since, times + 2)


def test_statement__that_fails_stays_prepared() -> None:
    with pytest.raises(DatabaseError, match="division by zero"), transaction.atomic():
        divide(7, 0)
    since, _ = prepared()["divide"]
    assert divide(7, 2) == (3, 7)
    assert prepared()["divide"][0] == since


def test_pooler__has_nothing_prepared_and_records_are_written(make_tenant: MakeTenant, code: Code) -> None:
    if plane().get("password"):
        pytest.skip("the pooler knows no passwords")
    code(m2=migration("m2", add_field("total")))
    runs = [request_run(make_tenant(name), Request()) for name in ("one", "two")]

    def work_behind(server: dict[str, Any]) -> None:
        connections.settings[DEFAULT_DB_ALIAS].update(server)
        for run in runs:
            work_on(run.pk)

    with tempfile.TemporaryDirectory(dir="/tmp") as name, pooler(plane(), Path(name)) as pool:
        server = {"HOST": name, "PORT": PORT, "OPTIONS": {}}
        assert join(fork(lambda: work_behind(server))) == [0]
    assert any("UPDATE" in each for each in pool.queries)
    assert not [each for each in pool.queries if each.startswith(("PREPARE", "EXECUTE"))]
    for run in runs:
        run.refresh_from_db()
        assert (run.state, run.attempt) == ("succeeded", 1)
        assert [(step.name, step.state) for step in run.steps.order_by("position")] == [
            ("0001_initial", "done"),
            ("m2", "done"),
        ]
        assert run.applied_after is not None
        assert run.applied_after.keys == {("orders", "0001_initial"), ("orders", "m2")}
