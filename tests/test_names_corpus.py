"""Any tenant id and any template: refused with a reason, or just the schema or database of that name is there."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as configured
from django.core.exceptions import ValidationError
from django.test import override_settings
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from tenants.exceptions import InvalidName, ServiceError
from tenants.models import Isolation, Tenant
from tenants.names import DNS_LABEL, RESERVED_TENANT_IDS
from tenants.provisioning import create_tenant, forget_tenant
from tests import catalog
from tests.command_line import manage

Homes = set[tuple[str, str]]
EXAMPLES = 2000 if os.environ.get("SOAK") else 40
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
corpus = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=FIXTURES)

PIECES = [
    *["a", "acme", "Acme", "ACME", "9", "pg_", "PG_", "pg-", "plan", "migrate-all", "public", "postgres", "none"],
    *['"', "'", '""', "\\", "%", "%s", "%(x)s", ".", ",", ";", "--", "/*", "$$", "-", "_", " ", "\t", "\n", "\0", "/"],
    *["é", "ß", "İ", "ﬁ", "客", "😀", "а", "\u200b", "\u202e", "a" * 30, "a" * 63, "a" * 64, "é" * 31, "é" * 32],
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=4).map("".join) | st.text(max_size=70)
IDS = TEXTS | st.from_regex(DNS_LABEL, fullmatch=True)
AFFIXES = st.lists(st.sampled_from([*PIECES, "{", "}", "{name}", "{tenant_id}", "{{", "}}"]), max_size=2).map("".join)
TEMPLATES = st.tuples(AFFIXES, AFFIXES).map("{tenant_id}".join)
KINDS = st.sampled_from([Isolation.SCHEMA, Isolation.SCHEMA, Isolation.SCHEMA, Isolation.DATABASE])
WRONG = [
    *["", " ", "acme ", " acme", "Acme", "pg_acme", "1acme", "-acme", "acme-", "ac.me", "ac,me", "ac_me", "acme\n"],
    *[
        'ac"me',
        "ac'me",
        "ac\\me",
        "ac%sme",
        "%s",
        "acme;",
        "acme\0",
        "ác",
        "客",
        "a" * 64,
        "é" * 32,
        *RESERVED_TENANT_IDS,
    ],
]


def homes() -> Homes:
    """A schema may be called as a database is."""
    schemas = catalog.schemas(catalog.dsn(configured.TENANT_DATABASES["shop"]))
    return {("schema", name) for name in schemas} | {("database", name) for name in catalog.databases()}


@pytest.fixture
def empty(plane: None) -> Iterator[Homes]:
    before = homes()
    yield before
    assert homes() == before


@corpus
@given(IDS, TEMPLATES, KINDS)
@example("acme", "{tenant_id}" + "é" * 29 + "a", Isolation.SCHEMA)  # 63 bytes
@example("acme", "{tenant_id}" + "é" * 30, Isolation.SCHEMA)  # 64 bytes
@example("acme", "T {tenant_id}.-é😀/", Isolation.SCHEMA)
@example("acme", "T {tenant_id}.-é😀/", Isolation.DATABASE)
@example("acme", "{{{tenant_id}}}", Isolation.DATABASE)
@example("pg", "{tenant_id}_", Isolation.SCHEMA)
@example("public", "{tenant_id}", Isolation.SCHEMA)
@example("postgres", "{tenant_id}", Isolation.DATABASE)
@example("postgres", "{tenant_id}", Isolation.SCHEMA)
def test_name__is_refused_or_is_all_that_is_there(empty: Homes, tenant_id: str, template: str, isolation: str) -> None:
    setting = f"TENANT_{isolation.upper()}_TEMPLATE"
    suffix = f"_{configured.SUFFIX}" if isolation == Isolation.DATABASE else ""
    with override_settings(**{setting: template + suffix}):
        try:
            tenant = create_tenant(tenant_id=tenant_id, name="", isolation=isolation, database="shop")
        except ServiceError as error:
            reason = error.message
        else:
            reason = ""
    if reason:
        assert "\0" not in reason
        assert homes() == empty
        assert not Tenant.objects.exists()
        return
    try:
        assert DNS_LABEL.fullmatch(tenant_id)
        name = tenant.database_name or tenant.schema_name
        assert name == template.replace("{tenant_id}", tenant_id).replace("{{", "{").replace("}}", "}") + suffix
        assert homes() - empty == {(isolation, name)}
        assert empty <= homes()
    finally:
        forget_tenant(tenant, drop=True)
    assert homes() == empty


@corpus
@given(IDS.filter(lambda text: not DNS_LABEL.fullmatch(text) or text in RESERVED_TENANT_IDS))
def test_tenant_id__that_is_wrong_is_refused_by_the_api(empty: Homes, tenant_id: str) -> None:
    response = client().post("/tenants", {"tenant_id": tenant_id, "isolation": "schema", "database": "shop"})
    refused(response)


def refused(response: Any) -> None:
    """422 for what is no name; 400 for what is none of a field's values, such as one that is empty or too long."""
    assert response.status_code in {400, 422}, response.content
    assert response.json()["code"] in {"invalid", "invalid_name"}
    assert response.json()["detail"]
    assert not Tenant.objects.exists()


def client() -> APIClient:
    from django.contrib.auth import get_user_model

    api = APIClient()
    user, _ = get_user_model().objects.get_or_create(username="admin", is_superuser=True, is_staff=True)
    api.force_authenticate(user)
    return api


def test_tenant_id__that_is_wrong_is_refused_everywhere(empty: Homes) -> None:
    for tenant_id in WRONG:
        with pytest.raises(InvalidName):
            create_tenant(tenant_id=tenant_id, name="", isolation=Isolation.SCHEMA, database="shop")
        with pytest.raises(ValidationError):
            Tenant(tenant_id=tenant_id, name="x", isolation="schema", schema_name="x").full_clean()
        options = ["--isolation=schema", "--database=shop", "--no-input"]
        result = manage("createtenant", f"--tenant-id={tenant_id}", *options)
        assert (result.code != 0, result.err != "") == (True, True), tenant_id
        refused(client().post("/tenants", {"tenant_id": tenant_id, "isolation": "schema", "database": "shop"}))


@pytest.mark.parametrize("isolation", [Isolation.SCHEMA, Isolation.DATABASE])
def test_names__that_differ_behind_the_63rd_byte_are_not_cut_to_one(
    empty: Homes, settings: Any, isolation: str
) -> None:
    settings.TENANT_SCHEMA_TEMPLATE = settings.TENANT_DATABASE_TEMPLATE = "é" + "a" * 20 + "_{tenant_id}"
    for last in "ab":
        with pytest.raises(InvalidName, match="has 64 bytes; PostgreSQL allows 63"):
            create_tenant(tenant_id="t" * 40 + last, name="", isolation=isolation, database="shop")
    assert homes() == empty


@pytest.mark.parametrize("tenant_id", ["Acme", "ACME", "acmE"])
def test_tenant_id__of_another_case_is_no_second_tenant(empty: Homes, tenant_id: str) -> None:
    tenant = create_tenant(tenant_id="acme", name="", isolation=Isolation.SCHEMA, database="shop")
    try:
        with pytest.raises(InvalidName, match="lower-case"):
            create_tenant(tenant_id=tenant_id, name="", isolation=Isolation.SCHEMA, database="shop")
        assert homes() - empty == {("schema", "public_acme")}
    finally:
        forget_tenant(tenant, drop=True)
