import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from migrations_api.models import ApiToken, Role
from tests.command_line import manage

MakeToken = Callable[..., tuple[ApiToken, str]]
# A command closes its connections when it ends, and a rolled-back test would lose its own.
pytestmark = pytest.mark.usefixtures("plane")
BOT = ("--user=ci-bot", "--name=CI")


def test_createapitoken__prints_only_the_token(roles: None) -> None:
    result = manage("createapitoken", *BOT, "--scope=operator", "--create-user")

    token = ApiToken.objects.get()
    key = result.out.removesuffix("\n")
    assert result.code == 0
    assert token.is_valid(key)
    assert key.partition(".")[0] == token.prefix
    assert (token.name, token.scope, token.user.username) == ("CI", "operator", "ci-bot")
    assert f"Token {token.prefix} of user 'ci-bot': scope operator, expires " in result.err
    assert key not in result.err


def test_createapitoken__expires_after_90_days() -> None:
    manage("createapitoken", *BOT, "--scope=viewer", "--create-user")

    lifetime = ApiToken.objects.get().expiry_date - timezone.now()  # type: ignore[operator]
    assert timedelta(days=89) < lifetime <= timedelta(days=90)


def test_createapitoken__never_expires() -> None:
    result = manage("createapitoken", *BOT, "--scope=viewer", "--create-user", "--expires-in-days=0")

    assert ApiToken.objects.get().expiry_date is None
    assert "never expires" in result.err


@pytest.mark.parametrize("role", Role.values)
def test_createapitoken__makes_a_user_with_just_that_role(role: str) -> None:
    """The group may be missing: a role is what the group is called."""
    manage("createapitoken", *BOT, f"--scope={role}", "--create-user")

    user = get_user_model().objects.get()
    assert Role.of(user) == role
    assert [group.name for group in user.groups.all()] == [role]
    assert not user.has_usable_password()
    assert not user.is_staff


def test_createapitoken__unknown_user() -> None:
    result = manage("createapitoken", *BOT, "--scope=viewer")

    assert (result.code, result.out) == (1, "")
    assert "User 'ci-bot' does not exist. Add --create-user to make it." in result.err
    assert not ApiToken.objects.exists()


def test_createapitoken__gives_an_existing_user_no_more_rights(token_of: MakeToken) -> None:
    token, _ = token_of("viewer")

    result = manage("createapitoken", "--user=viewer", "--name=CI", "--scope=admin", "--create-user")

    assert result.code == 0
    assert Role.of(token.user) == Role.VIEWER
    assert "The user has only the role viewer, and a token gives no more" in result.err


def test_createapitoken__user_without_a_role() -> None:
    get_user_model().objects.create_user("ci-bot")

    result = manage("createapitoken", *BOT, "--scope=viewer")

    assert "The user has no role, and a token gives no more; add the user to the group 'viewer'." in result.err


def test_createapitoken__quiet() -> None:
    result = manage("createapitoken", *BOT, "--scope=viewer", "--create-user", "--verbosity=0")

    assert result.err == ""
    assert len(result.out.splitlines()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ("--user=ci bot", "--name=CI", "--scope=viewer"),
        ("--user=", "--name=CI", "--scope=viewer"),
        (f"--user={'a' * 151}", "--name=CI", "--scope=viewer"),
        ("--user=ci-bot", "--name=", "--scope=viewer"),
        ("--user=ci-bot", f"--name={'a' * 51}", "--scope=viewer"),
        ("--user=ci-bot", "--name=CI", "--scope=root"),
        ("--user=ci-bot", "--name=CI", "--scope=viewer", "--expires-in-days=-1"),
        ("--user=ci-bot", "--name=CI", "--scope=viewer", "--expires-in-days=99999"),
        ("--user=ci-bot", "--name=CI", "--scope=viewer", "--expires-in-days=\u0663"),
        ("--user=ci-bot", "--name=CI"),
    ],
)
def test_createapitoken__usage(wrong: tuple[str, ...]) -> None:
    result = manage("createapitoken", "--create-user", *wrong)

    assert (result.code, result.out) == (2, "")
    assert result.err
    assert not ApiToken.objects.exists()
    assert not get_user_model().objects.exists()


def test_showapitokens__json(token_of: MakeToken) -> None:
    token, key = token_of("viewer", name="CI", expiry_date=None)

    result = manage("showapitokens", "--format=json")

    (row,) = json.loads(result.out)
    assert row.pop("created") is not None
    assert row == {
        "prefix": token.prefix,
        "name": "CI",
        "user": "viewer",
        "scope": "viewer",
        "expires": None,
        "last_used": None,
        "revoked": False,
    }
    assert key.partition(".")[2] not in result.out
    assert token.hashed_key not in result.out


def test_showapitokens__table(token_of: MakeToken) -> None:
    token, _ = token_of("viewer", name="CI [bold]", revoked=True)

    head, row = manage("showapitokens").out.splitlines()

    assert head.split() == ["prefix", "name", "user", "scope", "created", "expires", "last", "used", "revoked"]
    assert row.split() == [
        token.prefix,
        *("CI", "[bold]"),
        *("viewer", "viewer"),
        *f"{token.created:%Y-%m-%d %H:%M}".split(),
        *("never", "never", "yes"),
    ]


def test_showapitokens__none() -> None:
    result = manage("showapitokens")

    assert result.out == "There are no API tokens. Create one with: manage.py createapitoken\n"


def test_showapitokens__one_query(token_of: MakeToken, django_assert_num_queries: Any) -> None:
    for role in Role.values:
        token_of(role)

    with django_assert_num_queries(1):
        manage("showapitokens")


def test_revokeapitoken__revokes_that_one(token_of: MakeToken) -> None:
    token, _ = token_of("viewer")
    other, _ = token_of("viewer")

    result = manage("revokeapitoken", f"--prefix={token.prefix}")

    assert (result.code, result.out) == (0, f"Token {token.prefix} revoked.\n")
    assert dict(ApiToken.objects.values_list("prefix", "revoked")) == {token.prefix: True, other.prefix: False}


def test_revokeapitoken__twice(token_of: MakeToken) -> None:
    token, _ = token_of("viewer", revoked=True)

    result = manage("revokeapitoken", f"--prefix={token.prefix}")

    assert (result.code, result.out) == (0, f"Token {token.prefix} was revoked already.\n")


def test_revokeapitoken__unknown() -> None:
    result = manage("revokeapitoken", "--prefix=nonsense")

    assert (result.code, result.out) == (1, "")
    assert "There is no token with the prefix 'nonsense'." in result.err
