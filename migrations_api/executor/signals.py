"""pre_migrate and post_migrate as `migrate` sends them, but only for the apps that the tenant receives."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Final

from django.apps import AppConfig, apps
from django.contrib.auth.management import _get_all_permissions, create_permissions  # type: ignore[attr-defined]
from django.contrib.contenttypes.management import create_contenttypes
from django.db import DEFAULT_DB_ALIAS, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.migration import Migration
from django.db.migrations.state import ModelState, ProjectState, StateApps
from django.dispatch import Signal
from django.utils.module_loading import module_has_submodule


@cache
def register_receivers() -> None:
    """Import every app's `management` module, where receivers are connected by convention."""
    for config in apps.get_app_configs():
        if config.module is not None and module_has_submodule(config.module, "management"):
            import_module(".management", config.name)


def send(
    signal: Signal,
    *,
    configs: Sequence[AppConfig],
    state_apps: StateApps,
    migrations: Sequence[tuple[Migration, bool]],
    without: Collection[Callable[..., None]] = (),
) -> None:
    """Send it to every receiver but those `without`, in the order in which they were connected."""
    for config in configs:
        if config.models_module is not None:
            _send(
                signal,
                without,
                sender=config,
                app_config=config,
                verbosity=0,
                interactive=False,
                using=DEFAULT_DB_ALIAS,
                apps=state_apps,
                plan=list(migrations),
            )


def _send(signal: Signal, without: Collection[Callable[..., None]], *, sender: AppConfig, **values: Any) -> None:
    receivers, waiting = signal._live_receivers(sender)
    if not without or waiting:
        signal.send(sender=sender, **values)
        return
    for receiver in receivers:
        if receiver not in without:
            receiver(signal=signal, sender=sender, **values)


# The receivers that Types.are_in() can speak for.
OF_TYPES: Final = (create_contenttypes, create_permissions)


@dataclass(frozen=True, kw_only=True)
class Types:
    """The content types, and the permissions on them, that Django's receivers of post_migrate see to."""

    query: str
    content_types: frozenset[tuple[str, str]]
    permissions: frozenset[tuple[str, str, str]]

    def are_in(self, connection: BaseDatabaseWrapper) -> bool:
        """Whether all of them are there, so that those receivers would do nothing; one query."""
        with connection.cursor() as cursor:
            cursor.execute(self.query)
            found = cursor.fetchall()
        return self.content_types <= {row[:2] for row in found} and self.permissions <= set(found)


def types_of(state_apps: StateApps, configs: Sequence[AppConfig]) -> Types | None:
    """What those receivers would make for these models; None where it cannot be said by one query."""
    try:
        content_type = state_apps.get_model("contenttypes", "ContentType")
        permission = state_apps.get_model("auth", "Permission")
    except LookupError:
        return None
    if not all(router.allow_migrate_model(DEFAULT_DB_ALIAS, model) for model in (content_type, permission)):
        return None
    labels = [config.label for config in configs if config.models_module is not None]
    models = [
        model
        for label in labels
        if label in state_apps.app_configs
        for model in state_apps.get_app_config(label).get_models()
    ]
    return Types(
        query=(
            f'SELECT t.app_label, t.model, p.codename FROM "{content_type._meta.db_table}" t'  # noqa: S608 - Django's names
            f' LEFT JOIN "{permission._meta.db_table}" p ON p.content_type_id = t.id'
        ),
        content_types=frozenset((model._meta.app_label, str(model._meta.model_name)) for model in models),
        permissions=frozenset(
            (model._meta.app_label, str(model._meta.model_name), codename)
            for model in models
            for codename, _ in _get_all_permissions(model._meta)
        ),
    )


def final_apps(state: ProjectState) -> StateApps:
    """The models after the last step, with those of apps without migrations rendered once more.

    They were rendered before the relations that point to them existed; `migrate` does the same.
    """
    state.clear_delayed_apps_cache()
    rendered: StateApps = state.apps
    keys = [(model.app_label, model.name_lower) for model in rendered.real_models]
    with rendered.bulk_update():
        for key in keys:
            rendered.unregister_model(*key)
    rendered.render_multiple([ModelState.from_model(apps.get_model(*key)) for key in keys])
    return rendered


def clear_caches(*state_apps: Any) -> None:
    """ContentType ids are cached per process; the next tenant has others."""
    for registry in (apps, *state_apps):
        content_type = registry.all_models["contenttypes"].get("contenttype")
        if content_type is not None:
            content_type.objects.clear_cache()
