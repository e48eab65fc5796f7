from typing import Final

from tenants.backends.base import IsolationBackend
from tenants.backends.database import DatabaseBackend
from tenants.backends.schema import SchemaBackend
from tenants.backends.shared import SharedBackend
from tenants.models import Isolation, Tenant

BACKENDS: Final[dict[str, IsolationBackend]] = {
    Isolation.SCHEMA: SchemaBackend(),
    Isolation.DATABASE: DatabaseBackend(),
    Isolation.SHARED: SharedBackend(),
}


def backend_for(tenant: Tenant) -> IsolationBackend:
    return BACKENDS[tenant.isolation]
