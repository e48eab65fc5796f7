from psycopg2 import errorcodes, sql

from tenants.backends.base import has_tables, resolved_server_settings, server_cursor
from tenants.driver_errors import sqlstate
from tenants.exceptions import AlreadyProvisioned, PermissionDenied, ServiceError
from tenants.models import Tenant
from tenants.servers import DatabaseSettings


class SchemaBackend:
    """A schema of its own in the server's database."""

    def connection_settings(self, tenant: Tenant) -> DatabaseSettings:
        return resolved_server_settings(tenant)

    def exists(self, tenant: Tenant) -> bool:
        with server_cursor(self.connection_settings(tenant)) as cursor:
            cursor.execute("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)", [tenant.schema_name])
            return bool(cursor.fetchone()[0])

    def is_empty(self, tenant: Tenant) -> bool:
        with server_cursor(self.connection_settings(tenant)) as cursor:
            return not has_tables(cursor, tenant.schema_name)

    def provision(self, tenant: Tenant) -> None:
        try:
            with server_cursor(self.connection_settings(tenant)) as cursor:
                cursor.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(tenant.schema_name)))
        except PermissionDenied as error:
            raise PermissionDenied(
                f"The user of server '{tenant.database}' may not create schemas: grant it CREATE on the database."
            ) from error
        except ServiceError as error:
            if sqlstate(error) != errorcodes.DUPLICATE_SCHEMA:
                raise
            raise AlreadyProvisioned(
                f"The schema '{tenant.schema_name}' exists already on server '{tenant.database}' and was left as it is."
            ) from error

    def drop(self, tenant: Tenant) -> None:
        with server_cursor(self.connection_settings(tenant)) as cursor:
            cursor.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(tenant.schema_name)))
