"""What may be imported; which layer may import which is held by import-linter's contracts in pyproject.toml."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import distribution

import pytest
from django.db import connection
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from packaging.requirements import Requirement

START = """
import sys
import django
django.setup()
from django.core.management import load_command_class
command = load_command_class("migrations_api", sys.argv[1])
command.check(tags=command.requires_system_checks)
web = {"migrations_api.views", "service.urls", "rest_framework.serializers", "rest_framework.views"}
print(*sorted((web | {"celery", "drf_spectacular.openapi", "prometheus_client", "rich"}) & set(sys.modules)))
"""


def installed_with(name: str, seen: set[str] | None = None) -> set[str]:
    """The names of all distributions that installing `name`, without extras, brings along."""
    seen = set() if seen is None else seen
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        if requirement.name not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            seen.add(requirement.name)
            installed_with(requirement.name, seen)
    return seen


def test_driver__is_psycopg2() -> None:
    """Django prefers psycopg 3 as soon as it can be imported, whoever brought it along."""
    assert importlib.util.find_spec("psycopg") is None
    assert not is_psycopg3
    assert connection.Database.__name__ == "psycopg2"


def test_dependencies__do_not_ask_for_psycopg_3() -> None:
    names = installed_with("tenant-migrations")
    assert "psycopg2-binary" in names
    assert not [name for name in names if name.startswith("psycopg") and not name.startswith("psycopg2")]


@pytest.mark.parametrize("command", ["migratealltenants", "migratetenant"])
def test_migrate_commands__start_without_the_web_and_without_a_terminal(command: str) -> None:
    """Views, serializers, template engines and Rich take longer to load than everything that is needed."""
    environment = {
        **os.environ,
        "DATABASE_URL": "postgresql://nowhere/none",
        "DJANGO_SETTINGS_MODULE": "service.settings",
    }
    done = subprocess.run(
        [sys.executable, "-c", START, command], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout == "\n"
