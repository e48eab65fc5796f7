from typing import Any

from django.db import DEFAULT_DB_ALIAS

from tenants.app_sets import control_plane_labels, tenant_app_labels
from tenants.binding import bound_tenant


class TenantRouter:
    """Keeps tenant tables out of the control plane and the other way round.

    Plain `migrate` moves the control plane; a tenant is `default` only while the executor works on it.
    """

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        if db != DEFAULT_DB_ALIAS:
            return None
        tenant = bound_tenant()
        return app_label in (control_plane_labels() if tenant is None else tenant_app_labels(tenant.isolation))
