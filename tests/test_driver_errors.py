from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
from django.conf import settings as django_settings
from django.db import DatabaseError, connection
from django.test import override_settings
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tenants import exceptions
from tenants.backends.base import server_cursor
from tenants.driver_errors import MAX_MESSAGE, describe, driver_error, redact, sqlstate, translate, translated
from tenants.servers import secrets
from tests import catalog
from tests.roles import PASSWORD, role

# `***` stands where a password stood, and `…` where text was cut.
PASSWORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="*…"), min_size=1)


def connect(server: dict[str, Any]) -> exceptions.ServiceError:
    with pytest.raises(exceptions.ServiceError) as caught, server_cursor(server) as cursor:
        cursor.execute("SELECT 1")
    assert PASSWORD not in caught.value.message
    return caught.value


@pytest.fixture
def server(plane: None) -> dict[str, Any]:
    return dict(django_settings.TENANT_DATABASES["shop"])


@pytest.fixture
def error(plane: None) -> Callable[..., BaseException]:
    """What Django raises for a statement on a table with a unique e-mail and an age over 17."""

    def run(statement: str, parameters: Any = None) -> BaseException:
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE TEMP TABLE customer (email text PRIMARY KEY, age int CHECK (age > 17), name text NOT NULL);"
                "CREATE TEMP TABLE purchase (customer text REFERENCES customer);"
                "INSERT INTO customer VALUES ('ann@corp.example', 40, 'Ann');"
                "INSERT INTO purchase VALUES ('ann@corp.example')"
            )
            with pytest.raises(DatabaseError) as caught:
                cursor.execute(statement, parameters)
        connection.close()
        return caught.value

    return run


def test_connecting__database_that_is_missing(server: dict[str, Any]) -> None:
    error = connect({**server, "NAME": "no_such_database"})
    assert type(error) is exceptions.NotProvisioned
    assert error.message == "The database does not exist."


@pytest.mark.parametrize("password", ["wrong", ""])
def test_connecting__password_that_is_wrong(plane: None, password: str) -> None:
    with role() as server:
        error = connect({**server, "PASSWORD": password})
    assert type(error) is exceptions.AuthenticationFailed
    assert error.message == "The database server refused the service's credentials."


def test_connecting__user_that_may_not_log_in(plane: None) -> None:
    with role("NOLOGIN") as server:
        assert type(connect(server)) is exceptions.AuthenticationFailed


def test_connecting__user_that_does_not_exist(server: dict[str, Any]) -> None:
    error = connect({**server, "USER": "no_such_user", "PASSWORD": "word"})
    assert type(error) is exceptions.AuthenticationFailed


def test_connecting__host_that_refuses(server: dict[str, Any]) -> None:
    error = connect({**server, "HOST": "127.0.0.1", "PORT": 1, "OPTIONS": {}})
    assert type(error) is exceptions.ServerUnreachable
    assert error.message == "The database server refused the connection."


def test_connecting__socket_that_is_missing(server: dict[str, Any], tmp_path: Any) -> None:
    error = connect({**server, "HOST": str(tmp_path), "OPTIONS": {}})
    assert type(error) is exceptions.ServerUnreachable
    assert error.message == "The database server refused the connection."


def test_connecting__host_that_is_unknown(server: dict[str, Any]) -> None:
    error = connect({**server, "HOST": "no-such-host.invalid", "PORT": 5432, "OPTIONS": {}})
    assert type(error) is exceptions.ServerUnreachable
    assert error.message == "The database server's host name is unknown."


def test_connecting__user_that_has_too_many_connections(plane: None) -> None:
    with role("LOGIN CONNECTION LIMIT 1") as server, catalog.cursor(catalog.dsn(server)):
        error = connect(server)
    assert type(error) is exceptions.NoConnectionToSpare
    assert (error.code, error.message) == ("unreachable", "The database server has no connection to spare.")


def test_connecting__user_that_may_not_connect_to_the_database(server: dict[str, Any]) -> None:
    shop = catalog.dsn(server)
    catalog.query(shop, f"REVOKE CONNECT ON DATABASE {server['NAME']} FROM PUBLIC")
    with role() as limited:
        error = connect(limited)
    catalog.query(shop, f"GRANT CONNECT ON DATABASE {server['NAME']} TO PUBLIC")
    assert type(error) is exceptions.PermissionDenied
    assert error.message == "The user may not connect to the database."


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        # Each as libpq and the server word it; none can be had from a server in the state in which tests need it.
        ('FATAL:  role "acme" does not exist', exceptions.AuthenticationFailed),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "a", database "b"', exceptions.AuthenticationFailed),
        ('root certificate file "/root.crt" does not exist', exceptions.ServerUnreachable),
        ("FATAL:  sorry, too many clients already", exceptions.NoConnectionToSpare),
        ("FATAL:  remaining connection slots are reserved for roles", exceptions.NoConnectionToSpare),
        ("timeout expired", exceptions.ServerUnreachable),
        ("FATAL:  the database system is starting up", exceptions.ServerUnreachable),
        ("something else", exceptions.ServerUnreachable),
    ],
)
def test_connecting__other_refusals(text: str, kind: type[exceptions.ServiceError]) -> None:
    assert type(translate(psycopg2.OperationalError(text))) is kind


def test_translate__statement_that_failed(error: Callable[..., BaseException]) -> None:
    caught = translate(error("SELECT * FROM no_such_table"))
    assert type(caught) is exceptions.ServerError
    assert caught.message == 'UndefinedTable: relation "no_such_table" does not exist'


def test_translated__keeps_the_error_as_the_cause() -> None:
    original = psycopg2.OperationalError("timeout expired")
    with pytest.raises(exceptions.ServerUnreachable) as caught, translated():
        raise original
    assert driver_error(caught.value) is original


def test_translated__lets_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), translated():
        _ = 1 / 0


def test_sqlstate__of_what_was_raised_from_the_driver(error: Callable[..., BaseException]) -> None:
    assert sqlstate(error("SELECT 1 / 0")) == "22012"
    assert sqlstate(ValueError()) == ""


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "INSERT INTO customer VALUES ('ann@corp.example', 40, 'Ann')",
            'UniqueViolation: duplicate key value violates unique constraint "customer_pkey"',
        ),
        (
            "INSERT INTO customer VALUES ('bob@corp.example', 11, 'Bob')",
            'CheckViolation: new row for relation "customer" violates check constraint "customer_age_check"',
        ),
        (
            "INSERT INTO customer VALUES ('bob@corp.example', 41)",
            'NotNullViolation: null value in column "name" of relation "customer" violates not-null constraint',
        ),
        (
            "DELETE FROM customer",
            "ForeignKeyViolation: update or delete on table … violates foreign key constraint"
            ' "purchase_customer_fkey" on table "purchase"',
        ),
        (
            "INSERT INTO purchase VALUES ('bob@corp.example')",
            'ForeignKeyViolation: insert or update on table "purchase" violates foreign key constraint'
            ' "purchase_customer_fkey"',
        ),
        (
            "UPDATE customer SET age = email::int",
            "InvalidTextRepresentation: invalid input syntax for type integer: …",
        ),
        ("SELECT to_date(email, 'YYYY') FROM customer", "InvalidDatetimeFormat: invalid value …"),
    ],
)
def test_describe__names_objects_and_shows_no_row(
    error: Callable[..., BaseException], statement: str, message: str
) -> None:
    assert describe(error(statement)) == message


@pytest.mark.parametrize(
    "value",
    ["secret", 'x"secret', '"secret"', 'a"b"secret"c', 'customer"secret', 'a "secret" "b', "it's secret", "\nsecret\n"],
)
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT %s::int",
        "SELECT %s::uuid",
        "SELECT %s::timestamp",
        "SELECT ('[' || %s)::json",
        "SELECT %s::int[]",
        "UPDATE customer SET age = %s::int",
    ],
)
def test_describe__shows_no_value_however_it_is_quoted(
    error: Callable[..., BaseException], statement: str, value: str
) -> None:
    described = describe(error(statement, [value]))
    assert "secret" not in described
    assert "\n" not in described


def test_describe__raised_by_a_function_of_the_database(error: Callable[..., BaseException]) -> None:
    raised = error("DO $$ BEGIN RAISE EXCEPTION 'no such customer \"%%\" or ''%%''', 'ann@x', 'bob@x'; END $$", [])
    assert describe(raised) == "RaiseException: no such customer … or …"


@pytest.mark.parametrize(
    ("error", "text"),
    [(ValueError("one\n two"), "ValueError: one two"), (ValueError(), "ValueError"), (KeyError("a"), "KeyError: 'a'")],
)
def test_describe__without_a_driver(error: Exception, text: str) -> None:
    assert describe(error) == text


def test_describe__is_bounded(error: Callable[..., BaseException]) -> None:
    assert len(describe(error(f'SELECT * FROM {"t" * 63}; SELECT "{"é" * 9000}"'))) <= MAX_MESSAGE
    described = describe(ValueError("x" * 9000))
    assert len(described) == MAX_MESSAGE
    assert described.endswith("x…")


def test_redact__every_spelling_of_a_password(settings: Any) -> None:
    settings.TENANT_DATABASES = {"eu": {"PASSWORD": "p@ss/w rd"}, "us": {"PASSWORD": "zweites"}}
    text = "p@ss/w rd p%40ss%2Fw%20rd p%40ss%2fw%20rd p%40ss/w%20rd p%40ss%2Fw+rd zweites"
    assert redact(text) == "*** *** *** *** *** ***"


def test_redact__a_part_of_a_password_that_a_driver_took_for_the_host(settings: Any) -> None:
    settings.TENANT_DATABASES = {"eu": {"PASSWORD": "p@sesame/street"}}
    text = 'could not translate host name "sesame" to address; database "street" does not exist'
    assert redact(text) == 'could not translate host name "***" to address; database "***" does not exist'


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "PostgreSQL"])
def test_redact__a_url_that_nobody_configured(scheme: str) -> None:
    assert redact(f"see {scheme}://me:word@db/shop now") == f"see {scheme}://*** now"


@given(PASSWORDS, st.lists(PASSWORDS | st.sampled_from([" ", "\n", "@", "host "])), st.booleans())
@example("a b", ["a\n", "b"], False)
@example("ab", ["a" * 499, "b"], False)
def test_redact__any_text_without_any_password(password: str, pieces: list[str], often: bool) -> None:
    assume(password.strip())
    with override_settings(TENANT_DATABASES={"eu": {"PASSWORD": password}}):
        result = redact(("\n" + password + " ").join(pieces) if often else "".join(pieces) + password)
        assert not [secret for secret in secrets() if secret in result]
    assert "\n" not in result
    assert len(result) <= MAX_MESSAGE
