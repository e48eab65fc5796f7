import builtins
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as configured

from tenants.backends import backend_for
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.command_line import Result, manage
from tests.roles import role

SCHEMA = ["--isolation=schema", "--database=shop", "--no-input"]


@pytest.fixture(autouse=True)
def cleaned(plane: None) -> Iterator[None]:
    yield
    for tenant in Tenant.objects.exclude(isolation=Isolation.SHARED).filter(database="shop"):
        backend_for(tenant).drop(tenant)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run createtenant with these lines as standard input."""

    def run(*lines: str, options: tuple[str, ...] = ()) -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return manage("createtenant", *options)

    return run


def shop() -> dict[str, Any]:
    return catalog.dsn(configured.TENANT_DATABASES["shop"])


def test_options__schema() -> None:
    result = manage("createtenant", "--tenant-id=acme", "--name=ACME Corporation", *SCHEMA)

    assert (result.code, result.err) == (0, "")
    assert result.out == "Tenant 'acme' created: schema 'public_acme' on server 'shop'.\n"
    assert "public_acme" in catalog.schemas(shop())
    assert Tenant.objects.get().name == "ACME Corporation"


def test_options__database() -> None:
    result = manage("createtenant", "--tenant-id=acme", "--isolation=database", "--database=shop", "--no-input")

    name = f"acme_{configured.SUFFIX}_db"
    assert result.out == f"Tenant 'acme' created: database '{name}' on server 'shop'.\n"
    assert name in catalog.databases()


def test_options__shared() -> None:
    result = manage("createtenant", "--tenant-id=common", "--isolation=shared", "--database=shop", "--no-input")

    assert result.out == "Tenant 'common' created: shared 'public' on server 'shop'.\n"


def test_options__name_is_the_id_when_not_given() -> None:
    manage("createtenant", "--tenant-id=acme", *SCHEMA)

    assert Tenant.objects.get().name == "acme"


def test_options__enough_of_them_ask_nothing(answer: Any) -> None:
    result = answer(options=("--tenant-id=acme", "--isolation=schema", "--database=shop"))

    assert (result.code, result.out) == (0, "Tenant 'acme' created: schema 'public_acme' on server 'shop'.\n")


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ([], "--tenant-id and --isolation"),
        (["--tenant-id=acme"], "--isolation"),
        (["--isolation=schema"], "--tenant-id"),
        (["--isolation=schema", "--tenant-id="], "--tenant-id"),
    ],
)
def test_no_input__names_what_is_missing(options: list[str], missing: str) -> None:
    result = manage("createtenant", "--no-input", *options)

    assert (result.code, result.out) == (2, "")
    assert result.err == f"CommandError: With --no-input, {missing} must be given.\n"


def test_interactive__asks_for_everything(answer: Any) -> None:
    result = answer("acme", "ACME Corporation", "schema", "shop")

    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "Tenant id: Name [acme]: Isolation (schema/database/shared) [schema]: Server (default/shop) [default]: "
        "Tenant 'acme' created: schema 'public_acme' on server 'shop'.\n"
    )
    assert Tenant.objects.get().name == "ACME Corporation"


def test_interactive__asks_for_what_is_left_open(answer: Any) -> None:
    result = answer("", "", options=("--tenant-id=acme", "--database=shop"))

    assert result.code == 0
    assert result.out.startswith("Name [acme]: Isolation (schema/database/shared) [schema]: Tenant 'acme' created")
    assert Tenant.objects.get().name == "acme"


def test_interactive__wrong_answers_are_asked_again(answer: Any) -> None:
    result = answer("", "ACME!", "plan", "acme", "\x1b[31mred", "Acme", "row", "schema", "nowhere", "shop")

    assert result.code == 0
    assert result.out.count("Tenant id: ") == 4
    assert result.out.count("Name [acme]: ") == 2
    assert "'ACME!' is not a tenant id: " in result.err
    assert "'plan' is reserved" in result.err
    assert "Choose one of: schema, database, shared.\n" in result.err
    assert "Choose one of: default, shop.\n" in result.err
    assert "\x1b" not in result.out + result.err
    assert Tenant.objects.get().name == "Acme"


@pytest.mark.parametrize(("lines", "question"), [((), "Tenant id"), (("acme",), "Name"), (("acme", ""), "Isolation")])
def test_interactive__end_of_input_is_a_usage_error(answer: Any, lines: tuple[str, ...], question: str) -> None:
    result = answer(*lines)

    assert result.code == 2
    assert result.err == f"CommandError: No answer to '{question}'; use --no-input and options.\n"
    assert not Tenant.objects.exists()


def test_interactive__ctrl_c_creates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "input", interrupt)

    result = manage("createtenant")

    assert (result.code, result.err) == (1, "CommandError: Canceled; nothing was created.\n")
    assert not Tenant.objects.exists()


def test_password__is_neither_asked_nor_taken_nor_shown(answer: Any, settings: Any) -> None:
    server = {**configured.TENANT_DATABASES["shop"], "PASSWORD": "s3cret-w0rd"}
    settings.TENANT_DATABASES = {"shop": server}

    result = answer("acme", "Acme", "schema", "shop", options=("--register-only",))
    refused = manage("createtenant", "--tenant-id=globex", *SCHEMA, "--password=s3cret")

    assert "assword" not in result.out + result.err
    assert "s3cret" not in result.out + result.err
    assert refused.code == 2
    assert "s3cret-w0rd" not in json.dumps(list(Tenant.objects.values()), default=str)


def test_label__is_kept(plane: None) -> None:
    manage("createtenant", "--tenant-id=acme", *SCHEMA, "--label=plan=gold", "--label", "note=a=b", "--label=empty=")

    assert Tenant.objects.get().labels == {"plan": "gold", "note": "a=b", "empty": ""}


@pytest.mark.parametrize("label", ["gold", "=gold", ""])
def test_label__without_key_is_a_usage_error(label: str) -> None:
    result = manage("createtenant", "--tenant-id=acme", *SCHEMA, f"--label={label}")

    assert result.code == 2
    assert f"{label!r} is not key=value" in result.err
    assert not Tenant.objects.exists()


def test_register_only__makes_nothing() -> None:
    result = manage("createtenant", "--tenant-id=acme", *SCHEMA, "--register-only")

    assert result.out == "Tenant 'acme' registered: schema 'public_acme' on server 'shop'.\n"
    assert "public_acme" not in catalog.schemas(shop())
    assert Tenant.objects.get().provisioned_at is None


def test_migrate__follows_at_once() -> None:
    result = manage("createtenant", "--tenant-id=acme", *SCHEMA, "--migrate")

    assert result.out.startswith(
        "Tenant 'acme' created: schema 'public_acme' on server 'shop'.\nRunning migrations for tenant: acme\n"
    )
    assert result.out.endswith("Migrations completed successfully for tenant 'acme'.\n")
    assert (result.code, result.err) == (0, "")


def test_migrate__that_fails_keeps_the_tenant(broken: Any) -> None:
    broken(orders="orders_failing_data")

    result = manage("createtenant", "--tenant-id=globex", *SCHEMA, "--migrate")

    assert result.code == 1
    assert "Migrations failed for tenant 'globex': orders.0003_channel: " in result.err
    assert "public_globex" in catalog.schemas(shop())
    assert Tenant.objects.get().provisioned_at is not None


def test_format_json__is_the_tenant_then_its_run() -> None:
    result = manage("createtenant", "--tenant-id=acme", *SCHEMA, "--migrate", "--format=json")

    tenant, run = [json.loads(line) for line in result.out.splitlines()]
    assert (tenant["tenant_id"], tenant["isolation"], tenant["schema_name"]) == ("acme", "schema", "public_acme")
    assert (run["tenant_id"], run["state"]) == ("acme", "succeeded")


def test_verbosity_0__prints_nothing() -> None:
    result = manage("createtenant", "--tenant-id=acme", *SCHEMA, "--migrate", "-v0")

    assert (result.code, result.out, result.err) == (0, "", "")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--tenant-id=ACME", "'ACME' is not a tenant id"),
        ("--tenant-id=a\0b", "'a\\x00b' is not a tenant id"),
        (f"--tenant-id={'a' * 10_000}", "is not a tenant id"),
        (f"--tenant-id={'a' * 63}", "PostgreSQL allows 63"),
        ("--tenant-id=migrate-all", "'migrate-all' is reserved"),
        ("--database=nowhere", "There is no database server 'nowhere'; configured are: default, shop."),
        (f"--name={'x' * 201}", "has 201 characters; 200 are allowed."),
        ("--name=\x1b[31mred", "has a character that cannot be printed."),
        ("--name=a\0b", "has a character that cannot be printed."),
        ("--isolation=row", "invalid choice: 'row'"),
    ],
)
def test_wrong_value__is_a_usage_error_and_leaves_nothing(option: str, message: str) -> None:
    before = catalog.schemas(shop())

    result = manage("createtenant", "--tenant-id=acme", *SCHEMA, option)

    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.replace("\n", "").isprintable()
    assert len(result.err) < 2_000
    assert not Tenant.objects.exists()
    assert catalog.schemas(shop()) == before


def test_existing_tenant__is_refused() -> None:
    manage("createtenant", "--tenant-id=acme", *SCHEMA)

    result = manage("createtenant", "--tenant-id=acme", *SCHEMA)

    assert (result.code, result.err) == (1, "CommandError: Tenant 'acme' exists already.\n")


def test_existing_schema__is_left_as_it_is() -> None:
    catalog.query(shop(), "CREATE SCHEMA public_acme CREATE TABLE precious (id int)")

    result = manage("createtenant", "--tenant-id=acme", *SCHEMA)

    assert result.code == 1
    assert result.err == (
        "CommandError: The schema 'public_acme' exists already on server 'shop' and was left as it is.\n"
    )
    assert catalog.tables(shop(), "public_acme") == {"precious"}
    assert not Tenant.objects.exists()
    catalog.query(shop(), "DROP SCHEMA public_acme CASCADE")


def test_control_plane__is_no_tenant() -> None:
    result = manage("createtenant", "--tenant-id=acme", "--isolation=shared", "--no-input")

    assert result.code == 1
    assert "Tenant 'acme' would be the control plane itself." in result.err
    assert not Tenant.objects.exists()


@pytest.mark.parametrize(
    ("isolation", "right"),
    [(Isolation.SCHEMA, "grant it CREATE on the database."), (Isolation.DATABASE, "grant it CREATEDB.")],
)
def test_no_right_to_provision__leaves_nothing(settings: Any, isolation: str, right: str) -> None:
    before = (catalog.schemas(shop()), catalog.databases())
    with role() as mere:
        settings.TENANT_DATABASES = {**configured.TENANT_DATABASES, "mere": mere}
        result = manage("createtenant", "--tenant-id=acme", f"--isolation={isolation}", "--database=mere", "--no-input")

    assert result.code == 1
    assert result.err.startswith("CommandError: The user of server 'mere' may not create ")
    assert result.err.endswith(f"{right}\n")
    assert not Tenant.objects.exists()
    assert (catalog.schemas(shop()), catalog.databases()) == before


def test_unreachable_server__leaves_nothing(settings: Any) -> None:
    gone = {**configured.TENANT_DATABASES["shop"], "HOST": "127.0.0.1", "PORT": "1", "OPTIONS": {}}
    settings.TENANT_DATABASES = {"gone": gone}

    result = manage("createtenant", "--tenant-id=acme", "--isolation=schema", "--database=gone", "--no-input")

    assert result.code == 1
    assert result.err == (
        "CommandError: Cannot connect to the tenant's database: The database server refused the connection.\n"
    )
    assert not Tenant.objects.exists()


@pytest.mark.parametrize("label", ["k" * 64 + "=v", "k=" + "v" * 256, "k=\udcff", "k\n=v"])
def test_label__that_cannot_be_kept_is_a_usage_error(label: str) -> None:
    result = manage("createtenant", "--tenant-id=acme", *SCHEMA, f"--label={label}")

    assert result.code == 2
    assert "is no label: a key of 1 to 63 characters" in result.err
    assert not Tenant.objects.exists()


def test_interactive__wrong_id_of_the_options_is_told_before_the_first_question(answer: Any) -> None:
    result = answer(options=("--tenant-id=ACME",))

    assert result.code == 2
    assert "'ACME' is not a tenant id" in result.err
