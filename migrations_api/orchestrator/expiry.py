"""What is kept for a while and then removed."""

from datetime import timedelta

from django.db.models import QuerySet
from django.db.models.functions import Now

from migrations_api.models import IdempotencyRecord
from tenants.conf import load_conf


def expired_keys() -> QuerySet[IdempotencyRecord]:
    """The answers that nobody will ask for again, by TENANT_MIGRATIONS["idempotency_ttl"]."""
    return IdempotencyRecord.objects.filter(created_at__lt=Now() - timedelta(seconds=load_conf().idempotency_ttl))


def purge() -> int:
    """Remove them; returns how many there were."""
    removed, _ = expired_keys().delete()
    return removed
