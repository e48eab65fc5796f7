from collections.abc import Callable
from typing import Any

import pytest
from psycopg2 import sql

from migrations_api.models import MigrationRun, RunStep
from migrations_api.orchestrator.requests import Request, request_run
from tenants.models import Tenant
from tests import catalog, oracle
from tests.http_api import carry_out

MakeTenant = Callable[..., Tenant]


@pytest.fixture
def expected(plane: None, broken: Callable[..., None]) -> oracle.Boundaries:
    broken(orders="orders_steady")
    return oracle.boundaries(orders="orders_steady")


def migrate(tenant: Tenant) -> MigrationRun:
    return carry_out(request_run(tenant, Request()).pk)


def lies(tenant: Tenant, expected: oracle.Boundaries) -> list[str]:
    """What the tenant's run says that is not so, without whose it is."""
    run = MigrationRun.objects.get(tenant=tenant)
    return [each.partition(": ")[2] for each in oracle.lies(run, oracle.truth(tenant), expected)]


def execute(tenant: Tenant, statement: str) -> None:
    path = sql.SQL("SET search_path TO {}; ").format(sql.Identifier(tenant.schema_name))
    catalog.query(catalog.tenant_dsn(tenant), path + sql.SQL(statement))


def test_lies__none_of_runs_that_ended_well_or_on_a_boundary(
    make_tenant: MakeTenant, expected: oracle.Boundaries
) -> None:
    fleet = [make_tenant("acme"), make_tenant("initech", "database"), make_tenant("globex")]
    assert [migrate(tenant).state for tenant in fleet] == ["succeeded", "succeeded", "failed"]
    assert [lies(tenant, expected) for tenant in fleet] == [[], [], []]
    assert [oracle.truth(tenant).ledger for tenant in fleet] == [1, 1, 1]


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("DROP INDEX orders_note_idx", ["succeeded", "succeeded, on a boundary"]),
        ("ALTER TABLE orders_order ALTER note DROP NOT NULL", ["succeeded", "succeeded, on a boundary"]),
        (
            "DELETE FROM django_migrations WHERE name = '0005_note'",
            ["succeeded", "succeeded, on a boundary", "what is applied now", "its steps"],
        ),
        (
            "INSERT INTO django_migrations (app, name, applied) VALUES ('orders', '0005_note', now())",
            ["each migration was recorded once"],
        ),
    ],
)
def test_lies__of_a_run_whose_tenant_is_not_what_it_says(
    make_tenant: MakeTenant, expected: oracle.Boundaries, statement: str, found: list[str]
) -> None:
    tenant = make_tenant()
    migrate(tenant)
    execute(tenant, statement)
    assert lies(tenant, expected) == found


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"state": "running"}, ["it has ended"]),
        ({"state": "partial"}, ["partial"]),
        ({"state": "failed"}, []),
    ],
)
def test_lies__of_a_run_that_says_something_else(
    make_tenant: MakeTenant, expected: oracle.Boundaries, values: dict[str, Any], found: list[str]
) -> None:
    tenant = make_tenant()
    migrate(tenant)
    MigrationRun.objects.update(**values)
    assert lies(tenant, expected) == found


def test_lies__of_a_step(make_tenant: MakeTenant, expected: oracle.Boundaries) -> None:
    tenant = make_tenant()
    migrate(tenant)
    RunStep.objects.filter(name="0005_note").update(state="failed")
    assert lies(tenant, expected) == ["its steps"]
