"""Content types and permissions: what Django's own receivers of post_migrate see to, for all apps at once.

Model by model, they ask some three dozen questions of a tenant in which nothing has changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.apps import AppConfig
from django.contrib.auth.management import _get_all_permissions, create_permissions  # type: ignore[attr-defined]
from django.contrib.contenttypes.management import create_contenttypes
from django.db import DEFAULT_DB_ALIAS, models, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.state import StateApps
from psycopg2 import sql

from tenants.watch import Reader

RECEIVERS: Final[frozenset[Callable[..., None]]] = frozenset({create_contenttypes, create_permissions})

# Not joined: for a handful of rows, planning that costs more than it saves.
FOUND_SQL: Final = """
    SELECT id, app_label, model FROM {types} UNION ALL SELECT content_type_id, codename, NULL FROM {permissions}
"""
# In the order in which Django would make them, so that they get the same ids.
MAKE_TYPES_SQL: Final = """
    INSERT INTO {types} (app_label, model)
    SELECT app_label, model FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY v (app_label, model, place)
     WHERE NOT EXISTS (SELECT FROM {types} t WHERE t.app_label = v.app_label AND t.model = v.model) ORDER BY place
"""
MAKE_PERMISSIONS_SQL: Final = """
    INSERT INTO {permissions} (name, content_type_id, codename)
    SELECT v.name, t.id, v.codename
      FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[]) WITH ORDINALITY
           v (app_label, model, codename, name, place)
      JOIN {types} t ON t.app_label = v.app_label AND t.model = v.model
     WHERE NOT EXISTS (SELECT FROM {permissions} p WHERE p.content_type_id = t.id AND p.codename = v.codename)
     ORDER BY place
"""


@dataclass(frozen=True, kw_only=True)
class ModelTypes:
    """Of the models after a plan, in Django's order: (app label, model), and with each codename and name."""

    content_types: Sequence[tuple[str, str]]
    permissions: Sequence[tuple[str, str, str, str]]
    tables: dict[str, str]

    def are_in(self, reader: Reader, schema: str) -> bool:
        """Whether all of them are there, so that those receivers would do nothing."""
        tables = {name: sql.Identifier(schema, table) for name, table in self.tables.items()}
        found = reader.look(sql.SQL(FOUND_SQL).format(**tables))
        types = {pk: (label, name) for pk, label, name in found if name is not None}
        permissions = {(*types.get(pk, ()), codename) for pk, codename, name in found if name is None}
        return set(types.values()).issuperset(self.content_types) and permissions.issuperset(
            row[:3] for row in self.permissions
        )

    def make(self, connection: BaseDatabaseWrapper) -> None:
        """Make those that are missing."""
        tables = {name: sql.Identifier(table) for name, table in self.tables.items()}
        for statement, rows, width in (
            (MAKE_TYPES_SQL, self.content_types, 2),
            (MAKE_PERMISSIONS_SQL, self.permissions, 4),
        ):
            columns: list[list[str]] = [[row[place] for row in rows] for place in range(width)]
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL(statement).format(**tables), columns)


def model_types(state_apps: StateApps, configs: Sequence[AppConfig]) -> ModelTypes | None:
    """What those receivers would make for these models; None where it is not plain what they would."""
    try:
        content_type = state_apps.get_model("contenttypes", "ContentType")
        permission = state_apps.get_model("auth", "Permission")
    except LookupError:
        return None
    if not (
        _is_plain(content_type, {"id", "app_label", "model"})
        and _is_plain(permission, {"id", "name", "content_type", "codename"})
    ):
        return None
    found = [
        (str(model._meta.app_label), str(model._meta.model_name), model)
        for config in configs
        if config.models_module is not None and config.label in state_apps.app_configs
        for model in state_apps.get_app_config(config.label).get_models()
    ]
    return ModelTypes(
        content_types=[(app_label, name) for app_label, name, _ in found],
        permissions=[
            (app_label, name, codename, words)
            for app_label, name, model in found
            for codename, words in _get_all_permissions(model._meta)
        ],
        tables={
            "types": content_type._meta.db_table,
            "permissions": permission._meta.db_table,
        },
    )


def _is_plain(model: Any, columns: set[str]) -> bool:
    """Whether it has just those columns, and is the tenant's to have."""
    fields: Sequence[models.Field[Any, Any]] = model._meta.local_concrete_fields
    return {field.name for field in fields} == columns and router.allow_migrate_model(DEFAULT_DB_ALIAS, model)
