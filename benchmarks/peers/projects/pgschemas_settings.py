"""The same project under django-pgschemas."""

from stock_settings import *  # noqa: F403
from stock_settings import APPS, DATABASES

DATABASES["default"]["ENGINE"] = "django_pgschemas.postgresql"
DATABASE_ROUTERS = ["django_pgschemas.routers.TenantAppsRouter"]
SHARED_APPS = ["django_pgschemas", "pgschemas_fleet"]
INSTALLED_APPS = list(dict.fromkeys([*SHARED_APPS, *APPS]))
# Its checks look for the app of the sessions.
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
TENANTS = {
    "public": {"APPS": SHARED_APPS},
    "default": {"TENANT_MODEL": "pgschemas_fleet.Client", "APPS": APPS, "URLCONF": "urls"},
}
