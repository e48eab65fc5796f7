from functools import lru_cache

from django.conf import settings

from migrations_api.plan import MigrationSource, load_source
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


@lru_cache(maxsize=8)
def _load(
    labels: frozenset[str],
    modules: tuple[tuple[str, str | None], ...],
    outside_allowed: bool,  # noqa: FBT001
) -> MigrationSource:
    return load_source(labels, outside_allowed=outside_allowed)
