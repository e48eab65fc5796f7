"""A new migration of one app, that follows the newest one and is written with the schema builder."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from django.apps import apps
from django.conf import settings
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ModelState

from migrations_api.exceptions import (
    AppWithoutMigrations,
    CannotCreateMigration,
    ConflictingMigrations,
    InvalidOptions,
    UnknownApp,
)
from migrations_api.plan.source import TenantLoader, load_source
from tenants.app_sets import tenant_app_labels
from tenants.models import Isolation

MAX_NAME: Final = 255 - len("0001_.py")  # of the column of django_migrations, and of a file system
WRITTEN: Final = """\
from django.db import migrations
{imports}

class Migration(migrations.Migration):
{head}
    dependencies = [{dependencies}]

    operations = [{operations}]
"""
IMPORT: Final = "from migrations_api.schema import Schema\n"
NOT_ATOMIC: Final = """\
    # What keeps nobody waiting cannot be done in a transaction.
    atomic = False
"""
CREATE: Final = """
        *Schema.create(
            "{model}",
            lambda table: [
                table.{key}("id"),
                table.timestamps(),
            ],{options}
        ),
    """
TABLE: Final = """
        *Schema.table(
            "{model}",
            lambda table: [
                # table.string("reference", 32).nullable().index(),
            ],
        ),
    """


@dataclass(frozen=True, kw_only=True)
class NewMigration:
    app_label: str
    name: str
    path: Path
    content: str


def new_migration(app_label: str, name: str, *, create: str = "", table: str = "") -> NewMigration:
    """What write() writes; nothing is changed yet.

    `create` is a model that no migration has made, `table` one that some has, each by its name or by that of its
    table. Raises UnknownApp, AppWithoutMigrations, ConflictingMigrations, UnloadableMigrations, InvalidOptions or
    CannotCreateMigration.
    """
    _check_name(name)
    loader, folder = _place(app_label)
    leaves = sorted(leaf for _, leaf in loader.graph.leaf_nodes(app_label))
    if len(leaves) > 1:
        raise ConflictingMigrations(
            f"App '{app_label}' has more than one newest migration: {', '.join(leaves)}.\n"
            f"To merge them run 'python manage.py makemigrations --merge {app_label}'"
        )
    _check_free(loader, app_label, name)
    models = {model.name: model for (app, _), model in loader.project_state().models.items() if app == app_label}
    number = (MigrationAutodetector.parse_number(leaves[0]) or 0) + 1 if leaves else 1
    full_name = f"{number:04}_{name}"
    operations = _creation(app_label, models, create) if create else _change(app_label, models, table) if table else ""
    head = NOT_ATOMIC if table else "" if leaves else "    initial = True\n"
    content = WRITTEN.format(
        imports=IMPORT if operations else "",
        head=head,
        dependencies="".join(f'\n        ("{app_label}", "{leaf}"),\n    ' for leaf in leaves),
        operations=operations,
    ).replace("(migrations.Migration):\n\n", "(migrations.Migration):\n")
    return NewMigration(app_label=app_label, name=full_name, path=folder / f"{full_name}.py", content=content)


def write(new: NewMigration) -> None:
    """Raises CannotCreateMigration; never overwrites a file."""
    try:
        with new.path.open("x", encoding="utf-8") as file:
            file.write(new.content)
    except OSError as error:
        raise CannotCreateMigration(f"{new.path} cannot be written: {error.strerror}.") from error


def _check_name(name: str) -> None:
    if not f"_{name}".isidentifier() or not name.isascii() or len(name) > MAX_NAME:
        raise InvalidOptions(
            f"'{name}' is no name of a migration: at most {MAX_NAME} letters, digits and underscores. "
            "Its number is put before it."
        )


def _place(app_label: str) -> tuple[TenantLoader, Path]:
    known = tenant_app_labels(Isolation.SCHEMA) | tenant_app_labels(Isolation.SHARED)
    if app_label not in known:
        reason = "is in neither TENANT_APPS nor SHARED_APPS" if app_label in apps.app_configs else "is not installed"
        raise UnknownApp(f"App '{app_label}' {reason}; choose from: {', '.join(sorted(known))}.")
    folder = _folder(app_label)
    return load_source(known, outside_allowed=True).loader(), folder


def _folder(app_label: str) -> Path:
    module, _ = MigrationLoader.migrations_module(app_label)
    try:
        file = import_module(module).__file__ if module else None
    except ModuleNotFoundError:
        file = None
    if file is None:
        wanted = f": make {module}" if module else ", as MIGRATION_MODULES says"
        raise AppWithoutMigrations(f"App '{app_label}' has no package of migrations{wanted}.")
    return Path(file).parent


def _check_free(loader: TenantLoader, app_label: str, name: str) -> None:
    for label, taken in sorted(loader.disk_migrations):
        if label == app_label and taken.partition("_")[2] == name:
            raise CannotCreateMigration(f"App '{app_label}' has a migration of that name already: {taken}.")


def _creation(app_label: str, models: dict[str, ModelState], given: str) -> str:
    if known := _find(app_label, models, given):
        raise InvalidOptions(f"A migration of app '{app_label}' makes {known.name} already. Use --table {known.name}.")
    config = apps.get_app_config(app_label)
    model, options = given, ""
    for written in config.get_models():
        name, db_table = str(written._meta.object_name), written._meta.db_table
        if given.lower() in {name.lower(), db_table.lower()}:
            model = name
            if db_table.lower() != _table_of(app_label, name):
                options = f"\n            db_table={json.dumps(db_table, ensure_ascii=False)},"
    if not model.isidentifier() or not model[0].isupper():
        raise InvalidOptions(
            f"'{given}' is neither a model nor a table of models.py of app '{app_label}'. Write the model first, or "
            "name it as it will be called, such as Invoice."
        )
    automatic = getattr(config, "default_auto_field", None) or settings.DEFAULT_AUTO_FIELD
    key = "increments" if automatic.endswith(".AutoField") else "big_increments"
    return CREATE.format(model=model, key=key, options=options)


def _change(app_label: str, models: dict[str, ModelState], given: str) -> str:
    known = _find(app_label, models, given)
    if known is None:
        names = ", ".join(sorted(models)) or "none"
        raise InvalidOptions(
            f"No migration of app '{app_label}' makes a table of '{given}'; those that there are: {names}."
        )
    return TABLE.format(model=known.name)


def _find(app_label: str, models: dict[str, ModelState], given: str) -> ModelState | None:
    """By the name of the model, or that of its table."""
    by_name = {name.lower(): model for name, model in models.items()}
    by_table = {_table_of(app_label, name, model): model for name, model in models.items()}
    return by_name.get(given.lower()) or by_table.get(given.lower())


def _table_of(app_label: str, name: str, model: ModelState | None = None) -> str:
    given = model.options.get("db_table") if model else None
    return str(given or f"{app_label}_{name}").strip('"').lower()
