"""Types of the tenant's database that Django registers by their oids, for code that runs while it is `default`."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as configured
from django.contrib.postgres.signals import get_citext_oids
from django.db import DEFAULT_DB_ALIAS, migrations
from django.test import override_settings

from tests import catalog
from tests.small_app import Code, MakeTenant, migrate, migration, standing_at_first


@pytest.fixture
def citext(plane: None) -> Iterator[None]:
    """What is called so in the tenants' database; the control plane has none."""
    server = catalog.dsn(configured.TENANT_DATABASES["shop"])
    catalog.query(server, "CREATE DOMAIN public.citext AS text")
    with override_settings(INSTALLED_APPS=[*configured.INSTALLED_APPS, "django.contrib.postgres"]):
        yield
    catalog.query(server, "DROP DOMAIN public.citext")


def test_types__are_those_of_the_tenants_database(make_tenant: MakeTenant, code: Code, citext: None) -> None:
    found = []

    def read(apps: Any, editor: Any) -> None:
        with editor.connection.cursor() as cursor:
            cursor.execute("SELECT ARRAY['a', 'b']::public.citext[]")
            found.append(cursor.fetchone()[0])

    get_citext_oids.cache_clear()  # type: ignore[attr-defined]
    code(m2=migration("m2", migrations.RunPython(read)))
    tenants = standing_at_first(make_tenant, 3)
    assert get_citext_oids(DEFAULT_DB_ALIAS) == ((), ())
    for tenant in tenants:
        assert migrate(tenant).state == "succeeded"
        assert get_citext_oids(DEFAULT_DB_ALIAS) == ((), ())
    assert found == [["a", "b"]] * 3
