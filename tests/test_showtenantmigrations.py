import json
import re
from collections.abc import Callable

from tenants.models import Tenant
from tests import catalog
from tests.command_line import manage

MIGRATIONS = {
    "users": ["0001_initial", "0002_email_unique", "0003_full_name", "0004_remove_name_parts", "0005_address"],
    "products": ["0001_initial", "0002_seed_categories", "0003_price_check", "0004_labels", "0005_label_to_tag"],
    "orders": ["0001_initial", "0002_ledger_entry", "0003_order_total", "0004_status_index", "0005_revenue_view"],
}


def without_times(text: str) -> str:
    return re.sub(r" \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(, run \d+)?\)", " (time)", text)


def test_listing__pending(tenant: Tenant) -> None:
    result = manage("showtenantmigrations", "--tenant-id=acme")

    assert result.out == "".join(
        f"{app_label}\n" + "".join(f" [ ] {name}\n" for name in names) for app_label, names in MIGRATIONS.items()
    )
    assert (result.code, result.err) == (0, "")
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == set()


def test_listing__applied_with_times(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant()
    manage("migratetenant", "--tenant-id=acme", "users", "0002")

    result = manage("showtenantmigrations", "--tenant-id=acme", "users")

    assert without_times(result.out) == (
        "users\n"
        " [X] 0001_initial (time)\n"
        " [X] 0002_email_unique (time)\n"
        " [ ] 0003_full_name\n"
        " [ ] 0004_remove_name_parts\n"
        " [ ] 0005_address\n"
    )


def test_listing__marks_what_this_code_does_not_know(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    manage("migratetenant", "--tenant-id=acme")
    catalog.query(
        catalog.tenant_dsn(tenant),
        "INSERT INTO public_acme.django_migrations (app, name, applied) VALUES ('orders', '0099_future', now())",
    )

    result = manage("showtenantmigrations", "--tenant-id=acme", "orders")

    assert without_times(result.out).endswith(" [X] 0099_future (time) (not in this code)\n")


def test_squashed__counts_as_applied_when_all_it_replaces_is(
    make_tenant: Callable[..., Tenant], broken: Callable[..., None]
) -> None:
    make_tenant()
    manage("migratetenant", "--tenant-id=acme")
    broken(products="products_squashed")

    result = manage("showtenantmigrations", "--tenant-id=acme", "products")

    assert without_times(result.out) == "products\n [X] 0001_squashed_0005_label_to_tag (time)\n"


def test_json__is_a_list_of_migrations(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant()

    result = manage("showtenantmigrations", "--tenant-id=acme", "orders", "--format=json")

    assert json.loads(result.out) == [
        {"app_label": "orders", "name": name, "applied": None, "known": True, "run_id": None}
        for name in MIGRATIONS["orders"]
    ]


def test_unknown_app__is_a_usage_error(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant()

    result = manage("showtenantmigrations", "--tenant-id=acme", "users", "plans")

    assert (result.code, result.out) == (2, "")
    assert result.err == "CommandError: No migrations of app 'plans'; tenant 'acme' has: users, products, orders.\n"


def test_unknown_tenant__is_told_what_to_do(plane: None) -> None:
    result = manage("showtenantmigrations", "--tenant-id=unknown")

    assert result.code == 1
    assert result.err == (
        "CommandError: Tenant 'unknown' does not exist.\nPlease create one with the tenant id 'unknown' first.\n"
    )


def test_unprovisioned__is_an_error(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant()
    catalog.query(catalog.tenant_dsn(tenant), "DROP SCHEMA public_acme")

    result = manage("showtenantmigrations", "--tenant-id=acme")

    assert (result.code, result.out) == (1, "")
    assert result.err == "CommandError: The schema 'public_acme' does not exist.\n"
