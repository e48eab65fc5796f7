"""The migrations on disk of one set of apps, read once, and loaders over them that need no database."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from django.db.migrations.exceptions import CircularDependencyError, NodeNotFoundError
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.migration import Migration

from migrations_api.exceptions import UnloadableMigrations
from tenants.driver_errors import redact

Key = tuple[str, str]  # (app label, migration name)


class _DiskLoader(MigrationLoader):
    """The files of some apps; to it, the others have no migrations."""

    def __init__(self, labels: frozenset[str]) -> None:
        self.labels = labels
        super().__init__(None)

    def migrations_module(self, app_label: str) -> tuple[str | None, bool]:  # type: ignore[override]  # a class method
        return super().migrations_module(app_label) if app_label in self.labels else (None, False)

    def build_graph(self) -> None:
        """Read the files only; the graph depends on what a tenant has applied."""
        self.load_disk()


class TenantLoader(MigrationLoader):
    """Django's loader for one applied set, without the query for it.

    `MigrationRecorder.applied_migrations()` first asks for all table names, a walk through the whole catalog that gets
    slower with every tenant in the database. The caller has read the rows already.
    """

    def __init__(self, source: "MigrationSource", applied: Iterable[Key]) -> None:
        self.source = source
        self._known = dict.fromkeys([*applied, *source.outside_keys])
        super().__init__(None)

    def load_disk(self) -> None:
        self.disk_migrations = {key: _own(migration) for key, migration in self.source.migrations.items()}
        self.unmigrated_apps = set(self.source.unmigrated_apps)
        self.migrated_apps = {app_label for app_label, _ in self.source.migrations}

    @property
    def applied_migrations(self) -> dict[Key, Any]:
        return self._applied

    @applied_migrations.setter
    def applied_migrations(self, value: Mapping[Key, Any]) -> None:
        # build_graph() assigns an empty dictionary where there is no connection.
        self._applied = dict(self._known)

    def start_over(self) -> None:
        """Keep the graph, and take nothing of the tenant's own as applied."""
        self._applied = dict.fromkeys(self.source.outside_keys)


def _own(migration: Migration) -> Migration:
    """With operations that receivers of pre_migrate may add to: what was read from disk serves every tenant."""
    own: Any = copy(migration)
    own.operations = list(migration.operations)
    return own  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class MigrationSource:
    """The migrations of `labels`, and of the apps outside of it that they depend on.

    Apps outside are visible through the session's search_path; their migrations are taken as applied, never planned and
    never recorded.
    """

    labels: frozenset[str]
    migrations: Mapping[Key, Migration]
    unmigrated_apps: frozenset[str]
    outside_keys: frozenset[Key]

    def loader(self, applied: Iterable[Key] = ()) -> TenantLoader:
        """Raises UnloadableMigrations for a graph with missing or circular dependencies."""
        try:
            return TenantLoader(self, applied)
        except (NodeNotFoundError, CircularDependencyError) as error:
            raise UnloadableMigrations(redact(str(error))) from error

    @cached_property
    def digests(self) -> dict[Key, str]:
        """SHA-256 of each migration's file: a migration that was edited is another migration."""
        return {key: _file_digest(migration) for key, migration in self.migrations.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Of all that is on disk, the same in each process that reads the same."""
        content = [sorted(self.labels), sorted(self.digests.items()), sorted(self.unmigrated_apps)]
        return hashlib.sha256(json.dumps([*content, sorted(self.outside_keys)]).encode()).hexdigest()


def _file_digest(migration: Migration) -> str:
    file = import_module(type(migration).__module__).__file__
    return hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest()


def load_source(labels: frozenset[str], *, outside_allowed: bool) -> MigrationSource:
    """Read the migrations of the installed apps `labels` from disk.

    Raises UnloadableMigrations when a file cannot be imported, and when a migration depends on an app outside of
    `labels` unless `outside_allowed`.
    """
    try:
        disk, outside = _read(labels)
    except Exception as error:
        raise UnloadableMigrations(redact(f"{type(error).__name__}: {error}")) from error
    if outside and not outside_allowed:
        named = "; ".join(f"{origin} depends on {app}" for app, origin in sorted(outside.items()))
        raise UnloadableMigrations(
            f"Migrations depend on apps that the tenant does not receive: {named}. Add those apps to TENANT_APPS "
            "(or SHARED_APPS), or name the schema that holds their tables in TENANT_MIGRATIONS['extra_search_path']."
        )
    kept = labels | outside.keys()
    migrations = {key: migration for key, migration in disk.disk_migrations.items() if key[0] in kept}
    return MigrationSource(
        labels=labels,
        migrations=migrations,
        unmigrated_apps=frozenset(disk.unmigrated_apps & kept),
        outside_keys=frozenset(key for key in migrations if key[0] in outside),
    )


def _read(labels: frozenset[str]) -> tuple[_DiskLoader, dict[str, str]]:
    """The migrations of the apps, and those of the apps outside that they depend on."""
    disk = _DiskLoader(labels)
    while not (outside := _outside(disk, labels)).keys() <= disk.labels:
        disk = _DiskLoader(labels | outside.keys())
    return disk, outside


def _outside(disk: MigrationLoader, labels: frozenset[str]) -> dict[str, str]:
    """Apps that migrations of `labels` need, directly or not, each with a migration that needs it."""
    found: dict[str, str] = {}
    queue = set(labels)
    while queue:
        app_label = queue.pop()
        for key, migration in disk.disk_migrations.items():
            if key[0] != app_label:
                continue
            for parent, _ in migration.dependencies:
                known = parent in labels or parent in found
                if not known and parent in disk.migrated_apps | disk.unmigrated_apps:
                    found[parent] = f"{key[0]}.{key[1]}"
                    queue.add(parent)
    return found
