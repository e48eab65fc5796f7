"""Create and forget tenants: the row and the schema or database behind it."""

import logging

from django.db import IntegrityError, transaction
from django.utils import timezone

from tenants.backends import backend_for
from tenants.exceptions import (
    AlreadyProvisioned,
    HomeLeftBehind,
    InvalidName,
    NotProvisioned,
    ServiceError,
    TenantExists,
)
from tenants.models import Isolation, Tenant
from tenants.servers import server_settings
from tenants.sessions import refuse_control_plane, tenant_session

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

    An empty schema or database left behind by a call that was killed is taken over. Raises InvalidName, TenantExists,
    AlreadyProvisioned, IsControlPlane, ServerNotConfigured or what the server answers; then neither a row nor anything
    that this call made is left, and nothing else was touched.
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
    try:
        _provision(tenant, take_over=unfinished)
    except HomeLeftBehind:
        raise
    except BaseException:
        # Whatever stopped this call, SIGINT included, the row must not outlive it.
        if not unfinished:
            tenant.delete()
        raise
    Tenant.objects.filter(pk=tenant.pk).update(provisioned_at=timezone.now())
    tenant.refresh_from_db()
    return tenant


def _register(tenant: Tenant) -> bool:
    """Insert the row; True if the same tenant was registered before and never provisioned."""
    try:
        with transaction.atomic():
            tenant.save(force_insert=True)
    except IntegrityError as error:
        # The templates may have changed since: a row that names another home is another tenant's.
        home = {key: getattr(tenant, key) for key in ("isolation", "database", "database_name", "schema_name")}
        if Tenant.objects.filter(pk=tenant.pk, provisioned_at=None, **home).exists():
            return True
        if Tenant.objects.filter(pk=tenant.pk).exists():
            raise _exists(tenant) from error
        where = tenant.database_name or tenant.schema_name
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


def forget_tenant(tenant: Tenant, *, drop: bool = False) -> None:
    """Delete the row and, with `drop`, the schema or database with all its data, which comes first.

    Raises ServiceError when the server refuses to drop; then the tenant stays registered.
    """
    if drop:
        refuse_control_plane(tenant)
        try:
            with tenant_session(tenant, application_name=f"tenant-migrations drop {tenant.tenant_id}", writable=False):
                pass
        except NotProvisioned:
            pass
        else:
            backend_for(tenant).drop(tenant)
    tenant.delete()
