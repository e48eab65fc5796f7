"""The PostgreSQL role of a tenant, where it has one: it owns the tenant's home and has no rights elsewhere."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from django.db.backends.utils import CursorWrapper
from psycopg2 import errorcodes, sql

from tenants.driver_errors import sqlstate, translated
from tenants.exceptions import AlreadyProvisioned, PermissionDenied, ServiceError
from tenants.models import Tenant

logger = logging.getLogger(__name__)

ROLE_SQL: Final = """
    SELECT rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls,
           COALESCE(shobj_description(oid, 'pg_authid'), '')
      FROM pg_roles WHERE rolname = %s
"""
# Kept on the server with the role, in the same transaction: whoever crashes in between leaves both or none.
MADE_FOR: Final = "Made by tenant-migrations for tenant "


@contextmanager
def tenant_role(cursor: CursorWrapper, tenant: Tenant) -> Iterator[None]:
    """The tenant's role is there inside; if that fails, it is gone again unless it was there before.

    Raises AlreadyProvisioned for a role that is another's or may do more than a tenant's, PermissionDenied when the
    connecting user may not make it or become it.
    """
    made = bool(tenant.role_name) and _make(cursor, tenant)
    try:
        yield
    except BaseException:
        if made:
            _unmake(cursor, tenant)
        raise


def _make(cursor: CursorWrapper, tenant: Tenant) -> bool:
    cursor.execute(ROLE_SQL, [tenant.role_name])
    found = cursor.fetchone()
    if found is not None:
        _require_fit(tenant, *found)
        _become_member(cursor, tenant)
        return False
    statement = sql.SQL("CREATE ROLE {role} NOLOGIN {inherit}; COMMENT ON ROLE {role} IS {made}").format(
        role=sql.Identifier(tenant.role_name),
        inherit=sql.SQL("NOINHERIT" if _has_explicit_grants(cursor) else "INHERIT"),
        made=sql.Literal(MADE_FOR + tenant.tenant_id),
    )
    with _granted(tenant, f"may not create the role '{tenant.role_name}': grant it CREATEROLE"):
        cursor.execute(statement)
    try:
        _become_member(cursor, tenant)
    except BaseException:
        _unmake(cursor, tenant)
        raise
    return True


def _require_fit(tenant: Tenant, may_more: bool, comment: str) -> None:  # noqa: FBT001 - a row of ROLE_SQL
    if may_more:
        reason = "may log in or has rights of its own (superuser, createdb, createrole, replication, bypassrls)"
    elif comment.startswith(MADE_FOR) and comment != MADE_FOR + tenant.tenant_id:
        reason = "was made for another tenant"
    else:
        return
    raise AlreadyProvisioned(
        f"The role '{tenant.role_name}' on server '{tenant.database}' {reason}; it was left as it is."
    )


def _become_member(cursor: CursorWrapper, tenant: Tenant) -> None:
    """Sessions become the role, and inherit from it what they read of a whole fleet by one statement."""
    explicit = _has_explicit_grants(cursor)
    kinds = ["USAGE", "SET"] if explicit else ["MEMBER"]
    cursor.execute("SELECT bool_and(pg_has_role(%s, kind)) FROM unnest(%s) AS kind", [tenant.role_name, kinds])
    if cursor.fetchone()[0]:
        return
    grant = "GRANT {} TO CURRENT_USER" + (" WITH INHERIT TRUE, SET TRUE" if explicit else "")
    with _granted(tenant, f"may not become the role '{tenant.role_name}': grant it that role"):
        cursor.execute(sql.SQL(grant).format(sql.Identifier(tenant.role_name)))


def _has_explicit_grants(cursor: CursorWrapper) -> bool:
    """Whether each grant says what is inherited by it.

    Before PostgreSQL 16 the member's own attribute does: without it, the owner of a database may not create in its
    `public`, which belongs to whoever owns the database.
    """
    return bool(cursor.connection.info.server_version >= 160000)


@contextmanager
def _granted(tenant: Tenant, otherwise: str) -> Iterator[None]:
    try:
        with translated():
            yield
    except PermissionDenied as error:
        raise PermissionDenied(f"The user of server '{tenant.database}' {otherwise}.") from error


def _unmake(cursor: CursorWrapper, tenant: Tenant) -> None:
    try:
        drop_role(cursor, tenant)
    except ServiceError as error:
        # It bears its mark: the same createtenant takes it up again.
        logger.warning("role %s of tenant %s could not be dropped: %s", tenant.role_name, tenant.tenant_id, error)


def drop_role(cursor: CursorWrapper, tenant: Tenant) -> str:
    """Drop the tenant's role if the service made it; returns its name if it stays, since something else depends on it.

    That is what it owns, or what it was granted, outside of the tenant's home.
    """
    if not tenant.role_name:
        return ""
    with translated():
        cursor.execute(ROLE_SQL, [tenant.role_name])
        found = cursor.fetchone()
    if found is None or found[1] != MADE_FOR + tenant.tenant_id:
        return ""
    try:
        with translated():
            cursor.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(tenant.role_name)))
    except ServiceError as error:
        if sqlstate(error) != errorcodes.DEPENDENT_OBJECTS_STILL_EXIST:
            raise
        logger.warning("role %s of tenant %s stays: it has more than the tenant", tenant.role_name, tenant.tenant_id)
        return tenant.role_name
    return ""
