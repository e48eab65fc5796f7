"""What a session finds before it is trusted with a tenant: an error for each finding, and nothing changed."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Protocol

from django.db.backends.postgresql.base import DatabaseWrapper
from psycopg2 import sql

from tenants.backends.base import require_direct
from tenants.conf import load_conf
from tenants.exceptions import ForeignRecord, IsControlPlane, NotProvisioned, PermissionDenied, ServerError
from tenants.models import Tenant
from tenants.watch import Question, Reader

MINIMUM_SERVER_VERSION: Final = 140000


@dataclass(frozen=True, kw_only=True)
class SessionFacts:
    """What a new session says of itself, before it is trusted."""

    database: str
    user: str
    backend_pid: int
    server_version: int
    standby: bool
    read_only: bool


@dataclass(frozen=True, kw_only=True)
class HomeFacts:
    """What the catalog says of the tenant's schema, and of what the user may do there."""

    schema: str | None
    is_superuser: bool
    may_use: bool | None
    may_create: bool | None
    is_control_plane: bool
    # Of `django_migrations`, each None where it is missing.
    is_djangos: bool | None
    may_read: bool | None
    may_record: bool | None
    # Of the schemas behind the tenant's own, those that are there and closed to the user.
    closed: list[str]

    @property
    def has_record(self) -> bool:
        return self.is_djangos is not None


class Inquiry(Protocol):
    """What whoever works in a session wants done and to know at once, in the first message that is the tenant's."""

    def statements(self, connection: DatabaseWrapper) -> sql.Composable:
        """Sent before the question; each ends with a semicolon."""

    def expressions(self, home: HomeFacts) -> Sequence[sql.Composable]:
        """Of the question, which follows; its snapshot is newer only where transactions are read committed."""

    def answered(self, values: Sequence[Any]) -> None: ...


# No catalog is read, and nothing is cast: a new session has none of it at hand.
SESSION_SQL: Final = sql.SQL("SELECT current_database(), current_user, pg_backend_pid()")
NOTHING: Final = sql.SQL("")
# Each row is looked up by a unique index: the catalog may hold many thousands of schemas.
HOMES: Final = Question(
    name="homes",
    types=("text[]", "text[]"),
    statement="""
    SELECT asked, n.nspname::text, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
           has_schema_privilege(n.oid, 'USAGE'), has_schema_privilege(n.oid, 'CREATE'),
           EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'tenants_tenant'),
           CASE WHEN r.oid IS NOT NULL THEN r.relkind IN ('r', 'p') AND 4 =
             (SELECT count(*) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
               WHERE a.attrelid = r.oid AND NOT a.attisdropped
                 AND (a.attname, t.typcategory) IN (('id', 'N'), ('app', 'S'), ('name', 'S'), ('applied', 'D'))) END,
           has_table_privilege(r.oid, 'SELECT'),
           has_table_privilege(r.oid, 'INSERT') AND has_table_privilege(r.oid, 'DELETE'),
           ARRAY(SELECT nspname::text FROM pg_namespace e
                  WHERE e.nspname = ANY(%s) AND NOT has_schema_privilege(e.oid, 'USAGE'))
      FROM unnest(%s) asked LEFT JOIN pg_namespace n ON n.nspname = asked
      LEFT JOIN pg_class r ON r.relnamespace = n.oid AND r.relname = 'django_migrations'
""",
)


def check_session(
    tenant: Tenant,
    connection: DatabaseWrapper,
    *,
    writable: bool,
    opening: sql.Composable = NOTHING,
    asked: Sequence[sql.Composable] = (),
) -> Sequence[Any]:
    """Raise what keeps the session from being trusted.

    In the same message, `opening` is sent before the question, and `asked` are expressions whose values are returned.
    """
    with connection.cursor() as cursor:
        cursor.execute(opening + sql.SQL(", ").join([SESSION_SQL, *asked]))
        row: Sequence[Any] = cursor.fetchone()
    database, user, backend_pid, *values = row
    # The rest the server has told when the session began.
    told = connection.connection.info
    facts = SessionFacts(
        database=database,
        user=user,
        backend_pid=backend_pid,
        server_version=told.server_version,
        standby=told.parameter_status("in_hot_standby") == "on",
        read_only=told.parameter_status("default_transaction_read_only") == "on",
    )
    _require_trusted(tenant, facts, connection, writable=writable)
    return values


def inquire(connection: DatabaseWrapper, inquiry: Inquiry, home: HomeFacts) -> None:
    """In a session that has passed every check."""
    with connection.cursor() as cursor:
        asked = sql.SQL(", ").join(inquiry.expressions(home))
        cursor.execute(inquiry.statements(connection) + sql.SQL("SELECT ") + asked)
        inquiry.answered(cursor.fetchone())


def check_home(
    tenant: Tenant, connection: DatabaseWrapper, reader: Reader, *, writable: bool, facts: HomeFacts | None = None
) -> HomeFacts:
    """Raise what keeps the tenant's schema from being worked on.

    `reader` answers what the catalog says of it, unless somebody has just asked.
    """
    facts = facts or home_facts(reader, [tenant.schema_name])[tenant.schema_name]
    _require_home(tenant, facts, connection, writable=writable)
    return facts


def home_facts(reader: Reader, schemas: Sequence[str]) -> dict[str, HomeFacts]:
    """What the catalog says of these schemas of one database, by name."""
    found = reader.rows(HOMES, list(load_conf().extra_search_path), list(schemas))
    names = [field.name for field in fields(HomeFacts)]
    return {asked: HomeFacts(**dict(zip(names, row, strict=True))) for asked, *row in found}


# The first finding counts: those that make the others meaningless come first.
def _require_trusted(tenant: Tenant, facts: SessionFacts, connection: DatabaseWrapper, *, writable: bool) -> None:
    require_direct(facts.backend_pid, connection)
    if facts.database != connection.settings_dict["NAME"]:
        raise ServerError(
            f"Server '{tenant.database}' leads to database '{facts.database}' instead of "
            f"'{connection.settings_dict['NAME']}'."
        )
    if tenant.role_name and facts.user != tenant.role_name:
        raise ServerError(f"The session is '{facts.user}' instead of the tenant's role '{tenant.role_name}'.")
    if facts.server_version < MINIMUM_SERVER_VERSION:
        raise ServerError(
            f"Server '{tenant.database}' runs PostgreSQL {facts.server_version // 10000}; 14 is the oldest."
        )
    if not writable:
        return
    if facts.standby:
        raise ServerError(f"Server '{tenant.database}' is a standby, which is read-only.")
    if facts.read_only:
        raise ServerError(f"Server '{tenant.database}' is read-only (default_transaction_read_only).")


def _require_home(tenant: Tenant, facts: HomeFacts, connection: DatabaseWrapper, *, writable: bool) -> None:
    database = connection.settings_dict["NAME"]
    where = f"schema '{tenant.schema_name}' of database '{database}' on server '{tenant.database}'"
    user = tenant.role_name or connection.connection.info.user
    if tenant.role_name and facts.is_superuser:
        raise PermissionDenied(f"The role '{user}' is a superuser, whom nothing keeps in the tenant's schema.")
    if facts.schema is None:
        raise NotProvisioned(f"The {where} does not exist.")
    if facts.is_control_plane:
        raise IsControlPlane(f"The {where} holds a control plane; a tenant never shares it.")
    if facts.is_djangos is False:
        raise ForeignRecord(
            f"What is called 'django_migrations' in {where} is not Django's table: it is a view, a foreign table or "
            "the like, or lacks one of the columns id, app, name and applied."
        )
    _require_rights(facts, where, user, writable=writable)


def _require_rights(facts: HomeFacts, where: str, user: str, *, writable: bool) -> None:
    if not facts.may_use:
        raise PermissionDenied(f"The user '{user}' does not have permission to use {where}.")
    if facts.closed:
        raise PermissionDenied(
            f"The user '{user}' does not have permission to use what 'extra_search_path' names: "
            f"{', '.join(facts.closed)}. Grant it USAGE on the schema."
        )
    if facts.may_read is False:
        raise PermissionDenied(f"The user '{user}' may not read 'django_migrations' in {where}.")
    if not writable:
        return
    if not facts.may_create:
        raise PermissionDenied(f"The user '{user}' does not have permission to create tables in {where}.")
    if facts.may_record is False:
        raise PermissionDenied(f"The user '{user}' may not write to 'django_migrations' in {where}.")
