import pytest

from migrations_api.executor import Options, execute
from migrations_api.executor.entry import Entry
from migrations_api.executor.outcome import End, Nobody
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Target
from tenants.models import Isolation, Tenant
from tenants.preflight import home_facts
from tenants.sessions import tenant_session
from tenants.watch import watch_of
from tests import catalog
from tests.small_app import Code, MakeTenant, add_field, migrate, migration


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
        observer=Nobody(),
        application_name="test",
        home=before,
    )
    assert (outcome.end, outcome.failure, outcome.results) == (End.SUCCEEDED, None, ())


@pytest.mark.parametrize(
    ("made", "is_empty"),
    [
        ("SELECT", True),
        ("CREATE TABLE {} (n int)", False),
        ("CREATE SEQUENCE {}", False),
        ("CREATE TYPE {} AS ENUM ('ok')", False),
        ("CREATE FUNCTION {}() RETURNS int LANGUAGE sql AS 'SELECT 1'", False),
    ],
)
@pytest.mark.parametrize("isolation", [Isolation.SCHEMA, Isolation.DATABASE])
def test_entry__sees_whether_the_schema_is_empty(
    make_tenant: MakeTenant, isolation: str, made: str, *, is_empty: bool
) -> None:
    tenant = make_tenant("acme", isolation)
    catalog.query(catalog.tenant_dsn(tenant), made.format(f'"{tenant.schema_name}".stray'))
    entry = Entry(tenant.schema_name)
    with tenant_session(tenant, application_name="test", inquiry=entry):
        assert entry.found is not None
        assert (entry.found.applied, entry.found.is_empty) == (frozenset(), is_empty)


def test_entry__what_was_there_before_the_first_run_is_not_its_fault(make_tenant: MakeTenant, code: Code) -> None:
    code()
    stray = "CREATE TABLE {0} (n int); ALTER TABLE {0} ADD CONSTRAINT positive CHECK (n > 0) NOT VALID"
    for tenant, made in ((make_tenant("acme"), stray), (make_tenant("globex"), "SELECT")):
        catalog.query(catalog.tenant_dsn(tenant), made.format(f'"{tenant.schema_name}".stray'))
        run = migrate(tenant)
        assert (run.state, run.findings) == ("succeeded", [])
