"""What can go wrong with a tenant or its server. The docstring is the default message; `code` is stable."""

from typing import ClassVar


class ServiceError(Exception):
    """The service could not do what was asked."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        return str(self)


class InvalidName(ServiceError):
    """That name cannot be used."""

    code = "invalid_name"


class TenantNotFound(ServiceError):
    """The tenant does not exist."""

    code = "tenant_not_found"

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        super().__init__(
            f"Tenant '{tenant_id}' does not exist.\nPlease create one with the tenant id '{tenant_id}' first."
        )


class TenantExists(ServiceError):
    """A tenant with that id, schema or database is registered already."""

    code = "tenant_exists"


class ServerNotConfigured(ServiceError):
    """That database server is not configured."""

    code = "server_not_configured"


class ServerUnreachable(ServiceError):
    """The database server cannot be reached."""

    code = "unreachable"


class NoConnectionToSpare(ServerUnreachable):
    """The database server has no connection to spare."""


class AuthenticationFailed(ServerUnreachable):
    """The database server refused the service's credentials."""

    code = "authentication_failed"


class NotProvisioned(ServiceError):
    """The tenant's schema or database does not exist."""

    code = "unprovisioned"


class ForeignRecord(ServiceError):
    """The tenant's `django_migrations` is not Django's."""

    code = "foreign_record"


class OutsideTenant(ServiceError):
    """A migration changes what does not belong to its tenant."""

    code = "outside_tenant"


class AlreadyProvisioned(ServiceError):
    """The schema or database exists already and was not made by this call, so it was left as it is."""

    code = "already_provisioned"


class HomeLeftBehind(ServiceError):
    """The tenant could not be set up, and its empty schema or database could not be dropped again."""

    code = "home_left_behind"

    def __init__(self, tenant_id: str, reason: str) -> None:
        super().__init__(
            f"Tenant '{tenant_id}' could not be set up, and its empty schema or database could not be dropped again "
            f"({reason}). It stays registered as unprovisioned; the same createtenant takes it up again."
        )


class PermissionDenied(ServiceError):
    """The database user lacks a right that this needs."""

    code = "permission_denied"


class IsControlPlane(ServiceError):
    """The tenant would be the control plane itself."""

    code = "is_control_plane"


class ServerError(ServiceError):
    """The database server reported an error."""

    code = "server_error"


class PoolerInBetween(ServerError):
    """The URL leads to a connection pooler, which mixes up sessions; give one that leads to PostgreSQL directly."""

    code = "pooler_in_between"
