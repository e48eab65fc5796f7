from typing import Final

from django.db import DEFAULT_DB_ALIAS

from tenants.backends.base import IsolationBackend
from tenants.backends.database import DatabaseBackend
from tenants.backends.schema import SchemaBackend
from tenants.backends.shared import SharedBackend
from tenants.exceptions import IsControlPlane
from tenants.models import Isolation, Tenant
from tenants.servers import server_settings

BACKENDS: Final[dict[str, IsolationBackend]] = {
    Isolation.SCHEMA: SchemaBackend(),
    Isolation.DATABASE: DatabaseBackend(),
    Isolation.SHARED: SharedBackend(),
}


def backend_for(tenant: Tenant) -> IsolationBackend:
    return BACKENDS[tenant.isolation]


def refuse_control_plane(tenant: Tenant) -> None:
    """Raise IsControlPlane when the tenant's settings name the control plane's own schema.

    This needs no connection; the session's check finds what only the server knows, such as two names of one host.
    """
    if tenant.isolation == Isolation.SCHEMA and tenant.schema_name != "public":
        return
    plane = server_settings(DEFAULT_DB_ALIAS)
    home = backend_for(tenant).connection_settings(tenant)
    if not home.get("NAME"):
        raise IsControlPlane(f"Tenant '{tenant.tenant_id}' has no database of its own.")
    same_server = all(str(home.get(key) or "") == str(plane.get(key) or "") for key in ("HOST", "PORT"))
    same_socket = home.get("OPTIONS", {}).get("host") == plane.get("OPTIONS", {}).get("host")
    if same_server and same_socket and home["NAME"] == plane["NAME"]:
        raise IsControlPlane(
            f"Tenant '{tenant.tenant_id}' would be the control plane itself. Give it another server "
            "(--database=ALIAS, of TENANT_DATABASE_URLS), or make its apps part of the control plane."
        )
