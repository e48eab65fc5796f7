"""`adopttenants` on schemas and databases that nobody has registered: what it finds, refuses and registers."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.conf import settings as configured
from django.db import connection
from django.test.utils import CaptureQueriesContext
from psycopg2 import sql

from migrations_api.exceptions import InvalidOptions, NotAdoptable
from migrations_api.management.base import user
from migrations_api.models import MigrationRun, TenantObservation
from migrations_api.orchestrator import adoption, fleet
from migrations_api.orchestrator.adoption import Search
from tenants.exceptions import TenantExists
from tenants.models import Isolation, Tenant
from tests import catalog
from tests.command_line import Result, manage
from tests.fleets import bring, copy

MakeTenant = Callable[..., Tenant]
MakeFleet = Callable[..., None]

BY_PATTERN = ("adopttenants", "--database=shop", "--tenant-id-pattern=tool_{tenant_id}", "--schemas", "tool_*")
BY_TABLE = ("adopttenants", "--database=shop", "--table=tools_client")
ALL_STEPS = 15
FIRST, NEWEST = ("users", "0001"), ()


def shop(statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
    return catalog.query(catalog.dsn(configured.TENANT_DATABASES["shop"]), statement, parameters)


@pytest.fixture
def strangers(make_tenant: MakeTenant) -> Iterator[MakeFleet]:
    """Make schemas as another tool would have: copies of a tenant at `target`, of which nothing is registered."""
    made: list[str] = []

    def make(*schemas: str, target: tuple[str, ...] = FIRST) -> None:
        model = make_tenant("model")
        bring(model, *target)
        for schema in schemas:
            shop(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
            made.append(schema)
        copy(model, [Tenant(tenant_id="x", isolation="schema", database="shop", schema_name=each) for each in schemas])
        Tenant.objects.all().delete()
        MigrationRun.objects.all().delete()

    yield make
    for schema in made:
        shop(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


@pytest.fixture
def table(plane: None) -> Iterator[Callable[..., None]]:
    """The other tool's table of tenants, with rows of (schema_name, title, slug)."""
    shop("CREATE TABLE public.tools_client (id bigserial, schema_name text, title text, slug text)")

    def fill(*rows: tuple[str | None, str, str]) -> None:
        for row in rows:
            shop("INSERT INTO public.tools_client (schema_name, title, slug) VALUES (%s, %s, %s)", row)

    yield fill
    shop("DROP TABLE public.tools_client")


def rows(result: Result) -> dict[str, dict[str, Any]]:
    return {row["found"]: row for row in json.loads(result.out)}


def adoptions(*arguments: str) -> dict[str, str]:
    return {found: row["adoption"] for found, row in rows(manage(*arguments, "--format=json")).items()}


def test_look__shows_where_each_stands_and_changes_nothing(strangers: MakeFleet) -> None:
    strangers("tool_acme", "tool_globex", "tool_initech", target=NEWEST)
    shop("DELETE FROM tool_globex.django_migrations WHERE app = 'orders' AND name ~ '^000[45]'")
    shop("INSERT INTO tool_initech.django_migrations (app, name, applied) VALUES ('orders', '0099_future', now())")
    before = catalog.fingerprint(catalog.dsn(configured.TENANT_DATABASES["shop"]))

    result = manage(*BY_PATTERN)

    assert (result.code, result.err) == (0, "")
    assert [line.split("  ")[0] for line in result.out.splitlines()] == [
        "found",
        "tool_acme",
        "tool_globex",
        "tool_initech",
        "tool_initech: applied, but unknown to this code: orders.0099_future",
        "3 can be registered, with --register; nothing was changed.",
    ]
    assert [line.split() for line in result.out.splitlines()[1:4]] == [
        ["tool_acme", "acme", "acme", "schema", "up_to_date", "15", "0", "new"],
        ["tool_globex", "globex", "globex", "schema", "pending", "13", "2", "new"],
        ["tool_initech", "initech", "initech", "schema", "ahead", "16", "0", "new"],
    ]
    assert not Tenant.objects.exists()
    assert catalog.fingerprint(catalog.dsn(configured.TENANT_DATABASES["shop"])) == before


def test_register__holds_them_until_they_are_released(strangers: MakeFleet) -> None:
    strangers("tool_acme", "tool_globex", target=("orders", "0003"))
    before = catalog.fingerprint(catalog.dsn(configured.TENANT_DATABASES["shop"]))

    registered = manage(*BY_PATTERN, "--register", "--label=from=tool")
    untouched = catalog.fingerprint(catalog.dsn(configured.TENANT_DATABASES["shop"]))
    kept_out = manage("migratealltenants")
    released = manage("releasetenant", "--reason=adopted")
    migrated = manage("migratealltenants")

    assert registered.code == 0
    assert registered.out.endswith(
        "Registered 2, which are held. When they may be migrated: manage.py releasetenant --reason=adopted\n"
    )
    assert untouched == before
    assert kept_out.err.count(f"skipped: The tenant is held by {user()} (adopted).") == 2, kept_out
    assert released.out == "2 tenants released.\n"
    assert "  Total: 2 tenants migrated, " in migrated.out
    acme = Tenant.objects.get(pk="acme")
    assert (acme.schema_name, acme.isolation, acme.labels, acme.role_name) == (
        "tool_acme",
        "schema",
        {"from": "tool"},
        "",
    )
    assert len(catalog.migrations(catalog.tenant_dsn(acme), "tool_acme")) == ALL_STEPS


def test_register__is_seen_at_once(strangers: MakeFleet) -> None:
    strangers("tool_acme")

    manage(*BY_PATTERN, "--register")

    acme = Tenant.objects.get()
    assert (acme.held_by, acme.hold_reason, acme.provisioned_at is not None) == (user(), "adopted", True)
    assert TenantObservation.objects.get(tenant=acme).applied is not None


def test_register__twice_registers_nothing_more(strangers: MakeFleet) -> None:
    strangers("tool_acme")
    manage(*BY_PATTERN, "--register")

    again = manage(*BY_PATTERN, "--register")
    [row] = rows(manage(*BY_PATTERN, "--format=json")).values()

    assert (again.code, again.err) == (0, "")
    assert again.out.endswith("Nothing was registered.\n")
    assert (row["adoption"], row["status"], row["detail"]) == ("registered", "pending", "")


def test_registered__under_another_id_is_told(strangers: MakeFleet) -> None:
    strangers("tool_acme")
    manage(*BY_PATTERN, "--register")

    [row] = rows(
        manage("adopttenants", "--database=shop", "--schemas", "tool_*", "--fit-ids", "--format=json")
    ).values()

    assert (row["adoption"], row["tenant_id"]) == ("registered", "acme")
    assert row["detail"] == "It is registered as 'acme', not as 'tool-acme'."


def test_registered__over_another_alias_of_the_database(strangers: MakeFleet, settings: Any) -> None:
    strangers("tool_acme")
    settings.TENANT_DATABASES = {**configured.TENANT_DATABASES, "second": configured.TENANT_DATABASES["shop"]}
    manage(*BY_PATTERN, "--register")

    assert adoptions(*BY_PATTERN, "--database=second") == {"tool_acme": "registered"}


def test_registered__elsewhere_under_the_same_name_is_another(strangers: MakeFleet) -> None:
    strangers("tool_acme")
    Tenant.objects.create(tenant_id="of-plane", isolation="schema", database="default", schema_name="tool_acme")

    assert adoptions(*BY_PATTERN) == {"tool_acme": "new"}


def test_registered__in_other_case_is_in_the_way(strangers: MakeFleet) -> None:
    strangers("tool_acme")
    Tenant.objects.create(tenant_id="loud", isolation="schema", database="shop", schema_name="TOOL_ACME")

    assert adoptions(*BY_PATTERN) == {"tool_acme": "taken"}


def test_ids__come_from_the_template_where_it_fits_and_else_are_the_names(strangers: MakeFleet) -> None:
    strangers("public_acme", "globex")

    found = rows(manage("adopttenants", "--database=shop", "--schemas", "public_acme", "globex", "--format=json"))

    assert {name: row["tenant_id"] for name, row in found.items()} == {"public_acme": "acme", "globex": "globex"}


@pytest.mark.parametrize(("schema", "tenant_id"), [("tool_Acme_Co", "acme-co"), ("tool_ACME.2", "acme-2")])
def test_fit_ids__makes_ids_of_names(strangers: MakeFleet, schema: str, tenant_id: str) -> None:
    strangers(schema)

    registered = manage(*BY_PATTERN, "--fit-ids", "--register")
    manage("releasetenant", "--reason=adopted")

    assert registered.code == 0
    assert Tenant.objects.get(pk=tenant_id).schema_name == schema
    assert manage("migratetenant", f"--tenant-id={tenant_id}", *FIRST, "--check").code == 0


def test_ids__that_are_not_allowed_are_all_named_and_nothing_is_registered(strangers: MakeFleet) -> None:
    strangers("tool_acme", "tool_plan", "tool_a_b", "other")

    look = manage(*BY_PATTERN, "other", "--format=json")
    result = manage(*BY_PATTERN, "other", "--register")

    assert {found: row["adoption"] for found, row in rows(look).items()} == {
        "other": "invalid_id",
        "tool_a_b": "invalid_id",
        "tool_acme": "new",
        "tool_plan": "invalid_id",
    }
    assert (look.code, look.err) == (1, "CommandError: 3 of 4 cannot be registered.\n")
    assert (result.code, result.err) == (1, "CommandError: Nothing was registered: 3 of 4 cannot be registered.\n")
    assert "other: 'other' does not fit the pattern 'tool_{tenant_id}'.\n" in result.out
    assert "tool_a_b: 'a_b' is not a tenant id: use 1 to 63 lower-case letters, digits and hyphens" in result.out
    assert "tool_plan: 'plan' is reserved; " in result.out
    assert not Tenant.objects.exists()


def test_ids__that_meet_are_refused(strangers: MakeFleet, make_tenant: MakeTenant) -> None:
    strangers("tool_acme", "tool_a_b", "tool_a-b")
    make_tenant("acme")

    assert set(adoptions(*BY_PATTERN, "--fit-ids").values()) == {"taken"}


def test_names__that_differ_in_case_only_are_refused(strangers: MakeFleet, table: Callable[..., None]) -> None:
    strangers("tool_x", "tool_X")
    table(("tool_x", "", "one"), ("tool_X", "", "two"))

    assert adoptions(*BY_TABLE, "--id-column=slug") == {"tool_x": "taken", "tool_X": "taken"}


@pytest.mark.parametrize("schema", ["tool_\x1b[2J", "tool_a\nb"])
def test_names__that_a_terminal_would_obey_are_shown_escaped(plane: None, schema: str) -> None:
    shop(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    try:
        result = manage(*BY_PATTERN)
    finally:
        shop(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(schema)))

    assert result.code == 1
    assert (result.out + result.err).replace("\n", "").isprintable()
    assert f"{schema!r}: The schema name {schema!r} has a character that cannot be printed.\n" in result.out


@pytest.mark.parametrize("schema", ["tool_a'b", 'tool_a"b', "tool_a,b", "tool_a$b"])
def test_names__that_are_not_allowed_are_refused(plane: None, schema: str) -> None:
    shop(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    try:
        result = manage(*BY_PATTERN, "--fit-ids")
    finally:
        shop(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(schema)))

    assert result.code == 1
    assert "has characters that are not allowed" in result.out


def test_exclude__leaves_out(strangers: MakeFleet) -> None:
    strangers("tool_acme", "tool_a_b")

    assert adoptions(*BY_PATTERN, "--exclude", "*_b") == {"tool_acme": "new"}


def test_no_record__is_left_out_and_the_rest_is_registered(strangers: MakeFleet) -> None:
    strangers("tool_acme", "tool_globex", "tool_initech")
    shop("DROP TABLE tool_globex.django_migrations")
    shop("DELETE FROM tool_initech.django_migrations WHERE app <> 'plans'")

    result = manage(*BY_PATTERN, "--register")

    assert result.code == 3
    assert "tool_globex: No migration of its apps is recorded there.\n" in result.out
    assert "tool_initech: No migration of its apps is recorded there.\n" in result.out
    assert [tenant.tenant_id for tenant in Tenant.objects.all()] == ["acme"]


def test_without_record__is_registered_and_recorded_by_fake_initial(strangers: MakeFleet) -> None:
    strangers("tool_acme", target=("products", "0001"))
    shop("DROP TABLE tool_acme.django_migrations")

    registered = manage(*BY_PATTERN, "--without-record", "--register", "--format=json")
    manage("releasetenant", "--tenant-id=acme")
    refused = manage("migratetenant", "--tenant-id=acme", "products", "0001")
    faked = manage("migratetenant", "--tenant-id=acme", "--fake-initial", "products", "0001")

    assert (registered.code, rows(registered)["tool_acme"]["adoption"]) == (0, "adopted")
    assert (refused.code, "no record of its migrations" in refused.err) == (1, True)
    assert "products/0001_initial.py ... FAKED" in faked.out
    assert manage("migratetenant", "--tenant-id=acme").code == 0


def test_unreadable__is_left_out_and_told(strangers: MakeFleet) -> None:
    strangers("tool_acme", "tool_globex")
    with catalog.cursor(catalog.dsn(configured.TENANT_DATABASES["shop"])) as other:
        other.execute("BEGIN; LOCK TABLE tool_globex.django_migrations")
        result = manage(*BY_PATTERN, "--register", "--format=json")

    assert result.code == 3
    assert {found: row["adoption"] for found, row in rows(result).items()} == {
        "tool_acme": "adopted",
        "tool_globex": "unreachable",
    }


def test_table__gives_schemas_names_and_ids(strangers: MakeFleet, table: Callable[..., None]) -> None:
    strangers("tool_acme", "tool_globex")
    table(("tool_acme", "ACME Corporation", "acme"), ("tool_globex", "", "globex-inc"))

    result = manage(*BY_TABLE, "--name-column=title", "--id-column=slug", "--register")

    assert (result.code, result.err) == (0, "")
    assert list(Tenant.objects.values_list("tenant_id", "name", "schema_name")) == [
        ("acme", "ACME Corporation", "tool_acme"),
        ("globex-inc", "globex-inc", "tool_globex"),
    ]


def test_table__with_rows_that_lead_nowhere(strangers: MakeFleet, table: Callable[..., None]) -> None:
    strangers("tool_acme")
    table(("tool_acme", "", "acme"), ("tool_gone", "", "gone"), (None, "", "nothing"))

    result = manage(*BY_TABLE, "--id-column=slug", "--format=json")

    assert {found: row["adoption"] for found, row in rows(result).items()} == {
        "": "missing",
        "tool_acme": "new",
        "tool_gone": "missing",
    }
    assert result.code == 3


def test_table__with_a_name_of_two_lines(strangers: MakeFleet, table: Callable[..., None]) -> None:
    strangers("tool_acme")
    table(("tool_acme", "ACME\nCorporation", "acme"))

    result = manage(*BY_TABLE, "--name-column=title", "--id-column=slug")

    assert result.code == 1
    assert "tool_acme: The name 'ACME\\nCorporation' has a character that cannot be printed.\n" in result.out


def test_table__that_is_locked_is_not_waited_for(table: Callable[..., None]) -> None:
    with catalog.cursor(catalog.dsn(configured.TENANT_DATABASES["shop"])) as other:
        other.execute("BEGIN; LOCK TABLE public.tools_client")
        result = manage(*BY_TABLE)

    assert result.code == 1
    assert "lock timeout" in result.err


def test_table__quotes_whatever_it_is_called(strangers: MakeFleet) -> None:
    strangers("tool_acme")
    shop('CREATE SCHEMA "Od""d"; CREATE TABLE "Od""d"."Cli\'ent" ("sch""ema" text)')
    shop('INSERT INTO "Od""d"."Cli\'ent" VALUES (\'tool_acme\')')
    try:
        result = manage(
            "adopttenants",
            "--database=shop",
            "--fit-ids",
            "--table=Od\"d.Cli'ent",
            '--schema-column=sch"ema',
            "--format=json",
        )
    finally:
        shop('DROP SCHEMA "Od""d" CASCADE')

    assert [row["tenant_id"] for row in rows(result).values()] == ["tool-acme"]


@pytest.mark.parametrize("arguments", [("--table=tools_nothing",), ("--table=tools_client", "--name-column=nothing")])
def test_table__that_is_not_there(table: Callable[..., None], arguments: tuple[str, ...]) -> None:
    result = manage("adopttenants", "--database=shop", *arguments)

    assert result.code == 2
    assert result.err.startswith(f"CommandError: Server 'shop' has no table '{arguments[0][8:]}' with the columns ")


def test_table__of_a_view_that_would_write_cannot(plane: None) -> None:
    shop(
        "CREATE FUNCTION public.leak() RETURNS text LANGUAGE sql AS 'CREATE TABLE public.leaked (); SELECT ''x''::text'"
    )
    shop("CREATE VIEW public.tools_view AS SELECT public.leak() AS schema_name")
    try:
        result = manage("adopttenants", "--database=shop", "--table=tools_view")
        assert result.code == 1
        assert "read-only transaction" in result.err
        assert "leaked" not in catalog.tables(catalog.dsn(configured.TENANT_DATABASES["shop"]), "public")
    finally:
        shop("DROP VIEW public.tools_view; DROP FUNCTION public.leak()")


def test_public__of_another_server_is_its_shared_tenant(make_tenant: MakeTenant) -> None:
    bring(make_tenant("shared", Isolation.SHARED))
    Tenant.objects.all().delete()

    [row] = rows(manage("adopttenants", "--database=shop", "--schemas", "public", "--format=json")).values()

    assert (row["isolation"], row["tenant_id"], row["status"], row["adoption"]) == (
        "shared",
        "public",
        "up_to_date",
        "new",
    )


@pytest.mark.parametrize("pattern", ["*", "public"])
def test_control_plane__is_never_adopted(plane: None, pattern: str) -> None:
    # That another server's has its id already is not the reason.
    Tenant.objects.create(tenant_id="public", isolation="shared", database="shop", schema_name="public")

    result = manage("adopttenants", "--schemas", pattern, "--register", "--format=json")

    assert (result.code, result.err) == (0, "")
    assert {found: row["adoption"] for found, row in rows(result).items()} == {"public": "control_plane"}
    assert Tenant.objects.count() == 1


def test_control_plane__by_another_name_of_its_server(plane: None, settings: Any) -> None:
    disguised = {**configured.DATABASES["default"], "TEST": {}}
    disguised["OPTIONS"] = {**disguised.get("OPTIONS", {}), "connect_timeout": 5}
    folder = disguised["OPTIONS"].get("host")
    if not folder:
        pytest.skip("needs a server that is reached over its socket")
    disguised["OPTIONS"]["host"] = f"{folder}/"
    settings.TENANT_DATABASES = {"disguised": disguised}

    assert adoptions("adopttenants", "--database=disguised", "--schemas", "public") == {"public": "control_plane"}


def test_system_schemas__are_never_found(plane: None) -> None:
    result = manage("adopttenants", "--database=shop", "--schemas", "pg_*", "information_schema")

    assert result.code == 2
    assert result.err == (
        "CommandError: Nothing on server 'shop' fits. Patterns are those of a shell, such as 'tenant_*', in quotes.\n"
    )


def test_databases__by_pattern(make_tenant: MakeTenant) -> None:
    bring(make_tenant("acme", Isolation.DATABASE))
    make_tenant("empty", Isolation.DATABASE)
    database = Tenant.objects.get(pk="acme").database_name
    Tenant.objects.all().delete()

    arguments = (
        "adopttenants",
        "--database=shop",
        "--databases",
        f"*{configured.SUFFIX}*",
        "--register",
        "--format=json",
    )
    result = manage(*arguments)

    assert result.code == 3
    assert {found: row["adoption"] for found, row in rows(result).items()} == {
        database: "adopted",
        f"empty_{configured.SUFFIX}_db": "no_record",
        configured.SHOP: "server_database",
        str(configured.DATABASES["default"]["NAME"]): "server_database",
    }
    [tenant] = Tenant.objects.all()
    assert (tenant.tenant_id, tenant.isolation, tenant.schema_name) == ("acme", "database", "public")
    # Whatever database of the server an alias names, these are the same.
    assert adoptions("adopttenants", "--database=default", "--databases", database) == {database: "registered"}
    assert manage("releasetenant", "--tenant-id=acme").code == 0
    assert manage("migratetenant", "--tenant-id=acme", "--check").code == 0


def test_databases__that_the_service_makes_for_a_moment_are_never_found(plane: None) -> None:
    shadow = f"tenant_migrations_shadow_{configured.SUFFIX}"
    shop(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(shadow)))
    try:
        assert shadow not in adoptions("adopttenants", "--database=shop", "--databases", f"*{configured.SUFFIX}")
    finally:
        shop(sql.SQL("DROP DATABASE {}").format(sql.Identifier(shadow)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --schemas --databases --table is required"),
        (("--schemas", "a*", "--databases", "b*"), "not allowed with argument"),
        (("--schemas", "a*", "--id-column=slug"), "The columns are those of a --table, which is not given."),
        (("--schemas", "a*", "--database=nowhere"), "There is no database server 'nowhere'"),
        (("--schemas", "a*", "--tenant-id-pattern=tool_"), "is not a template: it must hold {tenant_id}"),
        (("--table=a.b.c",), "'a.b.c' is not a table: give it as table, or as schema.table."),
        (("--table=t", "--id-column=i", "--tenant-id-pattern={tenant_id}"), "not from both"),
    ],
)
def test_usage__is_exit_code_2(plane: None, arguments: tuple[str, ...], message: str) -> None:
    result = manage("adopttenants", *arguments)

    assert result.code == 2
    assert message in result.err


def test_server__that_does_not_answer(plane: None, settings: Any) -> None:
    gone = {
        **configured.TENANT_DATABASES["shop"],
        "HOST": "127.0.0.1",
        "PORT": "1",
        "PASSWORD": "s3cret",
        "OPTIONS": {},
    }
    settings.TENANT_DATABASES = {"gone": gone}

    result = manage("adopttenants", "--database=gone", "--schemas", "*")

    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "CommandError: Cannot connect to the tenant's database: The database server refused the connection.\n"
    )


def test_release__by_a_reason_that_nobody_has(plane: None) -> None:
    result = manage("releasetenant", "--reason=adopted")

    assert (result.code, result.err) == (1, "CommandError: No tenant is held with the reason 'adopted'.\n")


def test_release__by_reason_leaves_others_held(make_tenant: MakeTenant) -> None:
    for tenant_id, reason in (("acme", "an audit"), ("globex", "adopted")):
        make_tenant(tenant_id)
        manage("holdtenant", f"--tenant-id={tenant_id}", f"--reason={reason}")

    assert manage("releasetenant", "--reason=adopted").out == "1 tenant released.\n"
    assert list(Tenant.objects.filter(held_at__isnull=False).values_list("pk", flat=True)) == ["acme"]


def test_search__takes_one_place_to_look() -> None:
    with pytest.raises(InvalidOptions):
        Search(database="shop")
    with pytest.raises(InvalidOptions):
        Search(database="shop", schemas=("a",), databases=("b",))


def test_register__refuses_all_for_one(strangers: MakeFleet) -> None:
    strangers("tool_acme", "tool_a_b")
    findings = adoption.find(Search(database="shop", schemas=("tool_*",), id_pattern="tool_{tenant_id}"))

    with pytest.raises(NotAdoptable, match="  'tool_a_b': 'a_b' is not a tenant id"):
        adoption.register(findings, by="ada")

    assert not Tenant.objects.exists()


def test_register__after_somebody_else_did(strangers: MakeFleet) -> None:
    strangers("tool_acme", "tool_globex")
    findings = adoption.find(Search(database="shop", schemas=("tool_*",), id_pattern="tool_{tenant_id}"))
    adoption.register([each for each in findings if each.home == "tool_globex"], by="ada")

    with pytest.raises(TenantExists):
        adoption.register(findings, by="bob")

    assert list(Tenant.objects.values_list("tenant_id", "held_by")) == [("globex", "ada")]


def test_find__in_several_parts(strangers: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    strangers("tool_acme", "tool_globex", "tool_initech", target=NEWEST)
    monkeypatch.setattr(adoption, "AT_ONCE", 2)

    found = adoption.find(Search(database="shop", schemas=("tool_*",), id_pattern="tool_{tenant_id}"))

    assert [each.standing.status for each in found if each.standing] == ["up_to_date"] * 3


def test_find__asks_no_more_for_many_than_for_few(strangers: MakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    strangers(*(f"tool_t{n}" for n in range(12)))
    statements: list[str] = []
    read = fleet._read_batch
    monkeypatch.setattr(
        fleet,
        "_read_batch",
        lambda cursor, names, sets: statements.append(",".join(names)) or read(cursor, names, sets),
    )
    asked = {}
    for pattern in ("tool_t1", "tool_t*"):
        with CaptureQueriesContext(
            connection,
        ) as captured:
            found = adoption.find(Search(database="shop", schemas=(pattern,), id_pattern="tool_{tenant_id}"))
        asked[len(found)] = len(captured)

    assert asked[1] == asked[12]
    assert len(statements) == 2
