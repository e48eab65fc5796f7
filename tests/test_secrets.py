"""No password and no row is ever told: not in an answer, a page, a log line or a row of the control plane."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from django.conf import settings as configured
from django.contrib import admin
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.sessions.backends.db import SessionStore
from django.urls import reverse
from psycopg2 import sql

from migrations_api.models import MigrationRun, Rollout, TenantObservation
from migrations_api.states import ACTIVE_ROLLOUT_STATES, ACTIVE_RUN_STATES
from migrations_api.urls import urlpatterns
from tenants.models import Tenant
from tests import catalog
from tests.broken.orders_leaks import __name__ as broken_package
from tests.processes import GIVE_UP, ROOT, wait_until
from tests.roles import role

ROW = "ada.lovelace@rows.example"
MALFORMED = [
    "postgresql://me:{}@db.example/shop",
    "postgresql://me:{}@db.example",
    "mysql://me:{}@db.example/shop",
    "postgresql:/me:{}@db.example/shop",
    "postgresql://me:{}@[db.example/shop",
]


def secret(word: str) -> str:
    """A password with everything that a URL is cut at, whose pieces are found nowhere else."""
    return f"{word}Qa@{word}Qb:{word}Qc/{word}Qd#{word}Qe?{word}Qf%{word}Qg"


PLANE, SHOP, WRONG, GONE, VAULT, TOLD, RAW = map(secret, ("pl4", "sh4", "wr4", "go4", "va4", "to4", "ra4"))
SECRETS = {PLANE, SHOP, WRONG, GONE, VAULT, TOLD, RAW}

# The settings of every process: servers by URL, a resolver that fails for one tenant and knows another's password.
SETTINGS = f"""
from tests.settings import *
from tenants.servers import server_map
from tests.processes import CONF

TENANT_DATABASES = server_map({{servers}})
TENANT_DATABASES["vault"] = {{{{**TENANT_DATABASES["shop"], "USER": {{vault_user!r}}, "PASSWORD": ""}}}}
TENANT_MIGRATIONS = {{{{**CONF, "connection_resolver": "{{module}}.resolve", "connect_timeout": 2}}}}
MIGRATION_MODULES = {{{{"orders": "{broken_package}"}}}}
ROOT_URLCONF = "{{urls}}"

def resolve(tenant, settings):
    if tenant.tenant_id == "resolver":
        raise RuntimeError("the vault gave {TOLD} for postgresql://me:{quote(TOLD, safe="")}@vault.example/shop")
    if tenant.database == "vault":
        return {{{{**settings, "PASSWORD": {VAULT!r}}}}}
    return settings
"""
URLS = f"""
from django.urls import path
from service.urls import *

def fail(request):
    raise RuntimeError("postgresql://me:{PLANE}@db.example/plane and {quote(PLANE, safe="")}")

urlpatterns = [*urlpatterns, path("fail", fail)]
"""


class Story:
    """The service as its users run it, and all that it says."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.said: dict[str, str] = {}
        self._folder = folder
        self._environment = environment
        self._port = 0

    def command(self, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self._environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=GIVE_UP,
        )
        name = f"{' '.join(arguments)} {len(self.said)}"
        self.said[name] = done.stdout + done.stderr
        return self.said[name]

    def serve(self, stack: ExitStack) -> None:
        log = stack.enter_context((self._folder / "serve.log").open("w"))
        process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--port=0"], cwd=ROOT, env=self._environment, stdout=log, stderr=log
        )
        stack.callback(process.wait, GIVE_UP)
        stack.callback(process.terminate)
        wait_until(lambda: process.poll() is not None or re.search(r"^API .*:(\d+)/", self.log(), re.M))
        found = re.search(r"^API .*:(\d+)/", self.log(), re.M)
        assert found, self.log()
        self._port = int(found[1])
        wait_until(lambda: self.ask("GET", "/readyz")[0] == 200)

    def log(self) -> str:
        return (self._folder / "serve.log").read_text()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=GIVE_UP)
        content = body if isinstance(body, str) else json.dumps(body) if body is not None else None
        given = {"Content-Type": "application/json"} if content is not None else {}
        connection.request(method, path, content, given | headers)
        response = connection.getresponse()
        text = response.read().decode()
        self.said[f"{method} {path} {len(self.said)}"] = f"{response.status} {response.getheaders()}\n{text}"
        connection.close()
        return response.status, text

    def keep_rows(self) -> None:
        """Every column of every table of the control plane."""
        plane = catalog.dsn(configured.DATABASES["default"])
        for (table,) in catalog.query(plane, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
            rows = catalog.query(plane, sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier("public", table)))
            self.said[f"table {table}"] = "\n".join(row for (row,) in rows)


@pytest.fixture
def servers(plane: None) -> Iterator[dict[str, str]]:
    """URLs of the control plane and the shop, each with a user and a password of its own that the server checks."""
    database, server = configured.DATABASES["default"], configured.TENANT_DATABASES["shop"]
    with role(password=PLANE) as keeper, role(password=SHOP) as seller, role(password=VAULT) as guard:
        for kind in ("TABLES", "SEQUENCES"):
            grant(database, f"ALL ON ALL {kind} IN SCHEMA public", keeper)
        for each in (seller, guard):
            grant(server, f"CREATE ON DATABASE {configured.SHOP}", each)
        yield {
            "plane": url({**keeper, "NAME": database["NAME"]}),
            "shop": url(seller),
            "vault_user": guard["USER"],
        }


def grant(database: dict[str, Any], right: str, user: dict[str, Any]) -> None:
    statement = sql.SQL(f"GRANT {right} TO {{}}").format(sql.Identifier(user["USER"]))
    catalog.query(catalog.dsn(database), statement)


def url(server: dict[str, Any]) -> str:
    credentials = f"{server['USER']}:{quote(server['PASSWORD'], safe='')}"
    if folder := server.get("OPTIONS", {}).get("host"):
        return f"postgresql://{credentials}@:{server['PORT']}/{server['NAME']}?host={quote(folder)}"
    return f"postgresql://{credentials}@{server['HOST']}:{server['PORT'] or 5432}/{server['NAME']}"


@pytest.fixture
def story(servers: dict[str, str], tmp_path: Path) -> Story:
    shop = servers["shop"]
    others = {
        "shop": shop,
        "wrong": shop.replace(quote(SHOP, safe=""), quote(WRONG, safe="")),
        "gone": f"postgresql://me:{quote(GONE, safe='')}@127.0.0.1:1/shop",
        "nowhere": f"postgresql://me:{quote(GONE, safe='')}@no-such-host.invalid/shop",
    }
    (tmp_path / "canary_urls.py").write_text(URLS)
    (tmp_path / "canary_settings.py").write_text(
        SETTINGS.format(
            module="canary_settings",
            urls="canary_urls",
            servers=[f"{alias}={each}" for alias, each in others.items()],
            vault_user=servers["vault_user"],
        )
    )
    return Story(
        tmp_path,
        {
            **os.environ,
            "DATABASE_URL": servers["plane"],
            "TEST_RUN": configured.SUFFIX,
            "DJANGO_SETTINGS_MODULE": "canary_settings",
            "PYTHONPATH": str(tmp_path),
        },
    )


def spellings(password: str) -> set[str]:
    """What must not be found: the password however it is encoded, and what is left of it when it is cut."""
    encoded = {quote(password, safe=""), quote(password), quote_plus(password)}
    encoded |= {re.sub("%..", lambda escape: escape[0].lower(), each) for each in encoded}
    pieces = {piece for piece in re.split(r"[@:/#?%]", password) if len(piece) > 3}
    return {password, *encoded, *pieces}


def found_in(said: dict[str, str]) -> dict[str, list[str]]:
    """Which of the things that must not be told are told where."""
    forbidden = {ROW, "ada.lovelace", *(each for password in SECRETS for each in spellings(password))}
    found = {place: [each for each in forbidden if each in text] for place, text in said.items()}
    return {place: each for place, each in found.items() if each}


def test_spellings__are_found_wherever_they_stand() -> None:
    pieces = re.split(r"[@:/#?%]", GONE)
    for text in (GONE, quote(GONE, safe=""), quote_plus(GONE), *pieces, f"Key (email)=({ROW})"):
        assert found_in({"somewhere": f"x {text} y"}), text
    assert not found_in({"somewhere": "The database server refused the service's credentials."})


def test_malformed_urls__are_not_repeated(story: Story) -> None:
    own = {"DJANGO_SETTINGS_MODULE": "service.settings"}
    for each in MALFORMED:
        assert "cannot be used" in story.command("check", DATABASE_URL=each.format(RAW), **own)
    assert "cannot be used" in story.command("check", TENANT_DATABASE_URLS=f"eu={MALFORMED[0].format(RAW)}", **own)
    assert found_in(story.said) == {}


def test_control_plane_that_refuses__is_not_told_with_the_password(story: Story, servers: dict[str, str]) -> None:
    wrong = servers["plane"].replace(quote(PLANE, safe=""), quote(WRONG, safe=""))
    closed, unknown = (f"postgresql://me:{quote(GONE, safe='')}@{host}/plane" for host in ("127.0.0.1:1", "no.invalid"))
    for command, url in (
        ("showtenants", wrong),
        ("migrate", wrong),
        ("serve", wrong),
        ("showtenants", closed),
        ("migrate", closed),
        ("showtenants", unknown),
    ):
        assert "rror" in story.command(command, DATABASE_URL=url)
    assert found_in(story.said) == {}


# Tenants by the server that they are on: those that cannot be reached, and those whose migration fails by its name.
UNREACHABLE = {"wrong": "wrong", "gone": "gone", "nowhere": "nowhere", "resolver": "shop"}
LEAKING = {"url": "shop", "vault": "vault", "unique": "shop", "check": "shop", "cast": "shop", "violation": "shop"}


def by_commands(story: Story) -> None:
    for tenant_id, alias in UNREACHABLE.items():
        Tenant.at_home(tenant_id=tenant_id, isolation="schema", database=alias).save()
        story.command("migratetenant", f"--tenant-id={tenant_id}", "--traceback")
    for alias in ("wrong", "gone"):
        story.command("createtenant", f"--tenant-id=new-{alias}", "--isolation=schema", f"--database={alias}")
    for tenant_id, alias in LEAKING.items():
        create = ["createtenant", f"--tenant-id={tenant_id}", "--isolation=schema", f"--database={alias}"]
        story.command(*create, "--migrate")
    for arguments in (
        ["migratealltenants", "--executor=parallel"],
        ["migratealltenants", "--format=json"],
        ["migratealltenants", "--plan"],
        ["showtenants"],
        ["showtenantmigrations", "--tenant-id=resolver"],
        ["migratetenant", "--tenant-id=wrong", "--plan"],
        ["deletetenant", "--tenant-id=wrong", "--drop", "--confirm=wrong"],
    ):
        story.command(*arguments)


def by_api(story: Story, token: str) -> None:
    def ask(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        return story.ask(method, path, body, Authorization=f"Bearer {token}", **headers)

    for tenant_id, alias in UNREACHABLE.items():
        ask("POST", "/tenants", {"tenant_id": f"new-{tenant_id}", "isolation": "schema", "database": alias})
    started = [ask("POST", f"/tenants/{tenant_id}/migrate", {}) for tenant_id in (*UNREACHABLE, *LEAKING)]
    assert {status for status, _ in started} == {202}, started
    watched = threading.Thread(target=ask, args=("GET", f"/runs/{json.loads(started[0][1])['id']}/events"))
    watched.start()
    wait_until(lambda: not MigrationRun.objects.filter(state__in=ACTIVE_RUN_STATES).exists())
    watched.join()
    ask("POST", "/tenants/migrate-all", {})
    wait_until(lambda: not Rollout.objects.filter(state__in=ACTIVE_ROLLOUT_STATES).exists())
    wait_until(lambda: TenantObservation.objects.count() == Tenant.objects.count())
    for path in readable_paths():
        ask("GET", path)
    for method, path, body in (
        ("GET", "/fail", None),
        ("GET", "/nothing", None),
        ("PUT", "/tenants", {}),
        ("GET", "/tenants?cursor=x", None),
        ("POST", "/tenants", "{"),
        ("POST", "/tenants", {"tenant_id": "other", "isolation": "schema", "database": "unknown"}),
        *[("POST", f"/runs/{run.pk}/retry", {}) for run in MigrationRun.objects.filter(state="failed")[:20]],
        *[("DELETE", f"/tenants/{tenant_id}?drop=true&confirm={tenant_id}", None) for tenant_id in UNREACHABLE],
    ):
        ask(method, path, body)
    story.ask("GET", "/tenants", Authorization=f"Bearer {token[:-1]}x")
    wait_until(lambda: not MigrationRun.objects.filter(state__in=ACTIVE_RUN_STATES).exists())


def readable_paths() -> Iterator[str]:
    """Every route with every tenant, run and rollout in it, and the pages beside the API."""
    runs = list(MigrationRun.objects.values_list("pk", flat=True))
    values = {
        "tenant_id": [*UNREACHABLE, *LEAKING],
        "run_id": runs,
        "rollout_id": Rollout.objects.values_list("pk", flat=True),
    }
    for pattern in urlpatterns:
        [name] = pattern.pattern.converters or [""]
        for value in values.get(name, [None]):
            yield reverse(pattern.name, kwargs={name: value} if name else None)
    yield from ("/schema", "/docs")


def by_admin(story: Story) -> None:
    user = get_user_model().objects.create_superuser("root")
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.create()
    cookie = f"sessionid={session.session_key}"
    assert story.ask("GET", "/admin/", Cookie=cookie)[0] == 200
    for model in admin.site._registry:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        story.ask("GET", reverse(f"{name}_changelist"), Cookie=cookie)
        for key in model._default_manager.values_list("pk", flat=True)[:100]:
            story.ask("GET", reverse(f"{name}_change", args=[key]), Cookie=cookie)


def test_story__tells_no_password_and_no_row(story: Story) -> None:
    by_commands(story)
    token = story.command("createapitoken", "--user=ci", "--name=ci", "--scope=admin", "--create-user").split()[0]
    with ExitStack() as stack:
        story.serve(stack)
        by_api(story, token)
        by_admin(story)
    story.said["log of serve"] = story.log()
    story.keep_rows()

    assert found_in(story.said) == {}
    # All of it has come about, or nothing would have been there to be told.
    failed = dict(MigrationRun.objects.filter(state="failed").values_list("tenant_id", "error_code"))
    assert failed == {
        **dict.fromkeys(LEAKING, "migration_failed"),
        "wrong": "authentication_failed",
        "gone": "unreachable",
        "nowhere": "unreachable",
        "resolver": "server_error",
    }
    messages = dict(MigrationRun.objects.filter(state="failed").values_list("tenant_id", "message"))
    assert "***" in messages["url"]
    assert "***" in messages["vault"]
    assert "RuntimeError" in story.log()
