"""Tenants come and go: registered, made from a template, forgotten."""

from typing import Any

from django.db import transaction

from migrations_api.exceptions import InvalidOptions, RunActive
from migrations_api.executor import Options
from migrations_api.models import MigrationRun
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.requests import Request, keep, prepare, request_run
from tenants.models import Tenant
from tenants.provisioning import create_tenant, forget_tenant


def create(**values: Any) -> Tenant:
    """create_tenant(), and a first look at where the new tenant stands."""
    tenant = create_tenant(**values)
    observations.refresh([tenant])
    return tenant


def create_from_template(*, provision: bool, by: str, via: str, **values: Any) -> tuple[Tenant, MigrationRun]:
    """create_tenant(), and a pending run that copies a template into the new tenant or migrates it.

    Raises InvalidOptions for a tenant that is not provisioned, and TooManyRuns, before anything is made.
    """
    if not provision:
        raise InvalidOptions("Only a tenant that is provisioned can be made from a template.")
    request = Request(options=Options(template=True), by=by, via=via)
    prepare(request, [values["tenant_id"]])
    tenant = create_tenant(provision=True, **values)
    return tenant, request_run(tenant, request)


def forget(tenant: Tenant, *, drop: bool) -> str:
    """forget_tenant() for a tenant that has no unfinished run; raises RunActive as well."""
    settle_abandoned([tenant.tenant_id])
    with transaction.atomic():
        keep([tenant])
        if active := MigrationRun.objects.active().filter(tenant=tenant).first():
            raise RunActive(tenant.tenant_id, active.pk)
        return forget_tenant(tenant, drop=drop)
