"""Create and forget tenants: the row and the schema or database behind it."""

import logging
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from tenants.backends import backend_for, refuse_control_plane
from tenants.backends.base import resolved_server_settings, server_cursor
from tenants.exceptions import (
    AlreadyProvisioned,
    HomeLeftBehind,
    InvalidName,
    NotProvisioned,
    ServiceError,
    TenantExists,
)
from tenants.models import Isolation, Tenant
from tenants.roles import drop_role
from tenants.servers import server_settings
from tenants.sessions import tenant_session

logger = logging.getLogger(__name__)


def create_tenant(
    *,
    tenant_id: str,
    name: str,
    isolation: str,
    database: str,
    labels: dict[str, str] | None = None,
    provision: bool = True,
) -> Tenant:
    """Register a tenant and, with `provision`, make its schema or database.

    What a call that was killed left behind, or one that only registered, is taken over if it is empty; a name and
    labels given now are the ones that count. Raises InvalidName, TenantExists, AlreadyProvisioned, IsControlPlane,
    ServerNotConfigured or what the server answers; then neither a row nor anything that this call made is left, and
    nothing else was touched.
    """
    tenant = Tenant.at_home(
        tenant_id=tenant_id, isolation=isolation, name=name or tenant_id, database=database, labels=labels or {}
    )
    server = server_settings(database)
    if tenant.database_name.casefold() == str(server["NAME"]).casefold():
        raise InvalidName(f"The database name '{tenant.database_name}' is that of server '{database}' itself.")
    refuse_control_plane(tenant)
    unfinished = _register(tenant)
    if not provision:
        if unfinished:
            raise _exists(tenant)
        return tenant
    given = {key: value for key, value in {"name": name, "labels": labels}.items() if value}
    if stopped := _finish(tenant, given, take_over=unfinished):
        raise stopped
    tenant.refresh_from_db()
    return tenant


def _finish(tenant: Tenant, given: dict[str, Any], *, take_over: bool) -> BaseException | None:
    """Provision under the row's lock; what stopped that is returned, so that the row's end is committed with it."""
    with transaction.atomic():
        # Another call for the same tenant waits here, and so does one that forgets it.
        row = Tenant.objects.select_for_update(no_key=True).filter(pk=tenant.pk).first()
        if row is None or row.provisioned_at is not None:
            raise TenantExists(f"Somebody else has just created or forgotten tenant '{tenant.tenant_id}'.")
        try:
            _provision(tenant, take_over=take_over)
        except HomeLeftBehind as error:
            return error
        except BaseException as error:  # noqa: BLE001 - whatever stopped it, SIGINT included, the row must not outlive it
            if not take_over:
                tenant.delete()
            return error
        Tenant.objects.filter(pk=tenant.pk).update(provisioned_at=timezone.now(), **given)
    return None


def _register(tenant: Tenant) -> bool:
    """Insert the row; True if the same tenant was registered before and never provisioned."""
    try:
        with transaction.atomic():
            tenant.save(force_insert=True)
    except IntegrityError as error:
        # The templates may have changed since: a row that names another home is another tenant's.
        keys = ("isolation", "database", "database_name", "schema_name", "role_name")
        home = {key: getattr(tenant, key) for key in keys}
        if Tenant.objects.filter(pk=tenant.pk, provisioned_at=None, **home).exists():
            return True
        if Tenant.objects.filter(pk=tenant.pk).exists():
            raise _exists(tenant) from error
        where = "' or '".join(filter(None, [tenant.database_name or tenant.schema_name, tenant.role_name]))
        raise TenantExists(f"'{where}' on server '{tenant.database}' belongs to another tenant.") from error
    return False


def _exists(tenant: Tenant) -> TenantExists:
    return TenantExists(f"Tenant '{tenant.tenant_id}' exists already.")


def _provision(tenant: Tenant, *, take_over: bool) -> None:
    backend = backend_for(tenant)
    try:
        backend.provision(tenant)
    except AlreadyProvisioned:
        if tenant.isolation != Isolation.SHARED and not (take_over and backend.is_empty(tenant)):
            raise
        with tenant_session(tenant, application_name=f"tenant-migrations provision {tenant.tenant_id}"):
            return
    try:
        with tenant_session(tenant, application_name=f"tenant-migrations provision {tenant.tenant_id}"):
            pass
    except BaseException as error:
        try:
            backend.drop(tenant)
        except ServiceError as drop_error:
            raise HomeLeftBehind(tenant.tenant_id, drop_error.message) from error
        raise
    logger.info("provisioned tenant %s", tenant.tenant_id)


def forget_tenant(tenant: Tenant, *, drop: bool = False) -> str:
    """Delete the row and, with `drop`, the schema or database with all its data, and the role, which come first.

    Raises ServiceError when the server refuses to drop; then the tenant stays registered. Returns the name of a role
    that had to stay, since more than the tenant depends on it.
    """
    left = _drop(tenant) if drop else ""
    tenant.delete()
    return left


def _drop(tenant: Tenant) -> str:
    refuse_control_plane(tenant)
    backend = backend_for(tenant)
    try:
        if backend.exists(tenant):
            with tenant_session(tenant, application_name=f"tenant-migrations drop {tenant.tenant_id}", writable=False):
                pass
            return backend.drop(tenant)
    except NotProvisioned:
        pass
    with server_cursor(resolved_server_settings(tenant)) as cursor:
        return drop_role(cursor, tenant)
