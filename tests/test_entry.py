import pytest

from migrations_api.executor import Options, execute
from migrations_api.executor.outcome import End, Nobody
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Target
from tenants.models import Isolation, Tenant
from tenants.preflight import home_facts
from tenants.watch import watch_of
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
