"""The same project under django-tenants."""

from stock_settings import *  # noqa: F403
from stock_settings import APPS, DATABASES

DATABASES["default"]["ENGINE"] = "django_tenants.postgresql_backend"
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
SHARED_APPS = ["django_tenants", "tenants_fleet", "django.contrib.contenttypes"]
TENANT_APPS = APPS
INSTALLED_APPS = list(dict.fromkeys([*SHARED_APPS, *TENANT_APPS]))
TENANT_MODEL = "tenants_fleet.Client"
TENANT_DOMAIN_MODEL = "tenants_fleet.Domain"
