from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.checks import Warning as CheckWarning
from django.db import DEFAULT_DB_ALIAS

from tenants import names
from tenants.app_sets import control_plane_labels, missing_apps
from tenants.broker import current_app
from tenants.conf import load_conf
from tenants.exceptions import InvalidName
from tenants.servers import ENGINE, server_aliases, server_settings


@register("tenants")
def check_databases(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    servers = getattr(settings, "TENANT_DATABASES", None)
    if not isinstance(servers, dict) or DEFAULT_DB_ALIAS in servers:
        return [
            Error(
                "TENANT_DATABASES must be a dictionary of further servers, without 'default'.",
                hint="Set TENANT_DATABASE_URLS to alias=url pairs.",
                id="tenants.E003",
            )
        ]
    return [
        Error(
            f"The database server '{alias}' is not PostgreSQL.",
            hint=f"Use ENGINE {ENGINE!r}, or a postgresql:// URL.",
            id="tenants.E001",
        )
        for alias in server_aliases()
        if server_settings(alias).get("ENGINE") != ENGINE
    ]


@register("tenants")
def check_control_plane(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    options = settings.DATABASES.get(DEFAULT_DB_ALIAS, {}).get("OPTIONS", {})
    if {"connect_timeout", "service"} & options.keys():
        return []
    return [
        CheckWarning(
            "Connecting to the control plane has no time limit: a host that is silent would hold up every worker.",
            hint="Make DATABASES['default'] with tenants.servers.database_settings, or give its OPTIONS a "
            "'connect_timeout' in seconds, and a 'tcp_user_timeout' in milliseconds.",
            id="tenants.W011",
        )
    ]


@register("tenants")
def check_router(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if "tenants.router.TenantRouter" in settings.DATABASE_ROUTERS:
        return []
    return [
        Error(
            "DATABASE_ROUTERS does not have the tenant router.",
            hint="Add 'tenants.router.TenantRouter'; without it tenant tables land in the control plane.",
            id="tenants.E002",
        )
    ]


@register("tenants")
def check_apps(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    for setting in ("TENANT_APPS", "SHARED_APPS"):
        entries = getattr(settings, setting, None)
        if not isinstance(entries, (list, tuple)):
            messages.append(
                Error(f"{setting} must be a list.", hint="List entries of INSTALLED_APPS.", id="tenants.E007")
            )
            continue
        messages += [
            Error(
                f"{setting} names '{entry}', which is not an installed app.",
                hint="Use an entry of INSTALLED_APPS, spelled the same.",
                id="tenants.E004",
            )
            for entry in missing_apps(entries)
        ]
    return messages


@register("tenants")
def check_user_model(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if settings.AUTH_USER_MODEL.partition(".")[0] in control_plane_labels():
        return []
    return [
        Error(
            f"AUTH_USER_MODEL is '{settings.AUTH_USER_MODEL}', of an app that the control plane does not receive.",
            hint="Add the app to CONTROL_PLANE_APPS: tokens and the admin have users as well.",
            id="tenants.E008",
        )
    ]


@register("tenants")
def check_templates(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    for setting, compute in (
        ("TENANT_SCHEMA_TEMPLATE", names.schema_name),
        ("TENANT_DATABASE_TEMPLATE", names.database_name),
        ("TENANT_ROLE_TEMPLATE", names.role_name),
    ):
        if setting == "TENANT_ROLE_TEMPLATE" and getattr(settings, setting, "") == "":
            continue
        try:
            compute(str(getattr(settings, setting, "")), "acme")
        except InvalidName as error:
            messages.append(
                Error(f"{setting}: {error.message}", hint="Such as 'public_{tenant_id}'.", id="tenants.E005")
            )
    return messages


@register("tenants")
def check_conf(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    try:
        load_conf()
    except ValueError as error:
        hint = "The README has the table of settings."
        return [Error(f"TENANT_MIGRATIONS: {error}", hint=hint, id="tenants.E006")]
    return []


@register("tenants")
def check_shadow_server(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    try:
        alias = load_conf().shadow_server
    except ValueError:
        return []  # which check_conf tells
    if not alias or alias in server_aliases():
        return []
    hint = f"Choose one of: {', '.join(server_aliases())}."
    message = f"TENANT_MIGRATIONS: 'shadow_server' is '{alias}', and there is no such server."
    return [Error(message, hint=hint, id="tenants.E010")]


@register("tenants")
def check_celery(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    try:
        if load_conf().executor != "celery":
            return []
    except ValueError:
        return []  # which check_conf tells
    if find_spec("celery") is None:
        missing, hint = "Celery is not installed", "Install the celery extra: pip install '.[celery]'."
    elif not current_app().conf.broker_url:
        missing, hint = "no broker is configured", "Set CELERY_BROKER_URL, such as redis://127.0.0.1:6379/0."
    else:
        return []
    return [Error(f"TENANT_MIGRATIONS: 'executor' is 'celery', and {missing}.", hint=hint, id="tenants.E009")]
