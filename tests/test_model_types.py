"""When Django's content types and permissions are looked for behind a plan, and when they are known to be there."""

from collections.abc import Callable
from typing import Any

import pytest

from migrations_api.executor import repertoire
from migrations_api.executor.model_types import ModelTypes
from migrations_api.executor.repertoire import rehearsal_of
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import Target
from tenants.models import Isolation, Tenant
from tests.small_app import MakeTenant, migrate, query

BEFORE = Target(app_label="auth", migration_name="0011")
TYPES = """
    SELECT app_label, model, codename FROM django_content_type t LEFT JOIN auth_permission p ON p.content_type_id = t.id
     ORDER BY 1, 2, 3
"""


@pytest.fixture
def looked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The schemas in which they were."""
    schemas, are_in = list[str](), ModelTypes.are_in

    def watched(self: ModelTypes, reader: Any, schema: str) -> bool:
        schemas.append(schema)
        return are_in(self, reader, schema)

    monkeypatch.setattr(ModelTypes, "are_in", watched)
    return schemas


@pytest.fixture
def standing_before(make_tenant: MakeTenant, settings: Any, looked_for: list[str]) -> Callable[..., Tenant]:
    """A tenant before a step that makes no models, of which two others have made a script."""
    settings.TENANT_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
    repertoire.clear()

    def make(name: str) -> Tenant:
        tenant = make_tenant(name)
        assert migrate(tenant, BEFORE).state == "succeeded"
        return tenant

    for name in ("one", "two"):
        assert migrate(make(name)).state == "succeeded"
    return make


def test_types__are_known_where_the_last_run_has_left_the_tenant_as_it_stands(
    standing_before: Callable[..., Tenant], looked_for: list[str]
) -> None:
    tenant = standing_before("three")
    before = query(tenant, TYPES)
    looked_for.clear()
    run = migrate(tenant)
    assert (run.state, [step.name for step in run.steps.all()]) == (
        "succeeded",
        ["0012_alter_user_first_name_max_length"],
    )
    assert (looked_for, query(tenant, TYPES)) == ([], before)
    assert len(before) > 10


@pytest.mark.parametrize("values", [{"state": "failed"}, {"applied_after": None}, {"options": {"fake": True}}])
def test_types__are_looked_for_where_the_last_run_does_not_vouch_for_them(
    standing_before: Callable[..., Tenant], looked_for: list[str], values: dict[str, Any]
) -> None:
    tenant = standing_before("three")
    before = query(tenant, TYPES)
    MigrationRun.objects.filter(tenant=tenant).update(**values)
    query(tenant, "DELETE FROM auth_permission")
    looked_for.clear()
    assert migrate(tenant).state == "succeeded"
    assert looked_for == [tenant.schema_name]
    assert query(tenant, TYPES) == before


def test_types__are_looked_for_where_somebody_else_has_brought_the_tenant_there(
    standing_before: Callable[..., Tenant], looked_for: list[str]
) -> None:
    tenant = standing_before("three")
    query(tenant, "INSERT INTO django_migrations (app, name, applied) VALUES ('elsewhere', '0001', now())")
    looked_for.clear()
    assert migrate(tenant).state == "succeeded"
    assert looked_for == [tenant.schema_name]


def test_plan__that_makes_models_needs_others(settings: Any) -> None:
    settings.TENANT_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
    source = source_for(Isolation.SCHEMA)
    keys = sorted(source.migrations)
    last = ("auth", "0012_alter_user_first_name_max_length")
    assert rehearsal_of(source, frozenset(keys) - {last}, Target()).keeps_types
    # Django gives models permissions by their options as well.
    assert not rehearsal_of(source, frozenset(), Target()).keeps_types
    assert not rehearsal_of(source, frozenset({("contenttypes", "0001_initial")}), Target()).keeps_types
