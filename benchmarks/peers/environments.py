"""A virtual environment for each tool, so that none of them comes near the service's own."""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / "var" / "peers"


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of an environment with these packages and with our Django and driver; made if it is not there."""
    pinned = [*requirements, *(f"{each}=={importlib.metadata.version(each)}" for each in ("django", "psycopg2-binary"))]
    key = hashlib.sha256(repr([sys.version, pinned]).encode()).hexdigest()[:8]
    folder = CACHE / f"{name}-{key}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", *quiet, *pinned], check=True)
        (folder / "complete").touch()
    return python


def own_requirements() -> list[str]:
    """What the service is installed with; its code is on the path of whoever needs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [each for each in project["dependencies"] if not each.startswith(("django>", "psycopg2"))]


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    command = [python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = {each["name"].lower(): each["version"] for each in listed}
    return {package: found[package] for package in packages}
