"""An app of a few migrations that a test writes itself, and what becomes of tenants that have it."""

from collections.abc import Callable
from typing import Any

from django.db import migrations, models
from psycopg2 import sql

from migrations_api.executor import Options
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import MigrationSource, Target
from tenants.models import Tenant
from tests import catalog

MakeTenant = Callable[..., Tenant]
# Called like code(m2=migration("m2", ...)): the app `orders` has the first migration and those.
Code = Callable[..., None]
APP = "examples.shop.orders"
END = Target()
FIRST = Target(app_label="orders", migration_name="0001_initial")
PLAIN = Options()


class First(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            "Order",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("number", models.CharField(max_length=10, unique=True)),
                ("changed_at", models.DateTimeField(auto_now=True)),
            ],
        ),
    )


def migration(
    name: str, *operations: Any, after: str = "0001_initial", atomic: bool = True
) -> type[migrations.Migration]:
    values = {"dependencies": [("orders", after)], "operations": list(operations), "atomic": atomic}
    return type(name, (migrations.Migration,), values)


def add_field(name: str) -> migrations.AddField:
    """What is the same in every tenant."""
    return migrations.AddField("Order", name, models.IntegerField(null=True))


def source_of(kinds: dict[str, type[migrations.Migration]]) -> MigrationSource:
    written = {("orders", name): kind(name, "orders") for name, kind in kinds.items()}
    nothing: frozenset[Any] = frozenset()
    return MigrationSource(
        labels=frozenset({"orders"}), migrations=written, unmigrated_apps=nothing, outside_keys=nothing
    )


def migrate(tenant: Tenant, target: Target = END, options: Options = PLAIN) -> MigrationRun:
    run = request_run(tenant, Request(target=target, options=options))
    work(run.pk, emit=lambda event: None, should_stop=lambda: False)
    run.refresh_from_db()
    return run


def query(tenant: Tenant, statement: str) -> list[tuple[Any, ...]]:
    path = sql.SQL("SET search_path TO {}; ").format(sql.Identifier(tenant.schema_name))
    return catalog.query(catalog.tenant_dsn(tenant), path + sql.SQL(statement))


def standing_at_first(make_tenant: MakeTenant, count: int) -> list[Tenant]:
    tenants = [make_tenant(f"t{number}") for number in range(count)]
    for tenant in tenants:
        assert migrate(tenant, FIRST).state == "succeeded"
    return tenants
