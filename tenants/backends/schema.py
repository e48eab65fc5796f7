from psycopg2 import errorcodes, sql

from tenants.backends.base import creating, has_tables, in_its_database, server_cursor
from tenants.models import Tenant
from tenants.roles import drop_role, tenant_role
from tenants.servers import DatabaseSettings


class SchemaBackend:
    """A schema of its own in the server's database."""

    def connection_settings(self, tenant: Tenant) -> DatabaseSettings:
        return in_its_database(tenant)

    def exists(self, tenant: Tenant) -> bool:
        with server_cursor(self.connection_settings(tenant)) as cursor:
            cursor.execute("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)", [tenant.schema_name])
            return bool(cursor.fetchone()[0])

    def is_empty(self, tenant: Tenant) -> bool:
        with server_cursor(self.connection_settings(tenant)) as cursor:
            return not has_tables(cursor, tenant.schema_name)

    def provision(self, tenant: Tenant) -> None:
        home = f"schema '{tenant.schema_name}'"
        statement = "CREATE SCHEMA {} AUTHORIZATION {}" if tenant.role_name else "CREATE SCHEMA {}"
        with (
            server_cursor(self.connection_settings(tenant)) as cursor,
            tenant_role(cursor, tenant),
            creating(home, tenant, duplicate=errorcodes.DUPLICATE_SCHEMA, right="CREATE on the database"),
        ):
            cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, [tenant.schema_name, tenant.role_name])))

    def drop(self, tenant: Tenant) -> str:
        with server_cursor(self.connection_settings(tenant)) as cursor:
            cursor.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(tenant.schema_name)))
            return drop_role(cursor, tenant)
