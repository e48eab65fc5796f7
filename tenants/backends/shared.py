from tenants.backends.base import in_its_database, server_cursor
from tenants.exceptions import AlreadyProvisioned, ServiceError
from tenants.models import Tenant
from tenants.servers import DatabaseSettings


class SharedBackend:
    """The `public` schema of the server's database, which is there from the start and is never dropped."""

    def connection_settings(self, tenant: Tenant) -> DatabaseSettings:
        return in_its_database(tenant)

    def exists(self, tenant: Tenant) -> bool:
        with server_cursor(self.connection_settings(tenant)) as cursor:
            cursor.execute("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)", [tenant.schema_name])
            return bool(cursor.fetchone()[0])

    def is_empty(self, tenant: Tenant) -> bool:
        # Whatever else lives in `public` is no obstacle: shared apps are often adopted where they already are.
        return self.exists(tenant)

    def provision(self, tenant: Tenant) -> None:
        if self.exists(tenant):
            raise AlreadyProvisioned(f"The shared schema of server '{tenant.database}' is there already.")
        raise ServiceError(f"The database of server '{tenant.database}' has no schema 'public'; create it first.")

    def drop(self, tenant: Tenant) -> str:
        raise ServiceError(f"The shared schema of server '{tenant.database}' is never dropped.")
