from datetime import timedelta

from django.db import models
from django.db.models.functions import Now

from tenants.conf import load_conf


class Coordinator(models.Model):
    """A process that carries out what the API asks for. It renews `seen_at` while it lives; one of them leads."""

    name = models.CharField(max_length=255, primary_key=True, help_text="Host and process.")
    leading = models.BooleanField(default=False)
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def is_seen(cls) -> bool:
        """Whether one was seen lately."""
        return cls.objects.filter(seen_at__gte=Now() - timedelta(seconds=3 * load_conf().lease)).exists()
