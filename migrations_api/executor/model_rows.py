"""Rows that Django keeps about models: those that came with a run's models go with them when the run is taken back."""

from contextlib import suppress
from typing import Final

from django.contrib.auth import get_permission_codename
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.migrations.state import ProjectState, StateApps
from django.db.models import ProtectedError, Q, QuerySet, RestrictedError
from django.db.models.base import Model
from psycopg2 import sql

from migrations_api.plan import Marks
from tenants.watch import Question, Reader

# Of PostgreSQL: the newest id that a sequence has given, NULL where there is none.
NEWEST: Final = [
    f"coalesce(pg_sequence_last_value(to_regclass(quote_ident(%s) || '.{table}_id_seq')), 0)"
    for table in ("auth_permission", "django_content_type")
]
MARKS: Final = Question(name="marks", types=("text", "text"), statement=f"SELECT {', '.join(NEWEST)}")


def model_marks(reader: Reader, schema: str) -> Marks:
    """The newest ids of permissions and of content types: those that are made from now on have higher ones."""
    [(permissions, content_types)] = reader.rows(MARKS, schema, schema)
    return int(permissions), int(content_types)


def marks_of(schema: str) -> list[sql.Composed]:
    """The same as expressions, for a question that has other parts as well."""
    return [sql.SQL(newest.replace("%s", "{}")).format(sql.Literal(schema)) for newest in NEWEST]


def forget_model_rows(before: ProjectState, after: ProjectState, marks: Marks) -> None:
    """Delete the permissions and content types that only the models of `before` have and that are newer than `marks`.

    Django makes them after each migrate and never takes them away; so some may be there from an earlier time. What rows
    of the tenant's own protect stays. `default` is the tenant.
    """
    newest_permission, newest_content_type = marks
    for label in before.apps.app_configs:
        codenames, left = _gone(label, before, after), _names(label, after)
        permissions = Q(content_type__app_label=label, codename__in=codenames, pk__gt=newest_permission)
        _delete(after.apps, "auth", "permission", permissions)
        # Not only those of `before`: on the way back, one that was renamed has the name that it had in between.
        content_types = Q(app_label=label, pk__gt=newest_content_type) & ~Q(model__in=left)
        _delete(after.apps, "contenttypes", "contenttype", content_types)


def _names(label: str, state: ProjectState) -> set[str]:
    return {str(model._meta.model_name) for model in _models(state, label)}


def _gone(label: str, before: ProjectState, after: ProjectState) -> set[str]:
    there, left = (
        {codename for model in _models(state, label) for codename in _codenames(model)} for state in (before, after)
    )
    return there - left


def _models(state: ProjectState, label: str) -> list[type[Model]]:
    configs = state.apps.app_configs
    return list(configs[label].get_models()) if label in configs else []


def _codenames(model: type[Model]) -> set[str]:
    own = {get_permission_codename(action, model._meta) for action in model._meta.default_permissions}
    return own | {codename for codename, _ in model._meta.permissions}


def _delete(apps: StateApps, label: str, name: str, which: Q) -> None:
    if name not in apps.all_models[label]:
        return
    rows: QuerySet[Model] = apps.get_model(label, name)._default_manager.using(DEFAULT_DB_ALIAS).filter(which)
    for row in rows:
        with suppress(ProtectedError, RestrictedError), transaction.atomic():
            row.delete()
