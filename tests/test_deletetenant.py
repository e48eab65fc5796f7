from collections.abc import Callable
from typing import Any

import pytest

from migrations_api.models import MigrationRun
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.command_line import manage


def test_forgotten__data_and_runs_are_kept(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    manage("migratetenant", "--tenant-id=acme")
    before = catalog.fingerprint(catalog.tenant_dsn(tenant))

    result = manage("deletetenant", "--tenant-id=acme")

    assert (result.code, result.out, result.err) == (0, "Tenant 'acme' forgotten.\n", "")
    assert not Tenant.objects.exists()
    assert catalog.fingerprint(catalog.tenant_dsn(tenant)) == before
    assert MigrationRun.objects.get().tenant_id == "acme"


def test_drop__takes_the_data_of_that_tenant_alone(tenant: Tenant, make_tenant: Callable[..., Tenant]) -> None:
    other = make_tenant("globex")
    manage("migratealltenants")
    before = catalog.dump(catalog.tenant_dsn(other), other.schema_name)

    result = manage("deletetenant", "--tenant-id=acme", "--drop", "--confirm=acme")

    assert (result.code, result.out) == (0, "Tenant 'acme' forgotten and its data dropped.\n")
    assert "public_acme" not in catalog.schemas(catalog.tenant_dsn(other))
    assert tenant.database_name not in catalog.databases()
    assert catalog.dump(catalog.tenant_dsn(other), other.schema_name) == before


@pytest.mark.parametrize("confirm", [[], ["--confirm=globex"], ["--confirm=ACME"], ["--confirm="]])
def test_drop__needs_the_id_repeated(make_tenant: Callable[..., Tenant], confirm: list[str]) -> None:
    tenant = make_tenant()

    result = manage("deletetenant", "--tenant-id=acme", "--drop", *confirm)

    assert (result.code, result.out) == (2, "")
    assert result.err == "CommandError: To drop all data of 'acme', repeat it: --confirm=acme\n"
    assert Tenant.objects.filter(pk="acme").exists()
    assert "public_acme" in catalog.schemas(catalog.tenant_dsn(tenant))


def test_drop__never_the_shared_schema(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("common", Isolation.SHARED)

    result = manage("deletetenant", "--tenant-id=common", "--drop", "--confirm=common")

    assert (result.code, result.err) == (1, "CommandError: The shared schema of server 'shop' is never dropped.\n")
    assert Tenant.objects.exists()


def test_drop__of_what_is_gone_already_forgets_the_tenant(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    catalog.query(catalog.tenant_dsn(tenant), "DROP SCHEMA public_acme")

    assert manage("deletetenant", "--tenant-id=acme", "--drop", "--confirm=acme").code == 0
    assert not Tenant.objects.exists()


def test_drop__server_that_is_unreachable_keeps_the_tenant(make_tenant: Callable[..., Tenant], settings: Any) -> None:
    make_tenant()
    gone = {**settings.TENANT_DATABASES["shop"], "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "gone": gone}
    Tenant.objects.update(database="gone")

    result = manage("deletetenant", "--tenant-id=acme", "--drop", "--confirm=acme")

    assert result.code == 1
    assert result.err.startswith("CommandError: Cannot connect to the tenant's database: ")
    assert Tenant.objects.exists()


def test_unfinished_run__keeps_the_tenant(make_tenant: Callable[..., Tenant]) -> None:
    run = MigrationRun.objects.create(tenant=make_tenant(), requested_via="command")

    result = manage("deletetenant", "--tenant-id=acme")

    assert result.code == 4
    assert result.err.startswith(f"CommandError: Tenant 'acme' has an unfinished run: {run.pk}.\n")
    assert Tenant.objects.exists()


def test_unknown_tenant__is_told(plane: None) -> None:
    result = manage("deletetenant", "--tenant-id=unknown")

    assert result.code == 1
    assert result.err.startswith("CommandError: Tenant 'unknown' does not exist.\n")
