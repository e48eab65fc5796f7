"""Who may do what, and who did."""

from datetime import timedelta
from typing import Any, ClassVar, Final, NoReturn

from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser, Group
from django.db import models
from rest_framework_api_key.models import AbstractAPIKey, APIKeyManager

TOKEN_LIFETIME: Final = timedelta(days=90)


class Role(models.TextChoices):
    """Each may do all that the one before it may. The names are those of Django groups, made by a migration."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        return list(Role).index(self)

    @classmethod
    def of(cls, user: AbstractBaseUser | AnonymousUser) -> "Role | None":
        """The highest that the user's groups give; a superuser is an admin without being in any."""
        if getattr(user, "is_superuser", False):
            return cls.ADMIN
        names = set(Group.objects.filter(user=user.pk, name__in=cls.values).values_list("name", flat=True))
        return next((role for role in reversed(cls) if role.value in names), None)


class ApiTokenManager(APIKeyManager):
    def assign_key(self, obj: AbstractAPIKey) -> str:
        """Give the token a key, which is returned and kept nowhere."""
        key = super().assign_key(obj)
        # The library's primary key has the hash in it, and would show it in every address of the admin.
        obj.id = obj.prefix
        return key


class ApiToken(AbstractAPIKey):
    """A bearer token of one user, stored as a hash. It never gives more than its scope, nor more than its user has."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    scope = models.CharField(max_length=8, choices=Role, default=Role.VIEWER)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects: ClassVar[ApiTokenManager] = ApiTokenManager()

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
