"""What tests of the HTTP API have in common."""

from typing import Any

from migrations_api.models import MigrationRun
from migrations_api.orchestrator.work import work
from tenants.models import Isolation, Tenant

PROBLEM = {"type", "title", "status", "code", "detail"}


def refused(response: Any, status: int, code: str, *more: str) -> dict[str, Any]:
    """The problem details of a response, which have to be of that status and code, with `more` members."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body.keys() == PROBLEM | set(more)
    assert (body["status"], body["code"]) == (status, code), body
    assert body["type"] == f"urn:tenant-migrations:problem:{code}"
    assert body["detail"]
    return body


def registered(*tenant_ids: str, isolation: str = Isolation.SCHEMA, **values: Any) -> list[Tenant]:
    """Tenants that are rows and nothing else."""
    given = {"database": "shop", "name": "", **values}
    tenants = [Tenant.at_home(tenant_id=each, isolation=isolation, **given) for each in tenant_ids]
    for tenant in tenants:
        tenant.save()
    return tenants


def carry_out(run_id: int) -> MigrationRun:
    """What a coordinator does with a pending run."""
    work(run_id, emit=lambda event: None, should_stop=lambda: False)
    return MigrationRun.objects.get(pk=run_id)


def pages(client: Any, path: str, **query: Any) -> list[Any]:
    """All rows of a list, page by page."""
    response = client.get(path, query)
    found = list(response.json()["results"])
    while following := response.json()["next"]:
        response = client.get(following)
        found += response.json()["results"]
    return found
