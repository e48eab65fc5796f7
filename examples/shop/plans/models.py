from django.db import models


class Plan(models.Model):
    """What a shop subscribes to; `monthly_price` is in euros."""

    name = models.SlugField(unique=True)
    monthly_price = models.DecimalField(max_digits=8, decimal_places=2)

    def __str__(self) -> str:
        return self.name


class FeatureFlag(models.Model):
    """A feature of the platform, open to the shops on any of its plans."""

    name = models.SlugField(unique=True)
    plans = models.ManyToManyField(Plan, blank=True, related_name="feature_flags")

    def __str__(self) -> str:
        return self.name
