"""Tenants by the hundred, made in bulk: with an empty schema each, or as copies of a tenant that is migrated."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from django.conf import settings as configured
from django.utils import timezone
from psycopg2 import sql

from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.plan import Target
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.http_api import carry_out


def named(prefix: str, tenants: int, *, failing: int = 0) -> list[str]:
    """So many tenant ids, of which `failing`, evenly spread, contain `globex`."""
    every = tenants // failing if failing else tenants + 1
    return [f"{prefix}{n:04}{'-globex' if n % every == every - 1 else ''}" for n in range(tenants)]


@contextmanager
def fleet(tenant_ids: Sequence[str], isolation: str = Isolation.SCHEMA) -> Iterator[list[Tenant]]:
    """Registered tenants on the server `shop`: with an empty schema each; of databases, only the first has its own."""
    tenants = Tenant.objects.bulk_create(
        Tenant.at_home(tenant_id=each, isolation=isolation, name=each, database="shop", provisioned_at=timezone.now())
        for each in tenant_ids
    )
    try:
        _each(tenants if isolation == Isolation.SCHEMA else tenants[:1], "CREATE SCHEMA {}")
        yield tenants
    finally:
        # One at a time: dropping thousands of tables in one transaction takes more locks than there are.
        _each(tenants, "DROP SCHEMA IF EXISTS {} CASCADE")


def _each(tenants: Sequence[Tenant], statement: str) -> None:
    if tenants[0].isolation == Isolation.DATABASE:
        statement = statement.replace("SCHEMA", "DATABASE").replace("CASCADE", "WITH (FORCE)")
    with catalog.cursor(catalog.dsn(configured.TENANT_DATABASES["shop"])) as cursor:
        for tenant in tenants:
            home = tenant.database_name or tenant.schema_name
            cursor.execute(sql.SQL(statement).format(sql.Identifier(home)))


def bring(tenant: Tenant, *target: str) -> None:
    """Migrate one tenant in this process, to app_label and migration_name if they are given."""
    app_label, name = (*target, None, None)[:2]
    request = Request(target=Target(app_label=app_label, migration_name=name))
    assert carry_out(request_run(tenant, request).pk).state == "succeeded"


def copy(original: Tenant, tenants: Sequence[Tenant]) -> None:
    """Give each tenant what `original` has: in place of its empty schema, or as its database."""
    if original.isolation == Isolation.DATABASE:
        _each(tenants, f'CREATE DATABASE {{}} TEMPLATE "{original.database_name}"')
        return
    arguments = catalog.tenant_dsn(original)
    dumped = _dump(arguments, original.schema_name)
    with catalog.cursor(arguments) as cursor:
        for tenant in tenants:
            cursor.execute(f'DROP SCHEMA "{tenant.schema_name}"')
            cursor.execute(dumped.replace(f'"{original.schema_name}"', f'"{tenant.schema_name}"'))


def _dump(arguments: dict[str, object], schema: str) -> str:
    """The schema and its rows as SQL, without what only psql or only a server of pg_dump's own version understands."""
    conninfo = f"--dbname={catalog._conninfo(arguments)}"
    command = [
        catalog.pg_dump(),
        "--no-owner",
        "--rows-per-insert=1000",
        "--quote-all-identifiers",
        f'--schema="{schema}"',
        conninfo,
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.sub(r"^(\\.*|SET transaction_timeout = .*)\n", "", text, flags=re.M)
