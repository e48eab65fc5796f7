"""Behind a connection pooler nothing is begun: two clients would be one session, or one client two."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from django.conf import settings as configured

from migrations_api.models import MigrationRun
from migrations_api.orchestrator.fleet import TenantStatus, standings
from migrations_api.states import RunState
from tenants import exceptions
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant, forget_tenant
from tests import catalog
from tests.command_line import manage
from tests.pooler import PORT, pooler
from tests.processes import wait_until

MakeTenant = Callable[..., Tenant]
KINDS = [Isolation.SCHEMA, Isolation.DATABASE]
TRIES = 20
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
TOLERANT = "ignore_startup_parameters = options, extra_float_digits"


@pytest.fixture(
    params=[
        "python",
        *(
            pytest.param(f"{mode} {manner}", marks=pytest.mark.skipif(not PGBOUNCER, reason="there is no pgbouncer"))
            for mode in ("transaction", "session")
            for manner in ("strict", "tolerant")
        ),
    ]
)
def pooled(request: pytest.FixtureRequest, make_tenant: MakeTenant) -> Iterator[dict[str, Any]]:
    """Settings of the server `shop` behind a pooler; what needs no pooler is made before they are used."""
    server = configured.TENANT_DATABASES["shop"]
    if catalog.dsn(server).get("password"):
        pytest.skip("the poolers know no passwords")
    # A socket's path has 103 bytes at most, which pytest's folders exceed.
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        started = (
            pooler(catalog.dsn(server), folder)
            if request.param == "python"
            else bouncer(folder, *request.param.split())
        )
        with started:
            yield {**server, "HOST": str(folder), "PORT": PORT, "OPTIONS": {}}


@contextmanager
def bouncer(folder: Path, mode: str, manner: str) -> Iterator[None]:
    server = catalog.dsn(configured.TENANT_DATABASES["shop"])
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host={server['host']} port={server.get('port', 5432)} user={server['user']}\n"
        f"[pgbouncer]\nlisten_addr =\nlisten_port = {PORT}\nunix_socket_dir = {folder}\nauth_type = any\n"
        f"pool_mode = {mode}\nserver_tls_sslmode = disable\nlogfile = {folder / 'log'}\n"
        f"{TOLERANT if manner == 'tolerant' else ''}\n"
    )
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        # It refuses to run as root.
        nobody = pwd.getpwnam("postgres" if _is_known("postgres") else "nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    process = subprocess.Popen(
        [str(PGBOUNCER), "--quiet", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user
    )
    try:
        wait_until(lambda: (folder / f".s.PGSQL.{PORT}").exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield
    finally:
        process.terminate()
        process.wait()


def _is_known(user: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


def homes() -> set[str]:
    return catalog.schemas(catalog.dsn(configured.TENANT_DATABASES["shop"])) | catalog.databases()


def answers(server: dict[str, Any]) -> tuple[int, int]:
    """The process that answers, and the one that the protocol names; without startup options a pooler takes anybody."""
    with psycopg2.connect(**catalog.dsn(server)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        found = cursor.fetchone()[0], connection.info.backend_pid
    connection.close()
    return found


def test_pooler__is_one(pooled: dict[str, Any]) -> None:
    first, told = answers(pooled)
    assert first != told


@pytest.mark.parametrize("isolation", KINDS)
def test_pooler__is_refused_before_anything_is_made(pooled: dict[str, Any], settings: Any, isolation: str) -> None:
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "pooled": pooled}
    before = homes()
    for number in range(TRIES):
        with pytest.raises(exceptions.PoolerInBetween):
            create_tenant(tenant_id=f"acme-{number}", name="", isolation=isolation, database="pooled")
    assert homes() == before
    assert not Tenant.objects.exists()


def test_pooler__is_refused_before_anything_is_migrated(
    pooled: dict[str, Any], make_tenant: MakeTenant, settings: Any
) -> None:
    tenants = [make_tenant(f"acme-{number}") for number in range(TRIES)]
    arguments = catalog.tenant_dsn(tenants[0])
    before = catalog.fingerprint(arguments)
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "shop": pooled}

    assert manage("migratealltenants", "--no-input", "--max-failures=100%").code == 3

    runs = list(MigrationRun.objects.values_list("state", "error_code", "attempt"))
    assert runs == [(RunState.FAILED, "pooler_in_between", 1)] * TRIES
    assert {each.status for each in standings(tenants)} == {TenantStatus.UNREACHABLE}
    settings.TENANT_DATABASES = configured.TENANT_DATABASES | {"shop": pooled}
    with pytest.raises(exceptions.PoolerInBetween):
        forget_tenant(tenants[0], drop=True)
    settings.TENANT_DATABASES = {"shop": {**pooled, **SHOP}}
    assert catalog.fingerprint(arguments) == before


SHOP = {key: configured.TENANT_DATABASES["shop"].get(key) for key in ("HOST", "PORT", "OPTIONS")}
