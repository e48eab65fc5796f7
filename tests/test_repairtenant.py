"""A partial run as those who have to repair it see it: by the command and by the API."""

from collections.abc import Callable

import pytest
from django.conf import settings as configured
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from migrations_api.models import AuditEntry, MigrationRun
from tenants.models import Tenant
from tests import catalog, halves
from tests.command_line import manage
from tests.halves import BEFORE, STEP
from tests.http_api import carry_out, refused

MakeTenant = Callable[..., Tenant]
Choose = Callable[..., None]
ClientOf = Callable[[str | None], APIClient]


@pytest.fixture
def tenant(broken: Choose, make_tenant: MakeTenant) -> Tenant:
    broken(orders="orders_step")
    tenant = make_tenant()
    halves.migrate(tenant, BEFORE[1])
    return tenant


@pytest.fixture
def run(tenant: Tenant) -> MigrationRun:
    """Whose worker died after the first operation."""
    return halves.abandoned(halves.ask(tenant, STEP[1]), at=(1, 0))


OPERATIONS = [
    "Create model Parcel",
    "Add field channel to order",
    "Raw Python operation",
    "Raw SQL operation",
    "Concurrently create index orders_new_idx on field(s) channel of model order",
    "Concurrently remove index orders_old_idx from order",
    "Custom state/database change combination",
    "Raw SQL operation",
    "Raw SQL operation",
    "Remove field note from slip",
]
MARK = "Changes nothing in the tenant and takes it as it stands: after somebody has repaired it by hand."


def listed(standings: list[str]) -> str:
    marks = {"done": "✓", "open": "-", "unclear": "?"}
    return "".join(
        f"  {marks[standing]} {operation} ({standing})\n"
        for operation, standing in zip(OPERATIONS, standings, strict=True)
    )


def test_repairtenant__shows_what_is_there_and_the_ways_out(run: MigrationRun) -> None:
    result = manage("repairtenant", f"--run={run.pk}")
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "Tenant 'acme' stopped orders.0002_step, which is not recorded.\n"
        + listed(["done"] + ["open"] * 9)
        + "Ways out:\n"
        "  record is not possible: Not every operation of the step is really done.\n"
        "  --way redo: Does the 9 operations that are left.\n"
        "  --way undo: Undoes the one operation that is done.\n"
        f"  --way mark: {MARK}\n"
    )


def test_repairtenant__shows_what_is_not_known(tenant: Tenant) -> None:
    run = halves.abandoned(halves.ask(tenant, STEP[1]), at=(3, 1))
    unknown = (
        "Whether this was carried out is not known: Raw SQL operation. Look, bring it to one or the other, and mark it."
    )
    result = manage("repairtenant", f"--run={run.pk}")
    assert result.out == (
        "Tenant 'acme' stopped orders.0002_step, which is not recorded.\n"
        + listed(["done"] * 3 + ["unclear"] + ["open"] * 6)
        + "Ways out:\n"
        "  record is not possible: Not every operation of the step is really done.\n"
        f"  redo is not possible: {unknown}\n"
        f"  undo is not possible: {unknown}\n"
        f"  --way mark: {MARK}\n"
    )


def test_repairtenant__shows_an_invalid_index(tenant: Tenant) -> None:
    halves.run_sql(tenant, "INSERT INTO orders_order (status, reference) VALUES ('open', 1), ('open', 1)")
    run = halves.carry_out(halves.ask(tenant, STEP[1]))
    result = manage("repairtenant", f"--run={run.pk}")
    assert "  Invalid indexes: orders_reference_key\nWays out:\n" in result.out
    assert "  --way undo: Drops orders_reference_key, then undoes the 8 operations that are done.\n" in result.out


def test_repairtenant__shows_the_undoing_of_a_step(tenant: Tenant) -> None:
    halves.migrate(tenant, STEP[1])
    run = halves.abandoned(halves.ask(tenant, BEFORE[1]), at=(9, 0))
    result = manage("repairtenant", f"--run={run.pk}")
    assert result.out.startswith("Tenant 'acme' stopped undoing orders.0002_step, which is recorded.\n")
    assert "  --way redo: Undoes the one operation that is left.\n" in result.out
    assert "  --way undo: Does again the 9 operations that were undone.\n" in result.out


def test_repairtenant__goes_the_way_that_is_chosen(run: MigrationRun, tenant: Tenant) -> None:
    result = manage("repairtenant", f"--run={run.pk}", "--way=redo")
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "Running migrations for tenant: Acme\n"
        "  orders/0002_step.py ... OK\n"
        "Migrations completed successfully for tenant 'acme'.\n"
    )
    assert STEP in catalog.migrations(catalog.tenant_dsn(tenant), tenant.schema_name)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--run=999"], 1, "Run 999 does not exist."),
        (["--run=none"], 2, "--run"),
        (["--way=mark"], 2, "To mark a tenant as repaired by hand takes a reason."),
        (["--way=record"], 1, "Not every operation of the step is really done."),
        (["--way=guess"], 2, "guess"),
    ],
)
def test_repairtenant__refuses(run: MigrationRun, arguments: list[str], code: int, message: str) -> None:
    given = arguments if arguments[0].startswith("--run") else [f"--run={run.pk}", *arguments]
    result = manage("repairtenant", *given)
    assert result.code == code
    assert message in result.err


def test_api__shows_the_diagnosis_to_a_viewer(run: MigrationRun, viewer: APIClient) -> None:
    body = viewer.get(f"/runs/{run.pk}/repair").json()
    assert body["step"] == "orders.0002_step"
    assert (body["backwards"], body["recorded"], body["invalid_indexes"]) == (False, False, [])
    assert [each["standing"] for each in body["operations"]] == ["done"] + ["open"] * 9
    assert [(each["way"], each["possible"]) for each in body["ways"]] == [
        ("record", False),
        ("redo", True),
        ("undo", True),
        ("mark", True),
    ]


def test_api__repairs_for_an_admin(run: MigrationRun, tenant: Tenant, admin: APIClient) -> None:
    response = admin.post(f"/runs/{run.pk}/repair", {"way": "undo", "reason": "not today"})
    assert response.status_code == 202
    body = response.json()
    assert (body["state"], body["repair_of"], body["repair_way"]) == ("pending", run.pk, "undo")
    assert (body["repair_reason"], body["requested_by"]) == ("not today", "admin")
    assert response["Location"].endswith(f"/runs/{body['id']}")
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.tenant_ids, entry.object_id) == ("repair_run", ["acme"], str(body["id"]))
    assert carry_out(body["id"]).state == "succeeded"
    halves.require_boundary(tenant, BEFORE)


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_api__repairs_for_nobody_else(run: MigrationRun, client_of: ClientOf, role: str) -> None:
    refused(client_of(role).post(f"/runs/{run.pk}/repair", {"way": "redo"}), 403, "permission_denied")


def test_api__refuses_what_is_not_to_be_repaired(run: MigrationRun, tenant: Tenant, admin: APIClient) -> None:
    refused(admin.post(f"/runs/{run.pk}/repair", {"way": "mark"}), 422, "invalid_options")
    refused(admin.post(f"/runs/{run.pk}/repair", {"way": "guess"}), 400, "invalid", "errors")
    refused(admin.get("/runs/999/repair"), 404, "not_found")
    first = MigrationRun.objects.order_by("pk")[0]
    refused(admin.get(f"/runs/{first.pk}/repair"), 409, "invalid_transition")
    assert halves.repair(run, "redo").state == "succeeded"
    body = refused(admin.post(f"/runs/{run.pk}/repair", {"way": "redo"}), 409, "invalid_transition")
    assert "has changed tenant 'acme' since" in body["detail"]


def test_api__a_second_repair_has_to_wait(run: MigrationRun, admin: APIClient) -> None:
    assert admin.post(f"/runs/{run.pk}/repair", {"way": "redo"}).status_code == 202
    refused(admin.post(f"/runs/{run.pk}/repair", {"way": "undo"}), 409, "run_active", "run_id")


def test_api__diagnosis_takes_few_queries(run: MigrationRun, viewer: APIClient) -> None:
    viewer.get(f"/runs/{run.pk}/repair")
    with CaptureQueriesContext(connection) as found:
        viewer.get(f"/runs/{run.pk}/repair")
    assert len(found) <= 9


def test_api__says_when_the_tenant_cannot_be_read(run: MigrationRun, viewer: APIClient) -> None:
    nowhere = {"shop": {**configured.TENANT_DATABASES["shop"], "PORT": "1"}}
    with override_settings(TENANT_DATABASES=nowhere):
        refused(viewer.get(f"/runs/{run.pk}/repair"), 502, "unreachable")
