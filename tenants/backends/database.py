from psycopg2 import errorcodes, sql

from tenants.backends.base import has_tables, resolved_server_settings, server_cursor
from tenants.driver_errors import sqlstate
from tenants.exceptions import AlreadyProvisioned, PermissionDenied, ServiceError
from tenants.models import Tenant
from tenants.servers import DatabaseSettings


class DatabaseBackend:
    """A database of its own on the server."""

    def connection_settings(self, tenant: Tenant) -> DatabaseSettings:
        return {**resolved_server_settings(tenant), "NAME": tenant.database_name}

    def exists(self, tenant: Tenant) -> bool:
        with server_cursor(resolved_server_settings(tenant)) as cursor:
            cursor.execute("SELECT EXISTS (SELECT FROM pg_database WHERE datname = %s)", [tenant.database_name])
            return bool(cursor.fetchone()[0])

    def is_empty(self, tenant: Tenant) -> bool:
        with server_cursor(self.connection_settings(tenant)) as cursor:
            return not has_tables(cursor, tenant.schema_name)

    def provision(self, tenant: Tenant) -> None:
        try:
            with server_cursor(resolved_server_settings(tenant)) as cursor:
                cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(tenant.database_name)))
        except PermissionDenied as error:
            raise PermissionDenied(
                f"The user of server '{tenant.database}' may not create databases: grant it CREATEDB."
            ) from error
        except ServiceError as error:
            if sqlstate(error) != errorcodes.DUPLICATE_DATABASE:
                raise
            raise AlreadyProvisioned(
                f"The database '{tenant.database_name}' exists already on server '{tenant.database}' "
                "and was left as it is."
            ) from error

    def drop(self, tenant: Tenant) -> None:
        with server_cursor(resolved_server_settings(tenant)) as cursor:
            cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(tenant.database_name)))
