"""Which Django apps a kind of tenant receives, and which belong to the control plane."""

from collections.abc import Iterable, Sequence

from django.apps import AppConfig, apps
from django.conf import settings

from tenants.models import Isolation


def tenant_apps(isolation: str) -> list[AppConfig]:
    """The apps that a tenant of that isolation receives, in the order of INSTALLED_APPS."""
    return _configs(settings.SHARED_APPS if isolation == Isolation.SHARED else settings.TENANT_APPS)


def tenant_app_labels(isolation: str) -> frozenset[str]:
    return frozenset(config.label for config in tenant_apps(isolation))


def control_plane_labels() -> frozenset[str]:
    """Every installed app that is not only a tenant's. CONTROL_PLANE_APPS names those that are both."""
    elsewhere = {config.label for config in _configs([*_listed("TENANT_APPS"), *_listed("SHARED_APPS")])}
    both = {config.label for config in _configs(_listed("CONTROL_PLANE_APPS"))}
    return frozenset(config.label for config in apps.get_app_configs()) - (elsewhere - both)


def _listed(setting: str) -> Sequence[str]:
    """Empty for what is no list: a check says so, but in Django 6.1 the checks of models ask the router first."""
    entries = getattr(settings, setting, None)
    return entries if isinstance(entries, (list, tuple)) else []


def missing_apps(entries: Iterable[str]) -> list[str]:
    return [entry for entry in entries if not _configs([entry])]


def _configs(entries: Iterable[str]) -> list[AppConfig]:
    wanted = set(entries)
    return [
        config
        for config in apps.get_app_configs()
        if config.name in wanted or f"{type(config).__module__}.{type(config).__qualname__}" in wanted
    ]
