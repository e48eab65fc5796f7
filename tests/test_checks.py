from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError

TEMPLATES = ["TENANT_SCHEMA_TEMPLATE", "TENANT_DATABASE_TEMPLATE"]
APP_LISTS = ["TENANT_APPS", "SHARED_APPS"]


def problems() -> list[tuple[str, str, str]]:
    """Id, message and hint of whatever the checks of `tenants` say."""
    return [(str(each.id), each.msg, str(each.hint)) for each in checks.run_checks(tags=["tenants"])]


def test_checks__are_content_with_the_service() -> None:
    assert problems() == []


def test_check__is_an_error_of_manage_check(settings: Any) -> None:
    settings.DATABASE_ROUTERS = []
    with pytest.raises(SystemCheckError, match=r"\(tenants\.E002\)"):
        call_command("check")


@pytest.mark.parametrize("server", [{"ENGINE": "django.db.backends.sqlite3"}, {}])
def test_check__server_that_is_not_postgresql(settings: Any, server: dict[str, str]) -> None:
    settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "lite": server}
    assert problems() == [
        (
            "tenants.E001",
            "The database server 'lite' is not PostgreSQL.",
            "Use ENGINE 'django.db.backends.postgresql', or a postgresql:// URL.",
        )
    ]


def test_check__control_plane_that_would_be_waited_for_without_end(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.DATABASES["default"], "OPTIONS", {})
    expected = (
        "tenants.W011",
        "Connecting to the control plane has no time limit: a host that is silent would hold up every worker.",
        "Make DATABASES['default'] with tenants.servers.database_settings, or give its OPTIONS a 'connect_timeout' in "
        "seconds, and a 'tcp_user_timeout' in milliseconds.",
    )
    assert problems() == [expected]
    monkeypatch.setitem(settings.DATABASES["default"], "OPTIONS", {"connect_timeout": 3})
    assert problems() == []


def test_check__router_that_is_missing(settings: Any) -> None:
    settings.DATABASE_ROUTERS = []
    assert problems() == [
        (
            "tenants.E002",
            "DATABASE_ROUTERS does not have the tenant router.",
            "Add 'tenants.router.TenantRouter'; without it tenant tables land in the control plane.",
        )
    ]


@pytest.mark.parametrize("servers", [None, [], "shop=postgresql://db/x", {"default": {}}])
def test_check__servers_that_are_no_dictionary_of_further_ones(settings: Any, servers: object) -> None:
    settings.TENANT_DATABASES = servers
    expected = (
        "tenants.E003",
        "TENANT_DATABASES must be a dictionary of further servers, without 'default'.",
        "Set TENANT_DATABASE_URLS to alias=url pairs.",
    )
    assert problems() == [expected]
    del settings.TENANT_DATABASES
    assert problems() == [expected]


@pytest.mark.parametrize("setting", APP_LISTS)
@pytest.mark.parametrize("entry", ["examples.shop.nothing", "users", "examples.shop.users.apps.OtherConfig"])
def test_check__app_that_is_not_installed(settings: Any, setting: str, entry: str) -> None:
    setattr(settings, setting, [*getattr(settings, setting), entry])
    assert problems() == [
        (
            "tenants.E004",
            f"{setting} names '{entry}', which is not an installed app.",
            "Use an entry of INSTALLED_APPS, spelled the same.",
        )
    ]


@pytest.mark.parametrize("setting", APP_LISTS)
def test_check__apps_that_are_no_list(settings: Any, setting: str) -> None:
    expected = ("tenants.E007", f"{setting} must be a list.", "List entries of INSTALLED_APPS.")
    for value in (None, "examples.shop.users"):
        setattr(settings, setting, value)
        assert problems() == [expected]
    delattr(settings, setting)
    assert problems() == [expected]


def test_check__user_model_that_only_tenants_have(settings: Any) -> None:
    settings.TENANT_APPS = [*settings.TENANT_APPS, "django.contrib.auth"]
    assert problems() == []
    settings.CONTROL_PLANE_APPS = [app for app in settings.CONTROL_PLANE_APPS if app != "django.contrib.auth"]
    assert problems() == [
        (
            "tenants.E008",
            "AUTH_USER_MODEL is 'auth.User', of an app that the control plane does not receive.",
            "Add the app to CONTROL_PLANE_APPS: tokens and the admin have users as well.",
        )
    ]


@pytest.mark.parametrize("setting", TEMPLATES)
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("tenant", "it must hold {tenant_id} and no other field"),
        ("{name}", "it must hold {tenant_id} and no other field"),
        ("{tenant_id", "is not a template"),
        ("pg_{tenant_id}", "begins with 'pg_'"),
        ("a" * 60 + "{tenant_id}", "has 64 bytes"),
        ('"{tenant_id}"', "characters that are not allowed"),
        ("", "it must hold {tenant_id}"),
        (None, "it must hold {tenant_id}"),
    ],
)
def test_check__template_that_gives_no_name(settings: Any, setting: str, template: object, reason: str) -> None:
    setattr(settings, setting, template)
    [(number, message, hint)] = problems()
    assert (number, hint) == ("tenants.E005", "Such as 'public_{tenant_id}'.")
    assert message.startswith(f"{setting}: ")
    assert reason in message


@pytest.mark.parametrize("setting", TEMPLATES)
def test_check__template_that_is_missing(settings: Any, setting: str) -> None:
    delattr(settings, setting)
    assert [number for number, *_ in problems()] == ["tenants.E005"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"lease": "30"}, "TENANT_MIGRATIONS: 'lease' is '30'; it takes a number of at least 0.001."),
        ({"executor": "x"}, "TENANT_MIGRATIONS: 'executor' is 'x'; 'executors' has: celery, parallel, sequential."),
        (None, "TENANT_MIGRATIONS: it is None; it takes a dictionary."),
    ],
)
def test_check__tenant_migrations(settings: Any, value: object, message: str) -> None:
    settings.TENANT_MIGRATIONS = value
    assert problems() == [("tenants.E006", message, "The README has the table of settings.")]


def test_user_model__has_no_names_that_a_tenants_app_may_want() -> None:
    related = get_user_model()._meta.related_objects
    assert [each for each in related if each.related_model._meta.app_label in {"migrations_api", "tenants"}] == []


def test_check__shadow_server_that_there_is_not(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"shadow_server": "elsewhere"}
    message = "TENANT_MIGRATIONS: 'shadow_server' is 'elsewhere', and there is no such server."
    assert problems() == [("tenants.E010", message, "Choose one of: default, shop.")]
    settings.TENANT_MIGRATIONS = {"shadow_server": "shop"}
    assert problems() == []
