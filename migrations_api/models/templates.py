from typing import ClassVar

from django.db import models

from tenants.models import Isolation


class TenantTemplate(models.Model):
    """What new tenants of one kind and server are copied from, as one version of the code leaves it.

    Without `content` and `reason` it is being made, by whoever holds its lease, in a home that is called `home`.
    """

    digest = models.CharField(max_length=64, primary_key=True)
    database = models.CharField("server alias", max_length=63)
    isolation = models.CharField(max_length=8, choices=Isolation)
    home = models.CharField(
        max_length=63, help_text="The tenant id of the home in which it was made, which is dropped."
    )
    content = models.JSONField(null=True)
    reason = models.CharField(max_length=500, blank=True, help_text="Why no exact copies can be made.")
    created_at = models.DateTimeField(auto_now_add=True)
    lease_expires_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.isolation} on {self.database}, {self.digest[:12]}"
