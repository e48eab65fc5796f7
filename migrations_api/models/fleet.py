from typing import ClassVar

from django.db import models

from migrations_api.models.runs import AppliedSet
from tenants.models import Tenant


class TenantObservation(models.Model):
    """Where a tenant stood when it was last looked at. What that means is decided by the code that reads it.

    `error_code` is empty where `applied` could be read; `partial` is what the newest run left behind.
    """

    tenant = models.OneToOneField(Tenant, on_delete=models.CASCADE, primary_key=True, related_name="observation")
    # No index of its own: the one below begins with it.
    applied = models.ForeignKey(AppliedSet, on_delete=models.PROTECT, null=True, db_index=False, related_name="+")
    partial = models.BooleanField(default=False)
    error_code = models.CharField(max_length=50, blank=True)
    detail = models.CharField(max_length=500, blank=True)
    observed_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["applied", "error_code", "partial"], name="observation_by_place")]

    def __str__(self) -> str:
        return f"{self.tenant_id} at {self.observed_at:%Y-%m-%d %H:%M:%S}"
