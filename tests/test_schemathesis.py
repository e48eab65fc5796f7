"""What a machine thinks of asking, from the schema: no 5xx, no undocumented answer, no ignored authentication."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tenants.models import Tenant
from tests.live import ROOT, client_environment, serving

# `make fuzz` gives more time than a test run has.
SECONDS = os.environ.get("FUZZ_SECONDS", "")
EXAMPLES = ["--phases=examples,coverage,fuzzing", "--max-examples=5", "--generation-deterministic"]
LONG = ["--phases=examples,coverage,fuzzing,stateful", f"--max-time={SECONDS}"]


@pytest.fixture
def live(plane: None, tmp_path: Path) -> Iterator[str]:
    with serving(tmp_path) as url:
        yield url


@pytest.mark.parametrize("role", ["viewer", "operator", "admin", None])
def test_schema__holds_for_a_role(
    live: str, make_tenant: Callable[..., Tenant], token_of: Callable[..., Any], role: str | None, tmp_path: Path
) -> None:
    for tenant_id in ("acme", "globex"):
        make_tenant(tenant_id)
    token = token_of(role)[1] if role else ""
    done = subprocess.run(
        [
            *[sys.executable, "-m", "schemathesis.cli", "--config-file", ROOT / "tests" / "schemathesis.toml"],
            *[
                "run",
                ROOT / "tests" / "openapi.yaml",
                f"--url={live}",
                "--no-color",
                "--continue-on-failure",
            ],
            *(["--header", f"Authorization: Bearer {token}"] if token else []),
            *(LONG if SECONDS else EXAMPLES),
        ],
        cwd=tmp_path,
        env=client_environment(live, token, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
