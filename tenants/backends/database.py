from psycopg2 import errorcodes, sql

from tenants.backends.base import creating, has_tables, resolved_server_settings, server_cursor
from tenants.models import Tenant
from tenants.roles import drop_role, tenant_role
from tenants.servers import DatabaseSettings


class DatabaseBackend:
    """A database of its own on the server."""

    def connection_settings(self, tenant: Tenant) -> DatabaseSettings:
        # Never the server's own, however little the tenant's row says.
        return {**resolved_server_settings(tenant), "NAME": tenant.database_name}

    def exists(self, tenant: Tenant) -> bool:
        with server_cursor(resolved_server_settings(tenant)) as cursor:
            cursor.execute("SELECT EXISTS (SELECT FROM pg_database WHERE datname = %s)", [tenant.database_name])
            return bool(cursor.fetchone()[0])

    def is_empty(self, tenant: Tenant) -> bool:
        with server_cursor(self.connection_settings(tenant)) as cursor:
            return not has_tables(cursor, tenant.schema_name)

    def provision(self, tenant: Tenant) -> None:
        home = f"database '{tenant.database_name}'"
        statement = "CREATE DATABASE {} OWNER {}" if tenant.role_name else "CREATE DATABASE {}"
        with (
            server_cursor(resolved_server_settings(tenant)) as cursor,
            tenant_role(cursor, tenant),
            creating(home, tenant, duplicate=errorcodes.DUPLICATE_DATABASE, right="CREATEDB"),
        ):
            cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, [tenant.database_name, tenant.role_name])))

    def drop(self, tenant: Tenant) -> str:
        with server_cursor(resolved_server_settings(tenant)) as cursor:
            cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(tenant.database_name)))
            return drop_role(cursor, tenant)
