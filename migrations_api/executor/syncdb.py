from collections.abc import Sequence

from django.apps import AppConfig
from django.db import router
from django.db.backends.base.base import BaseDatabaseWrapper


def sync_apps(connection: BaseDatabaseWrapper, configs: Sequence[AppConfig]) -> tuple[str, ...]:
    """Create the missing tables of apps without migrations, in one transaction; returns the tables' names."""
    models = [
        model
        for config in configs
        if config.models_module is not None
        for model in router.get_migratable_models(config, connection.alias, include_auto_created=False)
        if model._meta.can_migrate(connection)
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = current_schema() AND relname = ANY(%s)",
            [[model._meta.db_table for model in models]],
        )
        present = {name for (name,) in cursor.fetchall()}
    missing = [model for model in models if model._meta.db_table not in present]
    with connection.schema_editor() as editor:
        for model in missing:
            editor.create_model(model)
    return tuple(model._meta.db_table for model in missing)
