"""The programs of docs/clients.md, with clients generated from the live schema, against the live service."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.plan import Target
from tenants.models import Tenant
from tests import catalog
from tests.live import ROOT, client_environment, download, serving
from tests.processes import GIVE_UP, wait_until

BIN = Path(sys.executable).parent
NODE_MODULES = ROOT / "tests" / "typescript" / "node_modules"
STEP = "users.0002_email_unique"
Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def live(plane: None, tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "service"
    folder.mkdir()
    with serving(folder) as url:
        yield url


@pytest.fixture
def environment(live: str, token_of: Callable[..., Any]) -> dict[str, str]:
    return client_environment(live, token_of("operator")[1])


@pytest.fixture
def doubled(make_tenant: Callable[..., Tenant], live: str) -> Tenant:
    """A tenant with two users of one e-mail address, which the next migration forbids."""
    tenant = make_tenant("globex")
    to_the_first = request_run(tenant, Request(target=Target(app_label="users", migration_name="0001"), via="api"))
    wait_until(lambda: MigrationRun.objects.get(pk=to_the_first.pk).state == "succeeded")
    row = "('a@example.com', '', '', now())"
    catalog.query(
        catalog.tenant_dsn(tenant),
        f'INSERT INTO "{tenant.schema_name}".users_user (email, first_name, last_name, created_at) VALUES {row}, {row}',
    )
    return tenant


def mend(tenant: Tenant) -> None:
    catalog.query(catalog.tenant_dsn(tenant), f'DELETE FROM "{tenant.schema_name}".users_user')


def example(language: str, beginning: str) -> str:
    """The one code block of docs/clients.md in that language that begins so."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / "clients.md").read_text(), re.M | re.S)
    [found] = [block for block in blocks if block.startswith(beginning)]
    return str(found)


def run(command: list[Any], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=GIVE_UP
    )


def succeed(command: list[Any], folder: Path, environment: dict[str, str]) -> None:
    done = run(command, folder, environment)
    assert done.returncode == 0, done.stdout + done.stderr


def saved_schema(environment: dict[str, str], folder: Path) -> Path:
    path = folder / "openapi.json"
    path.write_bytes(download(f"{environment['SERVICE_URL']}/schema", environment["API_TOKEN"]))
    return path


@pytest.fixture
def python_program(environment: dict[str, str], tmp_path: Path) -> Program:
    schema = saved_schema(environment, tmp_path)
    generate = [
        "generate",
        "--path",
        schema,
        "--meta=none",
        "--output-path=tenant_migrations_client",
        "--fail-on-warning",
    ]
    # The generator formats its output with the ruff beside it.
    with_tools = {**environment, "PATH": f"{BIN}{os.pathsep}{environment['PATH']}"}
    succeed([BIN / "openapi-python-client", *generate, "--fail-on-warning"], tmp_path, with_tools)
    (tmp_path / "migrate.py").write_text(example("python", '"""migrate.py'))
    return lambda *arguments: run([sys.executable, "migrate.py", *arguments], tmp_path, environment)


@pytest.fixture
def typescript_program(environment: dict[str, str], tmp_path: Path) -> Program:
    assert NODE_MODULES.is_dir(), "The npm packages are missing: make tests/typescript/node_modules/installed"
    schema = saved_schema(environment, tmp_path)
    for name in ("package.json", "tsconfig.json"):
        shutil.copy(NODE_MODULES.parent / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "migrate.ts").write_text(example("typescript", "// migrate.ts"))
    node, scripts = BIN / "node", NODE_MODULES / ".bin"
    succeed([node, scripts / "openapi-typescript", schema, "--output", "schema.d.ts"], tmp_path, environment)
    succeed([node, scripts / "tsc"], tmp_path, environment)
    return lambda *arguments: run([node, "migrate.ts", *arguments], tmp_path, environment)


@pytest.fixture
def pipeline(environment: dict[str, str], tmp_path: Path) -> Program:
    if shutil.which("curl") is None:
        pytest.skip("the pipeline's script needs curl")
    (tmp_path / "migrate.sh").write_text(example("sh", "#!/bin/sh"))
    with_python = {**environment, "PATH": f"{BIN}{os.pathsep}{environment['PATH']}", "BUILD_ID": "41"}
    return lambda *arguments: run(["/bin/sh", "migrate.sh", *arguments], tmp_path, with_python)


@pytest.mark.parametrize("language", ["python", "typescript"])
def test_client__the_whole_story(
    request: pytest.FixtureRequest, language: str, make_tenant: Callable[..., Tenant], doubled: Tenant
) -> None:
    program: Program = request.getfixturevalue(f"{language}_program")
    make_tenant("acme")

    done = program("acme")
    last = MigrationRun.objects.latest("id")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"acme: \w+\nglobex: \w+\nusers\.0001_initial\n", done.stdout)
    assert f"\n{STEP}" in done.stdout
    assert done.stdout.endswith(f"run {last.pk}: succeeded\n")
    assert (last.tenant_id, last.requested_by, last.plan_digest != "") == ("acme", "operator", True)

    refused = program("globex")
    last = MigrationRun.objects.latest("id")
    assert refused.returncode == 1
    assert refused.stdout.endswith(f"run {last.pk}: failed\n")
    assert f"{last.error_code} at {STEP}: " in refused.stderr

    mend(doubled)
    again = program("--retry", str(last.pk))
    assert (again.returncode, again.stdout) == (0, f"run {last.pk + 1}: succeeded\n")
    assert MigrationRun.objects.get(pk=last.pk + 1).retry_of_id == last.pk

    unknown = program("initech")
    assert unknown.returncode == 1
    assert "tenant_not_found: Tenant 'initech' does not exist." in unknown.stderr


def test_pipeline__migrates_all_once(make_tenant: Callable[..., Tenant], pipeline: Program) -> None:
    make_tenant("acme")
    make_tenant("globex")
    done = pipeline("acme")
    assert (done.returncode, done.stderr) == (0, "")
    rollout = Rollout.objects.get()
    first = MigrationRun.objects.earliest("id")
    assert done.stdout == f"runs/{first.pk}: succeeded\nrollouts/{rollout.pk}: succeeded\n"
    assert set(rollout.runs.values_list("tenant_id", "state")) == {("acme", "succeeded"), ("globex", "succeeded")}


def test_pipeline__a_failed_tenant_fails_the_build(
    make_tenant: Callable[..., Tenant], doubled: Tenant, pipeline: Program
) -> None:
    make_tenant("acme")
    done = pipeline("acme")
    assert done.returncode == 1
    assert done.stdout.endswith(f"rollouts/{Rollout.objects.get().pk}: failed\n")
    assert f'"failed_step":"{STEP}"' in done.stderr


def test_pipeline__a_refusal_fails_the_build(pipeline: Program) -> None:
    done = pipeline("initech")
    assert (done.returncode, done.stdout) == (1, "")
    assert '"code":"tenant_not_found"' in done.stderr
