"""A tenant that is copied from a template is indistinguishable from one that stock Django migrated."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from django.conf import settings as configured
from django.db import connection
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate
from django.utils import timezone
from psycopg2 import sql

from migrations_api.executor import Options
from migrations_api.models import MigrationRun, RequestedVia, RunStep, TenantTemplate
from migrations_api.orchestrator import sources, templates
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.fleet import standings
from migrations_api.orchestrator.recorder import Recorder
from migrations_api.orchestrator.requests import Request, request_run
from migrations_api.plan import Target, make_plan
from migrations_api.plan.determinism import unnamed_code
from migrations_api.states import RunState, StepState
from tenants.models import Isolation, Tenant
from tests import catalog, stock
from tests.command_line import manage
from tests.http_api import carry_out, refused
from tests.test_invariant import everything_else, snapshot
from tests.test_tenant_roles import on_shop, role_of, roles, template

MakeTenant = Callable[..., Tenant]
KINDS = [Isolation.SCHEMA, Isolation.DATABASE]
SHOP = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "examples.shop.users",
    "examples.shop.products",
    "examples.shop.orders",
    "examples.shop.plans",
]
CONTRIB = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.admin",
    "django.contrib.sessions",
    "django.contrib.sites",
]
SMALL = ["examples.shop.users", "examples.shop.products", "examples.shop.orders"]
NAMED = {"template_data": ["users", "products", "orders", "plans.0002_seed_plans"]}


@pytest.fixture(autouse=True)
def small(settings: Any) -> Iterator[None]:
    settings.TENANT_APPS = SMALL
    settings.TENANT_MIGRATIONS = {**configured.TENANT_MIGRATIONS, **NAMED}
    yield
    sources._load.cache_clear()


def request_copy(tenant: Tenant) -> MigrationRun:
    return request_run(tenant, Request(options=Options(template=True), via=RequestedVia.API))


def copy(tenant: Tenant) -> MigrationRun:
    return carry_out(request_copy(tenant).pk)


def migrate(tenant: Tenant) -> MigrationRun:
    return carry_out(request_run(tenant, Request(via=RequestedVia.API)).pk)


def reason(run: MigrationRun) -> str:
    """Why the run, which has succeeded, did not copy; empty if it did."""
    assert run.state == RunState.SUCCEEDED, run.message
    return "".join(finding["detail"] for finding in run.findings if finding["code"] == "not_copied")


def left(tenant: Tenant) -> dict[str, Any]:
    return snapshot(catalog.tenant_dsn(tenant), tenant.schema_name)


def shop_server() -> dict[str, Any]:
    return catalog.dsn(configured.TENANT_DATABASES["shop"])


def homes_of_templates() -> set[str]:
    return {name for name in catalog.schemas(shop_server()) | catalog.databases() if "template-" in name}


@contextmanager
def told_by(receiver: Callable[..., None]) -> Iterator[None]:
    """With a receiver of post_migrate that is not Django's own."""
    post_migrate.connect(receiver)
    try:
        yield
    finally:
        post_migrate.disconnect(receiver)


@functools.cache
def stock_snapshot(*apps: str) -> dict[str, Any]:
    name = f"twin{stock_snapshot.cache_info().misses}_templates_{configured.SUFFIX}"
    database = {**configured.TENANT_DATABASES["shop"], "NAME": name}
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name))
    catalog.query(catalog.dsn(configured.DATABASES["default"]), statement)
    stock.migrate(database, "public", list(apps), "--skip-checks")
    return snapshot(catalog.dsn(database), "public")


@pytest.mark.parametrize("isolation", KINDS)
@pytest.mark.parametrize("apps", [SHOP, CONTRIB], ids=["shop", "contrib"])
def test_copy__leaves_what_stock_django_leaves(
    isolation: str, apps: list[str], make_tenant: MakeTenant, settings: Any
) -> None:
    settings.INSTALLED_APPS = list(dict.fromkeys([*apps, *settings.INSTALLED_APPS]))
    settings.TENANT_APPS = apps
    expected = stock_snapshot(*apps)
    first, second = make_tenant("acme", isolation), make_tenant("globex", isolation)
    outside = everything_else(first)

    assert reason(copy(first)) == ""
    assert reason(copy(second)) == ""

    assert left(first) == expected
    assert left(second) == expected
    assert TenantTemplate.objects.get().content is not None
    assert homes_of_templates() == set()
    if isolation == Isolation.DATABASE:
        assert everything_else(first) == outside
    assert reason(migrate(first)) == ""
    assert left(first) == expected


def test_copy__with_a_receiver_beside_djangos_own(make_tenant: MakeTenant, settings: Any) -> None:
    """Content types and permissions are then made by Django's own code, model by model."""
    settings.TENANT_APPS = SHOP
    first, second = make_tenant("acme"), make_tenant("globex")
    assert reason(copy(first)) == ""

    with told_by(lambda **_: None):
        assert reason(copy(second)) == ""

    assert left(second) == left(first)
    assert left(second)["rows"]["auth_permission"]


def test_copy__has_a_session_of_its_own_where_others_are_told(make_tenant: MakeTenant) -> None:
    opened: list[str] = []

    def note(connection: Any, **_: Any) -> None:
        opened.append(connection.settings_dict["OPTIONS"].get("application_name", ""))

    def of_runs() -> int:
        return len([name for name in opened if name.startswith("tenant-migrations run=")])

    tenants = [make_tenant(name) for name in ("acme", "globex", "initech")]
    copy(tenants[0])
    connection_created.connect(note)
    try:
        copy(tenants[1])
        passed_on = of_runs()
        with told_by(lambda **_: None):
            copy(tenants[2])
    finally:
        connection_created.disconnect(note)
    assert (passed_on, of_runs()) == (0, 1)


def test_copy__leaves_the_records_of_a_migrated_tenant(make_tenant: MakeTenant) -> None:
    began = timezone.now()
    tenant = make_tenant()
    migrated = migrate(make_tenant("globex"))

    run = copy(tenant)

    assert [(str(step), step.state) for step in run.steps.all()] == [
        (str(step), StepState.DONE) for step in migrated.steps.all()
    ]
    for name in ("applied_before_id", "applied_after_id", "plan_digest", "state", "attempt"):
        assert getattr(run, name) == getattr(migrated, name)
    assert standings([tenant])[0].status == "up_to_date"
    table = sql.Identifier(tenant.schema_name, "django_migrations")
    [(oldest,)] = catalog.query(catalog.tenant_dsn(tenant), sql.SQL("SELECT min(applied) FROM {}").format(table))
    assert began < oldest


def test_copy__tells_receivers_once_for_each_tenant(make_tenant: MakeTenant) -> None:
    told: list[tuple[str, str, int]] = []

    def receive(app_config: Any, plan: Any, apps: Any, **_: Any) -> None:
        assert apps.get_model("orders", "Order").objects.count() == 0
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_schema()")
            told.append((app_config.label, cursor.fetchone()[0], len(plan)))

    first, second = make_tenant("acme"), make_tenant("globex")
    copy(first)
    with told_by(receive):
        copy(second)

    steps = RunStep.objects.filter(run__tenant=second).count()
    assert told == [(label, second.schema_name, steps) for label in ("users", "products", "orders")]


def test_copy__whose_receiver_fails_has_failed_on_a_boundary(make_tenant: MakeTenant) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("no")

    tenant = make_tenant()
    post_migrate.connect(refuse)
    try:
        run = copy(tenant)
    finally:
        post_migrate.disconnect(refuse)

    assert (run.state, run.error_class) == (RunState.FAILED, "ValueError")
    assert standings([tenant])[0].status == "up_to_date"
    assert set(run.steps.values_list("state", flat=True)) == {StepState.DONE}


LONG = "x" * 60
CORPUS = f"""
    CREATE TYPE mood AS ENUM ('sad', 'it''s', 'Ok');
    CREATE SEQUENCE free START 100 INCREMENT -5 MINVALUE -1000 MAXVALUE 1000 CACHE 3 CYCLE;
    SELECT nextval('free'), nextval('free');
    CREATE SEQUENCE never_called START 7;
    CREATE SEQUENCE moved; ALTER SEQUENCE moved RESTART WITH 70;
    CREATE TABLE first_name (
        number bigint GENERATED ALWAYS AS IDENTITY (START 5 INCREMENT 3 CACHE 2) PRIMARY KEY,
        small smallint GENERATED BY DEFAULT AS IDENTITY,
        counted serial, gone text, counted_too bigserial NOT NULL,
        doubled integer GENERATED ALWAYS AS (counted * 2) STORED,
        since timestamptz DEFAULT now(), later timestamptz DEFAULT now() + '1 day'::interval,
        key uuid DEFAULT gen_random_uuid(), free bigint DEFAULT nextval('free'),
        words text COLLATE "C" DEFAULT E'it''s 100%% "quoted" \\\\ back;\\n', mood mood DEFAULT 'Ok',
        moods mood[] DEFAULT '{{sad}}', price numeric(10, 2) CHECK (price > 0), status varchar(20) NOT NULL,
        data jsonb DEFAULT '{{}}', span int4range, codes integer[][] , length interval DAY TO SECOND(3),
        raw bytea DEFAULT '\\x00ff', fixed char(3), share double precision DEFAULT 0.1, bits bit(3), net inet,
        CONSTRAINT status_known CHECK (status IN ('new', 'it''s ''odd''', 'x::character varying])::text[]')),
        CONSTRAINT counted_unique UNIQUE (counted) DEFERRABLE INITIALLY DEFERRED,
        CONSTRAINT apart EXCLUDE USING gist (span WITH &&) WHERE (status IN ('new', 'old')),
        CONSTRAINT key_unique UNIQUE (key) INCLUDE (status)
    ) WITH (fillfactor = 70, autovacuum_enabled = false);
    ALTER TABLE first_name DROP COLUMN gone;
    ALTER TABLE first_name RENAME TO kinds;
    ALTER TABLE kinds RENAME COLUMN small TO tiny;
    ALTER TABLE kinds RENAME CONSTRAINT key_unique TO "Key unique";
    INSERT INTO kinds (status, words, price, raw, codes, span)
        VALUES ('new', E'tab\\t newline\\n \\\\. back\\\\slash', NULL, '\\x0001', '{{{{1,2}},{{3,NULL}}}}', '[1,5)'),
               ('new', '', 1.50, NULL, '{{}}', '[7,9)');
    CREATE TABLE "Odd ""name"", 100%% {LONG[:30]}" (
        "Upper ""quoted"" %%" integer, "{LONG}" integer, "select" text, two integer, PRIMARY KEY ("select", two),
        CONSTRAINT "Odd check %%" CHECK ("Upper ""quoted"" %%" <> 5)
    );
    INSERT INTO "Odd ""name"", 100%% {LONG[:30]}" VALUES (1, 2, '\\N', 3);
    CREATE TABLE one (id integer PRIMARY KEY, other integer NOT NULL, self integer REFERENCES one ON DELETE SET NULL);
    CREATE TABLE other (id integer PRIMARY KEY, one integer NOT NULL REFERENCES one DEFERRABLE INITIALLY DEFERRED);
    ALTER TABLE one ADD CONSTRAINT to_other FOREIGN KEY (other) REFERENCES other DEFERRABLE INITIALLY DEFERRED;
    INSERT INTO one VALUES (1, 1, 1); INSERT INTO other VALUES (1, 1); SET CONSTRAINTS ALL IMMEDIATE;
    ALTER TABLE one ADD CONSTRAINT not_yet CHECK (id > 1) NOT VALID;
    ALTER TABLE other ADD CONSTRAINT key_not_yet FOREIGN KEY (one) REFERENCES kinds ON UPDATE CASCADE NOT VALID;
    CREATE TABLE early (id integer PRIMARY KEY, late integer, early integer REFERENCES early, code integer);
    CREATE TABLE late (id integer PRIMARY KEY, early integer REFERENCES early ON UPDATE SET DEFAULT DEFERRABLE);
    ALTER TABLE early ADD FOREIGN KEY (late) REFERENCES late DEFERRABLE INITIALLY DEFERRED;
    CREATE UNIQUE INDEX early_code ON early (code);
    CREATE TABLE by_code (code integer REFERENCES early (code) MATCH FULL, late integer REFERENCES late,
        kind bigint REFERENCES kinds DEFERRABLE INITIALLY DEFERRED);
    CREATE UNLOGGED TABLE fleeting (id integer UNIQUE, nothing integer);
    CREATE TABLE to_user (id bigint REFERENCES users_user, mood mood NOT NULL);
    CREATE INDEX by_lower ON kinds (lower(words), (data ->> 'a') DESC NULLS LAST) WHERE status = 'new';
    CREATE INDEX by_status ON kinds (price) WHERE status IN ('new', 'old') AND (price > 1 AND (price < 9 OR price = 5));
    CREATE INDEX by_data ON kinds USING gin (data jsonb_path_ops) WITH (fastupdate = off);
    CREATE INDEX by_like ON kinds (words COLLATE "POSIX" text_pattern_ops);
    CREATE UNIQUE INDEX "By ""key"" %%" ON kinds (key, number) INCLUDE (status) WHERE moods IS NOT NULL;
    CREATE INDEX by_since ON kinds USING brin (since) WITH (pages_per_range = 16);
    CREATE INDEX by_hash ON kinds USING hash (words);
    CREATE INDEX by_odd ON "Odd ""name"", 100%% {LONG[:30]}" ("Upper ""quoted"" %%");
    CREATE VIEW seen WITH (security_barrier) AS SELECT k.number AS "No", count(*) FROM kinds k JOIN users_user u
        ON u.id = k.number WHERE k.status IN ('new', 'old') GROUP BY k.number;
    CREATE VIEW seen_again AS SELECT "No", 'a''b%%' AS text FROM seen;
    COMMENT ON TABLE kinds IS 'it''s "all" of 100%%'; COMMENT ON COLUMN kinds.status IS 'status';
    COMMENT ON CONSTRAINT status_known ON kinds IS 'known'; COMMENT ON INDEX by_like IS 'like';
    COMMENT ON SEQUENCE free IS 'free'; COMMENT ON VIEW seen IS 'seen'; COMMENT ON TYPE mood IS 'mood';
    COMMENT ON COLUMN seen."No" IS 'number';
    GRANT SELECT, INSERT ON kinds TO PUBLIC; GRANT UPDATE (status) ON kinds TO PUBLIC; GRANT SELECT ON seen TO PUBLIC;
    GRANT USAGE ON SEQUENCE free TO PUBLIC
"""


@pytest.mark.parametrize("isolation", KINDS)
def test_copy__of_every_kind_of_column_and_index(
    isolation: str, make_tenant: MakeTenant, broken: Any, settings: Any
) -> None:
    broken(orders="orders_elsewhere")
    settings.ELSEWHERE = CORPUS
    migrated, copied = make_tenant("acme", isolation), make_tenant("globex", isolation)
    migrate(migrated)

    assert reason(copy(copied)) == ""

    one, other = left(migrated), left(copied)
    # Values that the server draws are the template's.
    for each in (one, other):
        each["rows"]["kinds"] = [row[:5] + row[6:] for row in each["rows"]["kinds"]]
    assert other == one
    assert "CREATE INDEX by_status" in "\n".join(one["dump"])


UNKNOWN = {
    "function": ("CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'", "object function one"),
    "trigger": (
        "CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER act BEFORE INSERT ON at_home FOR EACH ROW EXECUTE FUNCTION act()",
        "trigger at_home.act",
    ),
    "rule": ("CREATE RULE nothing AS ON DELETE TO at_home DO INSTEAD NOTHING", "rule at_home.nothing"),
    "policy": (
        "ALTER TABLE at_home ENABLE ROW LEVEL SECURITY; CREATE POLICY all_of ON at_home",
        "policy at_home.all_of",
    ),
    "partition": (
        "CREATE TABLE parts (id int) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parts DEFAULT",
        "relation parts",
    ),
    "inheritance": ("CREATE TABLE heir () INHERITS (at_home)", "inheritance heir of at_home"),
    "domain": ("CREATE DOMAIN positive AS int CHECK (VALUE > 0)", "object type positive"),
    "composite": ("CREATE TYPE pair AS (a int, b int)", "object type pair"),
    "materialized view": ("CREATE MATERIALIZED VIEW kept AS SELECT 1 AS one", "relation kept"),
    "statistics": ("CREATE TABLE t (a int, b int); CREATE STATISTICS s ON a, b FROM t", "object statistics object s"),
    "storage": ("CREATE TABLE t (a text); ALTER TABLE t ALTER a SET STORAGE EXTERNAL", "column t.a"),
    "statistics target": ("CREATE TABLE t (a text); ALTER TABLE t ALTER a SET STATISTICS 500", "column t.a"),
    "replica identity": ("ALTER TABLE at_home REPLICA IDENTITY FULL", "relation at_home"),
    "toast": ("CREATE TABLE t (a text) WITH (toast.autovacuum_enabled = false)", "relation t"),
    "clustered": ("CREATE TABLE t (a int PRIMARY KEY); ALTER TABLE t CLUSTER ON t_pkey", "index t.t_pkey"),
    "owner's rights": ("REVOKE DELETE ON at_home FROM CURRENT_USER", "relation at_home"),
    "view's default": ("CREATE VIEW v AS SELECT 1 AS a; ALTER VIEW v ALTER a SET DEFAULT 5", "column v.a"),
    "default rights": (
        "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO PUBLIC",
        "object default acl",
    ),
}


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_unknown__is_migrated_with_a_reason(
    unknown: str, make_tenant: MakeTenant, broken: Any, settings: Any, caplog: Any
) -> None:
    statement, named = UNKNOWN[unknown]
    if "{schema}" in statement:
        statement = (
            "DO $$ BEGIN EXECUTE format('" + statement.replace("{schema}", "%%I") + "', current_schema()); END $$"
        )
    broken(orders="orders_elsewhere")
    settings.ELSEWHERE = statement
    migrated, asked = make_tenant("acme"), make_tenant("globex")
    migrate(migrated)

    run = copy(asked)

    assert named in reason(run)
    assert named in TenantTemplate.objects.get().reason
    assert "globex is migrated, not copied" in caplog.text
    assert left(asked) == left(migrated)
    assert homes_of_templates() == set()
    assert named in reason(copy(make_tenant("initech")))


def test_code__that_is_not_named_is_not_copied(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {**configured.TENANT_MIGRATIONS, "template_data": ["users", "products"]}

    run = copy(make_tenant())

    assert "orders.0002_ledger_entry" in reason(run)
    assert "products." not in reason(run)
    assert not TenantTemplate.objects.exists()


def test_code__is_what_may_differ_from_tenant_to_tenant(broken: Any, settings: Any) -> None:
    broken(orders="orders_volatile")
    source = sources.source_for(Isolation.SCHEMA)
    plan = make_plan(source, frozenset(), Target())

    found = unnamed_code(plan, source, ["users", "products"])

    # A plain default is the same everywhere.
    assert found == ["orders.0002_seed", "orders.0004_computed", "orders.0005_by_the_server"]
    assert unnamed_code(plan, source, ["users", "products", "orders"]) == []


def test_template__is_made_once_for_each_version_of_the_code(make_tenant: MakeTenant, broken: Any) -> None:
    copy(make_tenant("acme"))
    copy(make_tenant("globex"))
    [first] = TenantTemplate.objects.all()

    broken(orders="orders_faults")
    run = copy(make_tenant("initech"))

    assert reason(run) == ""
    assert "orders.0007_note" in [str(step) for step in run.steps.all()]
    assert TenantTemplate.objects.filter(pk=first.pk).exists()
    assert TenantTemplate.objects.count() == 2


def test_template__is_no_tenant(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    copy(tenant)

    assert list(Tenant.objects.all()) == [tenant]
    assert "template-" not in manage("showtenants").out
    assert homes_of_templates() == set()


def test_template__that_is_just_being_made_is_not_waited_for(make_tenant: MakeTenant) -> None:
    copy(make_tenant("acme"))
    TenantTemplate.objects.update(content=None, lease_expires_at=timezone.now() + templates.MADE_WITHIN)

    assert "just being made" in reason(copy(make_tenant("globex")))


def test_template__whose_maker_is_gone_is_made_again(make_tenant: MakeTenant) -> None:
    copy(make_tenant("acme"))
    TenantTemplate.objects.update(content=None, lease_expires_at=timezone.now())
    home = Tenant.at_home(tenant_id=TenantTemplate.objects.get().home, isolation=Isolation.SCHEMA)
    on_shop("CREATE SCHEMA {0}; CREATE TABLE {0}.half ()", home.schema_name)

    assert reason(copy(make_tenant("globex"))) == ""

    assert homes_of_templates() == set()


def test_template__drops_nothing_that_was_there(make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates.secrets, "token_hex", lambda size: "taken")
    on_shop('CREATE SCHEMA "public_template-taken"; CREATE TABLE "public_template-taken".kept ()')
    try:
        assert "exists already" in reason(copy(make_tenant()))
        assert catalog.tables(shop_server(), "public_template-taken") == {"kept"}
        assert not TenantTemplate.objects.exists()
    finally:
        on_shop('DROP SCHEMA "public_template-taken" CASCADE')


def test_template__that_fails_to_be_made_leaves_the_failure_to_the_run(
    make_tenant: MakeTenant, broken: Any, settings: Any
) -> None:
    broken(orders="orders_elsewhere")
    settings.ELSEWHERE = "SELECT 1 / 0"

    run = copy(make_tenant())

    assert (run.state, run.failed_step) == (RunState.FAILED, "orders.0003_elsewhere")
    assert homes_of_templates() == set()
    assert not TenantTemplate.objects.exists()


def test_copy__that_is_not_exact_is_undone_and_the_tenant_migrated(make_tenant: MakeTenant) -> None:
    first, second = make_tenant("acme"), make_tenant("globex")
    copy(first)
    stored = TenantTemplate.objects.get()
    stored.content["rest"].append("CREATE TABLE surplus ()")
    stored.save()

    assert "catalog is not what" in reason(copy(second))

    assert left(second) == left(first)


def test_copy__that_the_server_refuses_is_undone_and_the_tenant_migrated(make_tenant: MakeTenant) -> None:
    first, second = make_tenant("acme"), make_tenant("globex")
    copy(first)
    stored = TenantTemplate.objects.get()
    stored.content["rest"].append("SELECT 1 / 0")
    stored.save()

    assert "The server refused the copy" in reason(copy(second))

    assert left(second) == left(first)


def test_copy__of_a_tenant_that_has_something_is_none(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    on_shop("CREATE TABLE {0}.mine ()", tenant.schema_name)

    assert reason(copy(tenant)) == "Something is in it already."


def test_copy__of_a_tenant_that_was_migrated_is_an_ordinary_run(make_tenant: MakeTenant) -> None:
    tenant = make_tenant()
    migrate(tenant)

    run = copy(tenant)

    assert (reason(run), run.steps.count()) == ("", 0)


def test_copy__belongs_to_the_tenants_role(make_tenant: MakeTenant, settings: Any) -> None:
    settings.TENANT_ROLE_TEMPLATE = template()
    try:
        tenants = [make_tenant("acme"), make_tenant("globex")]
        assert [reason(copy(tenant)) for tenant in tenants] == ["", ""]
        for tenant in tenants:
            owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = %s"
            assert catalog.query(shop_server(), owners, [tenant.schema_name]) == [(role_of(tenant.tenant_id),)]
        assert roles() == {role_of("acme"), role_of("globex")}
    finally:
        for name in roles():
            on_shop("DROP OWNED BY {0} CASCADE; DROP ROLE {0}", name)


class Killed(BaseException):
    """As a worker that is there no more."""


def killed(run: MigrationRun) -> None:
    with pytest.raises(Killed):
        carry_out(run.pk)
    MigrationRun.objects.filter(pk=run.pk).update(lease_expires_at=timezone.now())
    settle_abandoned([run.tenant_id])
    run.refresh_from_db()
    assert run.state == RunState.PENDING


@pytest.mark.parametrize("tells_others", [False, True])
def test_worker__killed_after_the_copy(
    tells_others: bool, make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = request_copy(make_tenant())
    with monkeypatch.context() as patched, told_by(kill) if tells_others else nullcontext():
        patched.setattr(Recorder, "copied", kill)
        killed(run)

    run = carry_out(run.pk)

    steps = run.steps.values_list("state", flat=True)
    assert (run.state, len(steps), set(steps)) == (RunState.SUCCEEDED, 15, {StepState.DONE})


def test_worker__killed_before_the_commit(make_tenant: MakeTenant, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = make_tenant()
    run = request_copy(tenant)
    with monkeypatch.context() as patched:
        record = Recorder.planned
        patched.setattr(Recorder, "planned", lambda self, plan: [record(self, plan), kill()])
        killed(run)
    assert catalog.tables(catalog.tenant_dsn(tenant), tenant.schema_name) == set()

    run = carry_out(run.pk)

    assert reason(run) == ""
    assert set(run.steps.values_list("state", flat=True)) == {StepState.DONE}


def kill(*_: Any, **__: Any) -> None:
    raise Killed


def test_options__a_template_is_of_everything(make_tenant: MakeTenant) -> None:
    make_tenant()

    result = manage("migratetenant", "--tenant-id=acme", "orders", "--template")

    assert (result.code, "A template is of all migrations" in result.err) == (2, True)


def test_createtenant__with_a_template(plane: None, make_tenant: MakeTenant) -> None:
    copy(make_tenant("first"))
    given = ["--isolation=schema", "--database=shop", "--no-input", "--template"]
    try:
        result = manage("createtenant", "--tenant-id=acme", *given)
        assert (result.code, result.err) == (0, "")
        assert "Migrations completed successfully for tenant 'acme'." in result.out
        run = MigrationRun.objects.get(tenant_id="acme")
        assert (reason(run), run.options) == ("", {"template": True})
    finally:
        on_shop("DROP SCHEMA IF EXISTS {0} CASCADE", "public_acme")


def test_api__a_new_tenant_with_a_template_gets_a_run(plane: None, admin: Any) -> None:
    body = {"tenant_id": "acme", "isolation": "schema", "database": "shop", "template": True}
    try:
        response = admin.post("/tenants", body)
        assert response.status_code == 201, response.content
        run = MigrationRun.objects.get(tenant_id="acme")
        assert (run.state, run.requested_via, run.options) == (RunState.PENDING, "api", {"template": True})
        assert reason(carry_out(run.pk)) == ""
        assert admin.get("/tenants/acme").json()["status"] == "up_to_date"
    finally:
        on_shop("DROP SCHEMA IF EXISTS {0} CASCADE", "public_acme")


def test_api__a_tenant_that_is_only_registered_has_no_template(plane: None, admin: Any) -> None:
    body = {"tenant_id": "acme", "isolation": "schema", "database": "shop", "template": True, "provision": False}

    refused(admin.post("/tenants", body), 422, "invalid_options")

    assert not Tenant.objects.exists()


def test_api__migrate_takes_a_template(operator: Any, make_tenant: MakeTenant) -> None:
    make_tenant()

    response = operator.post("/tenants/acme/migrate", {"template": True})

    assert response.status_code == 202, response.content
    assert response.json()["options"]["template"] is True
