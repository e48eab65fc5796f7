"""Rows that Django keeps about models: those that came with a run's models go with them when the run is taken back."""

from contextlib import suppress

from django.contrib.auth import get_permission_codename
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.migrations.state import ProjectState, StateApps
from django.db.models import ProtectedError, QuerySet, RestrictedError
from django.db.models.base import Model


def forget_model_rows(before: ProjectState, after: ProjectState) -> None:
    """Delete the permissions and content types that only the models of `before` have; `default` is the tenant.

    Django makes them after each migrate and never takes them away. What rows of the tenant's own protect stays.
    """
    for label in before.apps.app_configs:
        _delete(
            after.apps, "auth", "permission", content_type__app_label=label, codename__in=_gone(label, before, after)
        )
        _delete(after.apps, "contenttypes", "contenttype", app_label=label, model__in=_names(label, before, after))


def _names(label: str, before: ProjectState, after: ProjectState) -> set[str]:
    there, left = ({str(model._meta.model_name) for model in _models(state, label)} for state in (before, after))
    return there - left


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


def _delete(apps: StateApps, label: str, name: str, **which: object) -> None:
    if not all(which.values()) or name not in apps.all_models[label]:
        return
    rows: QuerySet[Model] = apps.get_model(label, name)._default_manager.using(DEFAULT_DB_ALIAS).filter(**which)
    for row in rows:
        with suppress(ProtectedError, RestrictedError), transaction.atomic():
            row.delete()
