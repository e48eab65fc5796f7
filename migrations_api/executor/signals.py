"""pre_migrate and post_migrate as `migrate` sends them, but only for the apps that the tenant receives."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from django.apps import AppConfig, apps
from django.contrib.postgres.signals import get_citext_oids, get_hstore_oids, register_type_handlers
from django.db import DEFAULT_DB_ALIAS
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


def receivers(signal: Signal, configs: Sequence[AppConfig]) -> set[Callable[..., None]]:
    """Who is told of those apps."""
    told = (signal._live_receivers(config) for config in configs if config.models_module is not None)
    return {receiver for both in told for kind in both for receiver in kind}


def _send(signal: Signal, without: Collection[Callable[..., None]], *, sender: AppConfig, **values: Any) -> None:
    receivers, waiting = signal._live_receivers(sender)
    if not without or waiting:
        signal.send(sender=sender, **values)
        return
    for receiver in receivers:
        if receiver not in without:
            receiver(signal=signal, sender=sender, **values)


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


@contextmanager
def own_types(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Have hstore and citext, whose oids are each database's own, read as what they are in the tenant's.

    Django asks `default` for them, and remembers the answer by that name; when the session was opened, that was the
    control plane.
    """
    if not apps.is_installed("django.contrib.postgres"):
        yield
        return
    _forget_types()
    register_type_handlers(connection)
    try:
        yield
    finally:
        _forget_types()


def _forget_types() -> None:
    for remembered in (get_hstore_oids, get_citext_oids):
        remembered.cache_clear()  # type: ignore[attr-defined]


def clear_caches(*state_apps: Any) -> None:
    """ContentType ids are cached per process; the next tenant has others."""
    for registry in (apps, *state_apps):
        content_type = registry.all_models["contenttypes"].get("contenttype")
        if content_type is not None:
            content_type.objects.clear_cache()
