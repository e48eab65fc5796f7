from django.db import models
from django_pgschemas.models import TenantModel


class Client(TenantModel):
    name = models.CharField(max_length=100)
