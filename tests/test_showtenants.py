import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings as configured

from migrations_api.models import MigrationRun
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.command_line import manage


def rows() -> list[dict[str, Any]]:
    result = manage("showtenants", "--format=json")
    assert (result.code, result.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def test_no_tenants__says_how_to_make_one(plane: None) -> None:
    result = manage("showtenants")

    assert result.out == "There are no tenants. Create one with: manage.py createtenant\n"
    assert result.code == 0


def test_no_tenants__json_and_csv_stay_data(plane: None) -> None:
    assert json.loads(manage("showtenants", "--format=json").out) == []
    assert len(manage("showtenants", "--format=csv").out.splitlines()) == 1


def test_table__has_a_line_for_each_tenant(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant("globex", name="Globex [red]Inc[/red]")
    make_tenant("acme", Isolation.DATABASE, name="ACME Corporation")
    manage("migratetenant", "--tenant-id=acme")

    result = manage("showtenants")

    database = f"acme_{configured.SUFFIX}_db"
    gap = " " * (len(database) + 2)
    lines = result.out.splitlines()
    run = MigrationRun.objects.get()
    ended = f"{run.finished_at:%Y-%m-%d %H:%M:%S}".split()
    place = ["database", "shop", database, "public"]
    assert lines[0].split("  ")[0] == "tenant id"
    assert [line.split() for line in lines[1:]] == [
        ["acme", "ACME", "Corporation", *place, "up_to_date", "15", "0", str(run.pk), *ended],
        ["globex", "Globex", "[red]Inc[/red]", "schema", "shop", "public_globex", "pending", "0", "15"],
    ]
    assert f"shop      {gap}public_globex" in result.out


def test_table__piped_is_never_wrapped_or_coloured(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant(name="n" * 200)

    result = manage("showtenants", "--force-color")

    assert len(result.out.splitlines()) == 2
    assert result.out.replace("\n", "").isprintable()


def test_csv__quotes_what_needs_it(make_tenant: Callable[..., Tenant]) -> None:
    make_tenant(name='ACME, "Inc."')

    [row] = csv.DictReader(io.StringIO(manage("showtenants", "--format=csv").out))

    assert row == {
        "tenant_id": "acme",
        "name": 'ACME, "Inc."',
        "isolation": "schema",
        "database": "shop",
        "database_name": "",
        "schema_name": "public_acme",
        "status": "pending",
        "applied": "0",
        "pending": "15",
        "batch": "",
        "migrated_at": "",
        "unknown": "",
        "detail": "",
        "suspended": "False",
    }


@pytest.mark.parametrize("isolation", Isolation.values)
def test_isolation_type__keeps_that_kind(make_tenant: Callable[..., Tenant], isolation: str) -> None:
    for kind in Isolation.values:
        make_tenant(f"of-{kind}", kind)

    result = manage("showtenants", f"--isolation-type={isolation}", "--format=json")

    assert [row["tenant_id"] for row in json.loads(result.out)] == [f"of-{isolation}"]


def test_status__of_each_standing(make_tenant: Callable[..., Tenant], settings: Any) -> None:
    ahead, lost, partial = make_tenant("ahead"), make_tenant("lost"), make_tenant("partial")
    manage("migratetenant", "--tenant-id=ahead")
    catalog.query(
        catalog.tenant_dsn(ahead),
        "INSERT INTO public_ahead.django_migrations (app, name, applied) VALUES ('orders', '0099_future', now())",
    )
    catalog.query(catalog.tenant_dsn(lost), "DROP SCHEMA public_lost")
    MigrationRun.objects.create(tenant=partial, state="partial", requested_via="command")
    gone = {**configured.TENANT_DATABASES["shop"], "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    settings.TENANT_DATABASES = {**configured.TENANT_DATABASES, "gone": gone}
    make_tenant("nowhere", provision=False)
    Tenant.objects.filter(pk="nowhere").update(database="gone")

    assert {row["tenant_id"]: (row["status"], row["unknown"], row["detail"]) for row in rows()} == {
        "ahead": ("ahead", ["orders.0099_future"], ""),
        "lost": ("unprovisioned", [], "The schema 'public_lost' does not exist."),
        "nowhere": ("unreachable", [], "The database server refused the connection."),
        "partial": ("partial", [], ""),
    }
    table = manage("showtenants")
    assert "ahead: applied, but unknown to this code: orders.0099_future\n" in table.out
    assert "nowhere: The database server refused the connection.\n" in table.out
    assert table.code == 0


def test_showtenants__changes_nothing(tenant: Tenant) -> None:
    before = catalog.fingerprint(catalog.tenant_dsn(tenant))

    manage("showtenants")

    assert catalog.fingerprint(catalog.tenant_dsn(tenant)) == before


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_password__is_in_no_format(make_tenant: Callable[..., Tenant], settings: Any, form: str) -> None:
    make_tenant()
    shop = {**configured.TENANT_DATABASES["shop"], "HOST": "127.0.0.1", "PORT": "1", "PASSWORD": "s3cret-w0rd"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "TENANT_DATABASES", {"shop": {**shop, "OPTIONS": {}}})
        result = manage("showtenants", f"--format={form}")

    assert "acme" in result.out
    assert "s3cret" not in result.out + result.err
