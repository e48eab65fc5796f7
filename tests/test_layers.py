"""What may be imported; which layer may import which is held by import-linter's contracts in pyproject.toml."""

import importlib.util
from importlib.metadata import distribution

from django.db import connection
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from packaging.requirements import Requirement


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
