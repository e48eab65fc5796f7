"""Stock Django, in a process of its own, pointed at one schema: what a migrated tenant is compared with."""

import json
import os
import subprocess
import sys
from typing import Any

SETTINGS = """
import django
from django.conf import settings
from django.core.management import execute_from_command_line
import json, os, sys
given = json.loads(os.environ["STOCK"])
settings.configure(
    DATABASES={"default": {**given["database"], "OPTIONS": {**given["database"].get("OPTIONS", {}),
        "options": "-c search_path=\\"" + given["schema"] + "\\""}}},
    INSTALLED_APPS=given["apps"],
    MIGRATION_MODULES=given["modules"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
)
execute_from_command_line(["manage.py", *sys.argv[1:]])
"""


def manage(
    database: dict[str, Any], schema: str, apps: list[str], *arguments: str, modules: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a management command of a project that has only `apps` and whose `default` is that schema."""
    kept = {
        key: database[key]
        for key in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
        if key in database
    }
    given = {"database": kept, "schema": schema, "apps": apps, "modules": modules or {}}
    return subprocess.run(
        [sys.executable, "-c", SETTINGS, *arguments],
        env={**os.environ, "STOCK": json.dumps(given)},
        capture_output=True,
        text=True,
        check=False,
    )


def migrate(database: dict[str, Any], schema: str, apps: list[str], *arguments: str, **options: Any) -> str:
    """Run `migrate`, which must succeed; returns what it printed."""
    result = manage(database, schema, apps, "migrate", "--verbosity=1", *arguments, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
