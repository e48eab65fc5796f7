"""Who may do what, and who did."""

from typing import Any, ClassVar, NoReturn

from django.conf import settings
from django.db import models
from rest_framework_api_key.models import AbstractAPIKey


class Role(models.TextChoices):
    """Each may do all that the one before it may. The names are those of Django groups, made by a migration."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        return list(Role).index(self)


class ApiToken(AbstractAPIKey):
    """A bearer token of one user, stored as a hash. It never gives more than its scope, nor more than its user has."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    scope = models.CharField(max_length=8, choices=Role, default=Role.VIEWER)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta(AbstractAPIKey.Meta):
        verbose_name = "API token"
        verbose_name_plural = "API tokens"


class AuditEntry(models.Model):
    """One request to change something, accepted or refused. Rows are only ever added: PostgreSQL refuses the rest."""

    at = models.DateTimeField(auto_now_add=True)
    actor = models.CharField(max_length=150, blank=True)
    token_prefix = models.CharField(max_length=8, blank=True)
    remote_address = models.GenericIPAddressField(null=True)
    request_id = models.CharField(max_length=64, blank=True)
    action = models.CharField(max_length=100)
    tenant_ids = models.JSONField(default=list)
    object_id = models.CharField(max_length=100, blank=True)
    status = models.PositiveSmallIntegerField()
    outcome = models.CharField(max_length=50)

    class Meta:
        ordering: ClassVar = ["-id"]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.action} by {self.actor or 'nobody'}: {self.outcome}"

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("An audit entry is never deleted.")
