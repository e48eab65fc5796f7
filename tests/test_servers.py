import re
from contextlib import closing
from typing import Any
from urllib.parse import quote, unquote

import pytest
from django.core.exceptions import ImproperlyConfigured
from hypothesis import example, given
from hypothesis import strategies as st

from tenants.binding import open_connection
from tenants.exceptions import ServerNotConfigured
from tenants.servers import database_settings, secrets, server_aliases, server_map, server_settings
from tests.roles import PASSWORD, role

# Pieces of passwords that a reader of URLs may take for something else, and some that none does.
RAW_PASSWORDS = st.lists(st.sampled_from([*"@:/?#%&=[] ab7", "%41", "host=", "secret"]), max_size=8).map("".join)


def parsed(url: str) -> tuple[Any, ...]:
    found = database_settings("shop", url)
    return tuple(found[key] for key in ("USER", "PASSWORD", "HOST", "PORT", "NAME"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:word@db.example:5433/shop", ("me", "word", "db.example", 5433, "shop")),
        ("postgres://me@db.example/shop", ("me", "", "db.example", "", "shop")),
        ("postgresql:///shop", ("", "", "", "", "shop")),
        ("postgresql://[::1]:5433/a%20b", ("", "", "::1", 5433, "a b")),
        ("postgresql://me%40corp:p%40%3A%2F%25%23%3Fw@db/shop", ("me@corp", "p@:/%#?w", "db", "", "shop")),
        ("postgresql://me:word@%2Frun%2Fpg/shop", ("me", "word", "/run/pg", "", "shop")),
    ],
)
def test_url__is_read(url: str, expected: tuple[Any, ...]) -> None:
    assert parsed(url) == expected
    assert database_settings("shop", url)["ENGINE"] == "django.db.backends.postgresql"


def test_url__parameters_become_options() -> None:
    found = database_settings("shop", "postgresql:///shop?host=/run/pg&sslmode=verify-full&sslrootcert=/ca.crt")
    given = {"host": "/run/pg", "sslmode": "verify-full", "sslrootcert": "/ca.crt"}
    assert given.items() <= found["OPTIONS"].items()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "it must begin with postgresql://"),
        ("mysql://me:word@db/shop", "it must begin with postgresql://"),
        ("me:word@db/shop", "it must begin with postgresql://"),
        ("host=db password=word", "it must begin with postgresql://"),
        ("postgresql://me:word@db", "it names no database"),
        ("postgresql://me:word@db/", "it names no database"),
        ("postgresql://me:word@db/shop/word", "percent-encode"),
        ("postgresql://me:word@db:port/shop", "it cannot be parsed"),
        ("postgresql://me:word@db:99999/shop", "it cannot be parsed"),
        ("postgresql://me:word@[db/shop", "it cannot be parsed"),
        (
            "postgresql://me:word@db/shop?options=-csearch_path%3Dpublic",
            "unknown parameters options; allowed: channel_b",
        ),
        ("postgresql://me:word@db/shop?service=", "unknown parameters service;"),
        ("postgresql://me:word@db/shop?user=you&password=word", "unknown parameters password, user;"),
        ("postgresql://me:word@one,two/shop", "it names more than one host"),
        ("postgresql://me:word@/shop?host=one,two", "it names more than one host"),
        ("postgresql://me:word@/shop?host=one%2Ctwo", "it names more than one host"),
        ("postgresql://me:word@one%2Ctwo/shop", "it names more than one host"),
        ("postgresql://me:wo\trd@db/shop", "it cannot be parsed"),
        ("postgresql://me:word%00@db/shop", "it cannot be parsed"),
    ],
)
def test_url__that_cannot_be_used(url: str, reason: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(reason)) as caught:
        database_settings("shop", url)
    assert str(caught.value).startswith("The database URL of 'shop' cannot be used: ")
    assert "word@" not in str(caught.value)
    assert "wo\trd" not in str(caught.value)


@pytest.mark.parametrize(
    "password", ["12/secret", "12/a?secret", "x#secret", "12#secret", "x?secret", "p@x/a?secret=1", "p@x/a?host=secret"]
)
def test_url__with_a_password_that_is_not_encoded_shows_nothing_of_it(password: str) -> None:
    for url in (f"postgresql://me:{password}@db/shop", f"postgresql://me:{password}@db"):
        with pytest.raises(ImproperlyConfigured) as caught:
            database_settings("shop", url)
        assert "secret" not in str(caught.value)
        assert "secret" not in str(caught.value.__cause__)


@given(RAW_PASSWORDS, st.sampled_from(["/shop", "/shop?sslmode=disable"]))
@example("p@x/a?secret", "/shop")
def test_url__password_is_read_as_it_stands_or_refused(raw: str, rest: str) -> None:
    try:
        found = parsed(f"postgresql://me:{raw}@db{rest}")
    except ImproperlyConfigured as error:
        found, message = None, str(error)
    assert found == ("me", unquote(raw), "db", "", "shop") if found else "secret" not in message


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_url__with_an_encoded_password_is_read(password: str) -> None:
    assert parsed(f"postgresql://me:{quote(password, safe='')}@db/shop") == ("me", password, "db", "", "shop")


def test_url__with_an_encoded_password_connects(plane: None, settings: Any) -> None:
    with role() as server:
        if host := server.get("OPTIONS", {}).get("host"):
            place = f":{server['PORT']}/{server['NAME']}?host={quote(host)}"
        else:
            place = f"{server['HOST']}:{server['PORT'] or 5432}/{server['NAME']}"
        url = f"postgresql://{server['USER']}:{quote(PASSWORD, safe='')}@{place}"
        settings.TENANT_DATABASES = {"limited": database_settings("limited", url)}
        with closing(open_connection(server_settings("limited"))) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT current_user")
            assert cursor.fetchone() == (server["USER"],)


def test_server_map__has_every_pair() -> None:
    found = server_map(["eu=postgresql://db/one", "us-1=postgresql:///two?host=/run/pg"])
    assert {alias: server["NAME"] for alias, server in found.items()} == {"eu": "one", "us-1": "two"}


@pytest.mark.parametrize(
    "pair", ["postgresql://me:word@db/shop", "EU=postgresql://db/x", "=postgresql://db/x", "a b=x"]
)
def test_server_map__pair_that_is_none_is_named_by_its_place(pair: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"alias=url pairs, .* \(2\. pair\)") as caught:
        server_map(["eu=postgresql://db/one", pair])
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("pairs", [["default=postgresql://db/x"], ["eu=postgresql://db/x", "eu=postgresql://db/y"]])
def test_server_map__alias_that_is_there_already(pairs: list[str]) -> None:
    with pytest.raises(ImproperlyConfigured, match="which is defined already"):
        server_map(pairs)


def test_server__that_is_not_configured_is_named_beside_those_that_are(settings: Any) -> None:
    settings.TENANT_DATABASES = {"us": {}, "eu": {}}
    assert server_aliases() == ["default", "eu", "us"]
    with pytest.raises(ServerNotConfigured, match="no database server 'asia'; configured are: default, eu, us"):
        server_settings("asia")


@pytest.mark.parametrize("alias", ["default", "shop"])
def test_server_settings__are_a_copy(alias: str) -> None:
    before = server_settings(alias)
    server_settings(alias).setdefault("OPTIONS", {})["sslmode"] = "changed"
    assert server_settings(alias) == before


def test_secrets__are_all_spellings_of_all_passwords(settings: Any) -> None:
    settings.TENANT_DATABASES = {
        "eu": {"PASSWORD": "p@ss/word one"},
        "us": {"PASSWORD": None},
        "asia": {"PASSWORD": ""},
        "africa": {},
    }
    assert {"p@ss/word one", "p%40ss%2Fword%20one", "p%40ss/word%20one", "word one"} <= secrets()
    assert "" not in secrets()


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("sslmode=never", "sslmode takes one value of disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmode=", "sslmode takes one value of disable"),
        ("sslmode=require&sslmode=disable", "sslmode takes one value of disable"),
        ("connect_timeout=soon", "connect_timeout takes one value, a whole number"),
        ("keepalives=2", "keepalives takes one value of 0, 1"),
        ("sslrootcert=", "sslrootcert takes one value."),
        ("host=elsewhere", "it names more than one host"),
        ("hostaddr=127.0.0.1", "unknown parameters hostaddr; allowed: channel_binding, connect_timeout, gssencmode"),
        ("passfile=/x", "unknown parameters passfile;"),
        ("target_session_attrs=any", "unknown parameters target_session_attrs;"),
        ("application_name=x", "unknown parameters application_name;"),
    ],
)
def test_url__parameter_that_cannot_be_used_is_named(query: str, reason: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(reason)) as caught:
        database_settings("shop", f"postgresql://me:word@db/shop?{query}")
    assert "word@" not in str(caught.value)
