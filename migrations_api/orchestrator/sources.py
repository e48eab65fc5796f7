from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache

from django.conf import settings

from migrations_api.exceptions import UnloadableMigrations
from migrations_api.plan import MigrationSource, Target, check_target, load_source
from tenants.app_sets import tenant_app_labels
from tenants.conf import load_conf

SourceKey = tuple[frozenset[str], tuple[tuple[str, str | None], ...], bool]


def source_for(isolation: str) -> MigrationSource:
    """The migrations on disk of that kind of tenant, read once per process; raises UnloadableMigrations."""
    return _load(*source_key(isolation))


def source_key(isolation: str) -> SourceKey:
    """What decides which migrations those are."""
    return (
        tenant_app_labels(isolation),
        tuple(sorted(settings.MIGRATION_MODULES.items())),
        bool(load_conf().extra_search_path),
    )


def require_target(isolation: str, target: Target) -> None:
    """Raise PlanError for a target that no tenant of that kind can have."""
    if target == Target():
        return
    # Migrations that cannot be loaded are no mistake of the caller's: each run tells of them.
    with suppress(UnloadableMigrations):
        check_target(source_for(isolation), target)


def concerned_kinds(isolations: Collection[str], target: Target) -> set[str]:
    """Those of the kinds that receive the target's app; raises PlanError where it does not exist for them."""
    if target.app_label is None and target.migration_name is None:
        return set(isolations)
    concerned = {kind for kind in isolations if target.app_label in tenant_app_labels(kind)}
    for kind in sorted(concerned or isolations):
        require_target(kind, target)
    return concerned


@lru_cache(maxsize=8)
def _load(
    labels: frozenset[str],
    modules: tuple[tuple[str, str | None], ...],
    outside_allowed: bool,  # noqa: FBT001
) -> MigrationSource:
    return load_source(labels, outside_allowed=outside_allowed)
