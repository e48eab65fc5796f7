"""From what a tenant has applied to the steps that take it to a target: pure functions over Django's graph."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from django.apps import apps
from django.db.migrations.exceptions import AmbiguityError, NodeNotFoundError
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.migration import Migration
from django.db.migrations.state import ProjectState
from django.utils.module_loading import import_string

from migrations_api import exceptions
from migrations_api.plan.source import Key, MigrationSource, TenantLoader

if TYPE_CHECKING:
    from migrations_api.plan.risk import Risk

Applied = frozenset[Key]
# The newest ids of a tenant's permissions and content types.
Marks = tuple[int, int]
# Loaded with the first step that is planned: it knows operations that few projects have.
_RISKS_OF: Final = "migrations_api.plan.risk.risks_of"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to go: every app's newest migration, one app's, or one migration; `zero` undoes the whole app."""

    app_label: str | None = None
    migration_name: str | None = None

    def __str__(self) -> str:
        return ".".join(part for part in (self.app_label, self.migration_name) if part) or "all"


@dataclass(frozen=True, kw_only=True)
class Step:
    app_label: str
    name: str
    backwards: bool = False
    atomic: bool = True
    reversible: bool = True
    operations: tuple[str, ...] = ()
    risks: "tuple[Risk, ...]" = ()
    digest: str = field(default="", repr=False)
    # Whether it is only recorded, or taken out of the record, whatever the run's options are.
    fake: bool = False

    def __str__(self) -> str:
        return f"{self.app_label}.{self.name}"

    @property
    def file(self) -> str:
        return f"{self.app_label}/{self.name}.py"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of one applied set towards one target.

    `nodes` are the targets in Django's form, (label, None) meaning zero. `unknown` are applied migrations of the
    tenant's apps that are not on disk: the tenant is ahead of this code. `replacements` are squashed migrations to be
    recorded because all that they replace is applied. `left` is what is applied after a plan that only undoes; one that
    undoes and then goes forwards has that second part as `then`, whose steps are among its own.
    """

    target: Target
    nodes: tuple[tuple[str, str | None], ...]
    steps: tuple[Step, ...]
    applied: Applied
    unknown: tuple[str, ...]
    replacements: tuple[Key, ...]
    unmigrated_apps: tuple[str, ...]
    loader: TenantLoader = field(repr=False, compare=False)
    migrations: tuple[tuple[Migration, bool], ...] = field(repr=False, compare=False)
    left: Applied | None = None
    # Of the tenant as it was found, for whoever takes the plan back.
    marks: Marks | None = field(default=None, compare=False)
    then: "Plan | None" = None

    @property
    def digest(self) -> str:
        """Names the content: the starting point, the steps in order and each one's file."""
        content = {
            "from": fingerprint(self.applied),
            "nodes": sorted([app, name or ""] for app, name in self.nodes),
            "steps": [[step.app_label, step.name, step.backwards, step.digest, step.fake] for step in self.steps],
        }
        return _sha256(content)

    @property
    def app_labels(self) -> list[str]:
        """In the order of INSTALLED_APPS, which is the one that people wrote down."""
        labels = {app_label for app_label, _ in self.nodes}
        return [app_label for app_label in apps.app_configs if app_label in labels]

    @property
    def backwards(self) -> bool:
        return any(step.backwards for step in self.steps)


def fingerprint(applied: Iterable[Key]) -> str:
    """Names an applied set; tenants with equal fingerprints get equal plans."""
    return _fingerprint(frozenset(applied))


@lru_cache(maxsize=256)
def _fingerprint(applied: Applied) -> str:
    return _sha256(sorted([app_label, name] for app_label, name in applied))


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


class Planner(MigrationExecutor):
    """Django's executor without its constructor, which queries the database."""

    def __init__(self, loader: MigrationLoader) -> None:
        self.loader = loader

    def project_state(self) -> ProjectState:
        """The models as the applied migrations leave them, with those of apps without migrations."""
        state: ProjectState = self._create_project_state(with_applied_migrations=True)  # type: ignore[attr-defined]
        return state


def make_plan(source: MigrationSource, applied: Applied, target: Target) -> Plan:
    """The plan from `applied` to `target`; rows of other apps in `applied` are left out of account.

    Raises UnloadableMigrations, InconsistentHistory, ConflictingMigrations, UnknownApp, AppWithoutMigrations,
    UnknownMigration or AmbiguousMigration.
    """
    own = frozenset(key for key in applied if key[0] in source.labels)
    loader = source.loader(own)
    _check_history(loader, own | source.outside_keys)
    _check_conflicts(loader)
    nodes = _resolve(loader, source, target)
    migrations = _migration_plan(loader, nodes)
    steps = tuple(step_of(migration, source, backwards=backwards) for migration, backwards in migrations)
    return Plan(
        target=target,
        nodes=nodes,
        steps=steps,
        applied=own,
        unknown=tuple(sorted(f"{app_label}.{name}" for app_label, name in own - known_keys(source))),
        replacements=_due_replacements(loader, own),
        unmigrated_apps=tuple(sorted(loader.unmigrated_apps)),
        loader=loader,
        migrations=migrations,
    )


def is_recorded(key: Key, applied: Applied, source: MigrationSource) -> bool:
    """Whether a migration has run: a squashed one is recorded by what it replaces, its own row comes last."""
    migration = source.migrations.get(key)
    replaced = [] if migration is None else [(app_label, name) for app_label, name in migration.replaces]
    return key in applied or (bool(replaced) and all(each in applied for each in replaced))


def full_order(loader: TenantLoader) -> list[Key]:
    """Every migration of the tenant's apps in the order in which an empty tenant would get them."""
    full = Planner(loader).migration_plan(loader.graph.leaf_nodes(), clean_start=True)
    return [(migration.app_label, migration.name) for migration, _ in full]


def check_target(source: MigrationSource, target: Target) -> None:
    """Raise UnknownApp, AppWithoutMigrations, UnknownMigration or AmbiguousMigration, whatever a tenant has applied."""
    _resolve(source.loader(), source, target)


def require_reversible(plan: Plan) -> None:
    """Raise IrreversibleMigration, naming every step that has no way back, before the first one is undone."""
    if blocked := [str(each) for each in plan.steps if each.backwards and not each.reversible and not each.fake]:
        raise exceptions.IrreversibleMigration(f"These migrations cannot be undone: {', '.join(blocked)}.")


def known_keys(source: MigrationSource) -> Applied:
    """Every migration that this code knows of: those on disk and those that a squashed one says it replaces."""
    replaced = {key for migration in source.migrations.values() for key in map(tuple, migration.replaces)}
    return frozenset(source.migrations) | frozenset((app, name) for app, name in replaced)


def prunable(plan: Plan, source: MigrationSource, app_label: str) -> list[Key]:
    """Applied migrations of the app that are gone from disk; raises CannotPrune as `migrate --prune` refuses."""
    stale = sorted(key for key in plan.applied - frozenset(source.migrations) if key[0] == app_label)
    blocking = [
        f"{app}.{name}"
        for (app, name), migration in plan.loader.replacements.items()
        if any(tuple(replaced) in stale for replaced in migration.replaces)
    ]
    if blocking:
        raise exceptions.CannotPrune(
            f"Cannot prune: the squashed migrations {', '.join(sorted(blocking))} still have a 'replaces' attribute "
            "and may not be recorded as applied. Migrate first, then remove 'replaces' from them."
        )
    return stale


def step_of(migration: Migration, source: MigrationSource, *, backwards: bool) -> Step:
    return Step(
        app_label=migration.app_label,
        name=migration.name,
        backwards=backwards,
        atomic=bool(migration.atomic),
        reversible=all(operation.reversible for operation in migration.operations),
        operations=tuple(operation.describe() for operation in migration.operations),
        risks=tuple(import_string(_RISKS_OF)(migration.operations, backwards=backwards)),
        digest=source.digests[migration.app_label, migration.name],
    )


def _migration_plan(
    loader: TenantLoader, nodes: tuple[tuple[str, str | None], ...]
) -> tuple[tuple[Migration, bool], ...]:
    try:
        return tuple((migration, backwards) for migration, backwards in Planner(loader).migration_plan(list(nodes)))
    except NodeNotFoundError as error:
        # Before Django 6, a replaced migration is a target only for tenants that have it.
        squashed = sorted(
            f"{app}.{by}" for (app, by), each in loader.replacements.items() if error.node in each.replaces
        )
        name = ".".join(error.node)
        raise exceptions.UnknownMigration(
            f"Migration {name} is replaced by {', '.join(squashed)}; choose that one."
        ) from error


def _due_replacements(loader: TenantLoader, applied: Applied) -> tuple[Key, ...]:
    return tuple(
        sorted(
            key
            for key, migration in loader.replacements.items()
            if key not in applied and all(tuple(replaced) in applied for replaced in migration.replaces)
        )
    )


def _check_history(loader: TenantLoader, applied: Applied) -> None:
    """As MigrationLoader.check_consistent_history(), which would read the rows once more.

    `applied` are the rows as they stand: the loader takes a squashed migration as applied only with all it replaces.
    """
    for key in sorted(applied):
        if key not in loader.graph.nodes:
            continue
        for parent in loader.graph.node_map[key].parents:
            replaced = getattr(loader.replacements.get(tuple(parent)), "replaces", None)
            if parent in applied or (replaced and all(tuple(item) in applied for item in replaced)):
                continue
            raise exceptions.InconsistentHistory(
                f"Migration {key[0]}.{key[1]} is applied before its dependency {parent[0]}.{parent[1]}."
            )


def _check_conflicts(loader: TenantLoader) -> None:
    if conflicts := loader.detect_conflicts():
        named = "; ".join(f"{', '.join(sorted(names))} in {app}" for app, names in sorted(conflicts.items()))
        raise exceptions.ConflictingMigrations(
            f"Conflicting migrations detected; multiple leaf nodes in the migration graph: ({named}).\n"
            "To fix them run 'python manage.py makemigrations --merge'"
        )


def _resolve(loader: TenantLoader, source: MigrationSource, target: Target) -> tuple[tuple[str, str | None], ...]:
    app_label, name = target.app_label, target.migration_name
    leaves = [key for key in loader.graph.leaf_nodes() if key[0] in source.labels]
    if app_label is None:
        if name is not None:
            raise exceptions.UnknownMigration(f"The migration '{name}' needs the label of its app.")
        return tuple(leaves)
    _check_app(loader, source, app_label)
    if name is None:
        return tuple(key for key in leaves if key[0] == app_label)
    if name == "zero":
        return ((app_label, None),)
    return (_find(loader, app_label, name),)


def _check_app(loader: TenantLoader, source: MigrationSource, app_label: str) -> None:
    if app_label not in source.labels:
        known = ", ".join(sorted(source.labels)) or "(none)"
        installed = app_label in apps.app_configs
        reason = "is not one of the tenant's apps" if installed else "is not installed"
        raise exceptions.UnknownApp(f"App '{app_label}' {reason}; choose from: {known}.")
    if app_label not in loader.migrated_apps:
        raise exceptions.AppWithoutMigrations(f"App '{app_label}' does not have migrations.")


def _find(loader: TenantLoader, app_label: str, prefix: str) -> tuple[str, str | None]:
    try:
        migration: Any = loader.get_migration_by_prefix(app_label, prefix)
    except AmbiguityError as error:
        raise exceptions.AmbiguousMigration(
            f"More than one migration matches '{prefix}' in app '{app_label}'. Please be more specific."
        ) from error
    except KeyError as error:
        raise exceptions.UnknownMigration(
            f"Cannot find a migration matching '{prefix}' from app '{app_label}'."
        ) from error
    key = (app_label, migration.name)
    # A squashed migration of which a part is applied is not in the graph; the last that it replaces is.
    if key not in loader.graph.nodes and key in loader.replacements:
        last: tuple[str, str] = loader.replacements[key].replaces[-1]
        return last
    return key
