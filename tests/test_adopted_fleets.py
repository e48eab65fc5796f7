"""Fleets that django-tenants and django-pgschemas have made, with their own commands in an environment of their own."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from psycopg2 import sql

from migrations_api.orchestrator import sources
from tests import catalog
from tests.command_line import manage
from tests.live import ROOT
from tests.test_invariant import OLD_DATA

FOLDER = ROOT / "tests" / "other_tools"
PYTHON = FOLDER / ".venv" / "bin" / "python"
BOTH = ["django.contrib.contenttypes", "django.contrib.auth"]
FLEET = {"acme": "ACME Corporation", "globex_inc": "Globex"}
NOTHING = "No planned migration operations."


@dataclass(frozen=True)
class Tool:
    """Another tool on its database: how to ask it for what it does."""

    name: str
    database: dict[str, Any]
    folder: Path

    def run(self, *arguments: str, modules: dict[str, str] | None = None) -> str:
        given = {"tool": self.name, "database": self.database, "modules": modules or {}}
        path = os.pathsep.join(map(str, [FOLDER, ROOT, self.folder]))
        done = subprocess.run(
            [PYTHON, "manage.py", *arguments],
            cwd=FOLDER,
            env={**os.environ, "STOCK": json.dumps(given), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def create(self, fleet: dict[str, str], modules: dict[str, str]) -> None:
        """Tenants by schema and name, as a project makes them: with their schemas, migrated, unless those are there."""
        made = [f"Client.objects.create(schema_name={schema!r}, name={name!r})" for schema, name in fleet.items()]
        lines = [f"from {self.name}_customers.models import Client", *made]
        self.run("shell", "-c", "; ".join(lines), modules=modules)

    def migrate(self, schema: str, *arguments: str, modules: dict[str, str] | None = None) -> str:
        command = {"tenants": "migrate_schemas", "pgschemas": "migrateschema"}[self.name]
        return self.run(command, f"--schema={schema}", *arguments, modules=modules)


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """MIGRATION_MODULES of an early release: of each app, the first two migrations."""
    for app in ("users", "products", "orders"):
        package = tmp_path / f"{app}_before"
        package.mkdir()
        for number in ("__init__", "0001", "0002"):
            [file] = (ROOT / "examples" / "shop" / app / "migrations").glob(f"{number}*.py")
            shutil.copy(file, package)
    monkeypatch.syspath_prepend(tmp_path)
    return {app: f"{app}_before" for app in ("users", "products", "orders")}


@pytest.fixture
def legacy(plane: None, settings: Any, before: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The server `legacy` of a project like the tools', at the early release."""
    name = sql.Identifier(f"legacy_{configured.SUFFIX}")
    database = {**configured.TENANT_DATABASES["shop"], "NAME": name.string}
    settings.TENANT_DATABASES = {**configured.TENANT_DATABASES, "legacy": database}
    settings.TENANT_APPS = [*BOTH, *configured.TENANT_APPS]
    settings.SHARED_APPS = BOTH
    settings.MIGRATION_MODULES = before
    server = catalog.dsn({**database, "NAME": "postgres"})
    catalog.query(server, sql.SQL("CREATE DATABASE {}").format(name))
    yield database
    sources._load.cache_clear()
    catalog.query(server, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture(params=["tenants", "pgschemas"])
def tool(request: pytest.FixtureRequest, legacy: dict[str, Any], before: dict[str, str], tmp_path: Path) -> Tool:
    """With a fleet of two tenants that have data, `acme` and `globex_inc`."""
    assert PYTHON.exists(), "The other tools are missing: make tests/other_tools/.venv/installed"
    kept = ("NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    tool = Tool(request.param, {key: legacy[key] for key in kept if key in legacy}, tmp_path)
    shared = {"tenants": ("migrate_schemas", "--shared"), "pgschemas": ("migrateschema", "--schema", "public")}
    tool.run(*shared[tool.name], modules=before)
    tool.create(FLEET, before)
    for schema in FLEET:
        with catalog.cursor(catalog.dsn(legacy)) as cursor:
            cursor.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
            cursor.execute(OLD_DATA.statements)
    return tool


def test_adopted__is_up_to_date_and_goes_on_with_us_as_with_the_tool(tool: Tool, settings: Any) -> None:
    adopt = ["adopttenants", "--database=legacy", f"--table={tool.name}_customers_client", "--name-column=name"]
    legacy = catalog.dsn(settings.TENANT_DATABASES["legacy"])
    before = catalog.fingerprint(legacy)

    looked = manage(*adopt, "--fit-ids", "--format=json")
    registered = manage(*adopt, "--fit-ids", "--register")

    assert (looked.code, registered.code) == (0, 0)
    found = {row["tenant_id"]: (row["name"], row["status"], row["pending"]) for row in json.loads(looked.out)}
    assert found == {"acme": ("ACME Corporation", "up_to_date", 0), "globex-inc": ("Globex", "up_to_date", 0)}
    assert catalog.fingerprint(legacy) == before

    settings.MIGRATION_MODULES = {}
    assert NOTHING not in tool.migrate("acme", "--plan")
    manage("releasetenant", "--tenant-id=acme")
    ours = manage("migratetenant", "--tenant-id=acme")
    theirs = tool.migrate("globex_inc")

    assert ours.code == 0, ours.out + ours.err
    assert "orders.0005_revenue_view" in theirs
    for read in (catalog.dump, catalog.rows, catalog.migrations):
        assert read(legacy, "acme") == read(legacy, "globex_inc")
    assert NOTHING in tool.migrate("acme", "--plan")
    tool.migrate("acme", "--check")
    manage("releasetenant", "--tenant-id=globex-inc")
    assert manage("migratetenant", "--tenant-id=globex-inc", "--check").code == 0

    public = manage("adopttenants", "--database=legacy", "--schemas", "public", "--register", "--format=json")
    [row] = json.loads(public.out)
    assert (public.code, row["adoption"], row["isolation"]) == (0, "adopted", "shared")
    assert (row["status"], row["pending"]) == ("up_to_date", 0)


def test_new_tenant__of_ours_is_one_of_the_tool_as_well(tool: Tool, settings: Any, before: dict[str, str]) -> None:
    settings.TENANT_SCHEMA_TEMPLATE = "{tenant_id}"
    legacy = catalog.dsn(settings.TENANT_DATABASES["legacy"])

    created = manage("createtenant", "--tenant-id=initech", "--isolation=schema", "--database=legacy", "--migrate")
    tool.create({"initech": "Initech"}, before)
    # Of shared apps the tool keeps a record in each tenant, without doing anything there.
    assert f"{tool.name}_customers.0001_initial" in tool.migrate("initech", "--plan", modules=before)
    ours = catalog.dump(legacy, "initech")
    tool.migrate("initech", modules=before)

    assert created.code == 0, created.err
    assert ours == catalog.dump(legacy, "initech") == catalog.dump(legacy, "acme")
    assert NOTHING in tool.migrate("initech", "--plan", modules=before)
    assert manage("migratetenant", "--tenant-id=initech", "--check").code == 0
