from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS, models
from django.db.models.functions import Lower

from tenants import names
from tenants.exceptions import InvalidName


class Isolation(models.TextChoices):
    SCHEMA = "schema"
    DATABASE = "database"
    SHARED = "shared"


def validate_tenant_id(value: str) -> None:
    try:
        names.validate_tenant_id(value)
    except InvalidName as error:
        raise ValidationError(error.message) from error


class Tenant(models.Model):
    """One customer's home, or the shared schema of a database server.

    `database_name` is empty where the tenant lives in the database that the server's own URL names.
    """

    tenant_id = models.CharField(max_length=63, primary_key=True, validators=[validate_tenant_id])
    name = models.CharField(max_length=200)
    isolation = models.CharField(max_length=8, choices=Isolation)
    database = models.CharField("server alias", max_length=63, default=DEFAULT_DB_ALIAS)
    database_name = models.CharField(max_length=63, blank=True)
    schema_name = models.CharField(max_length=63)
    role_name = models.CharField(
        max_length=63, blank=True, help_text="The PostgreSQL role that its sessions take on, if any."
    )
    labels = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    provisioned_at = models.DateTimeField(null=True, blank=True)
    held_at = models.DateTimeField(null=True, blank=True, help_text="Since when nothing migrates the tenant.")
    held_by = models.CharField(max_length=150, blank=True)
    hold_reason = models.CharField(max_length=500, blank=True)
    suspended = models.BooleanField(default=False, help_text="Rollouts leave the tenant out.")

    class Meta:
        ordering: ClassVar = ["tenant_id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                "database",
                Lower("database_name"),
                Lower("schema_name"),
                name="tenant_home_unique",
                violation_error_message="Another tenant has that schema or database.",
            ),
            models.UniqueConstraint(
                "database",
                Lower("role_name"),
                condition=models.Q(role_name__gt=""),
                name="tenant_role_unique",
                violation_error_message="Another tenant has that role.",
            ),
            models.CheckConstraint(condition=models.Q(isolation__in=Isolation.values), name="tenant_isolation_known"),
            models.CheckConstraint(
                condition=models.Q(tenant_id__regex=r"^[a-z]([a-z0-9-]*[a-z0-9])?$"), name="tenant_id_dns_label"
            ),
        ]

    def __str__(self) -> str:
        return self.tenant_id

    @classmethod
    def at_home(cls, *, tenant_id: str, isolation: str, **values: Any) -> "Tenant":
        """A new, unsaved tenant with the schema, database and role that the templates give it; raises InvalidName."""
        names.validate_tenant_id(tenant_id)
        names.validate_name(values.get("name", ""))
        home = {"database_name": "", "schema_name": "public", "role_name": ""}
        if isolation == Isolation.SCHEMA:
            home["schema_name"] = names.schema_name(settings.TENANT_SCHEMA_TEMPLATE, tenant_id)
        elif isolation == Isolation.DATABASE:
            home["database_name"] = names.database_name(settings.TENANT_DATABASE_TEMPLATE, tenant_id)
        template = getattr(settings, "TENANT_ROLE_TEMPLATE", "")
        if template and isolation != Isolation.SHARED:
            home["role_name"] = names.role_name(template, tenant_id)
        return cls(tenant_id=tenant_id, isolation=isolation, **home, **values)
