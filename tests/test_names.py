import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenants import names
from tenants.exceptions import InvalidName

DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
COMPUTE = [names.schema_name, names.database_name]


@pytest.mark.parametrize("tenant_id", ["a", "acme", "a-1", "x--y", "public", "a" * 63, "plans", "migrate"])
def test_tenant_id__is_a_dns_label(tenant_id: str) -> None:
    names.validate_tenant_id(tenant_id)


@pytest.mark.parametrize(
    "tenant_id",
    [
        *["", "-a", "a-", "1a", "Acme", "a_b", "a.b", "a b", "a\n", "\na", "a\0", "ä", "а", "a" * 64, "..", "a/b"],
        *["ﬁ", "a１", 'a"', "a'", "a\u200b", "\ud800"],
    ],
)
def test_tenant_id__that_is_no_dns_label(tenant_id: str) -> None:
    with pytest.raises(InvalidName, match="is not a tenant id") as caught:
        names.validate_tenant_id(tenant_id)
    assert "\n" not in caught.value.message
    assert "\0" not in caught.value.message


@pytest.mark.parametrize("tenant_id", ["plan", "migrate-all"])
def test_tenant_id__that_is_a_path_of_the_api(tenant_id: str) -> None:
    with pytest.raises(
        InvalidName,
        match=f"'{tenant_id}' is reserved; these tenant ids are: migrate-all, plan, refresh-all, reset-all.",
    ):
        names.validate_tenant_id(tenant_id)


@given(st.text() | st.from_regex(DNS_LABEL) | st.from_regex(DNS_LABEL, fullmatch=True))
@example("migrate-all")
def test_tenant_id__any_text_is_refused_or_a_dns_label(text: str) -> None:
    try:
        names.validate_tenant_id(text)
    except InvalidName:
        assert not DNS_LABEL.fullmatch(text) or text in names.RESERVED_TENANT_IDS
    else:
        assert DNS_LABEL.fullmatch(text)
        assert len(text.encode()) <= 63


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{tenant_id}", "acme"),
        ("public_{tenant_id}", "public_acme"),
        ("{tenant_id}_{tenant_id}", "acme_acme"),
        ("T {tenant_id}-é", "T acme-é"),
        ("{{{tenant_id}}}", "{acme}"),
    ],
)
def test_template__is_filled(template: str, name: str) -> None:
    assert names.schema_name(template, "acme") == name
    assert names.database_name(template, "acme") == name


@pytest.mark.parametrize(
    "template",
    [
        *["", "acme", "{{tenant_id}}", "{}", "{0}", "{name}", "{tenant_id}{name}", "{tenant_id.__class__}"],
        *["{tenant_id[0]}", "{tenant_id!r}", "{tenant_id:>9}", "{tenant_id:{name}}", "{tenant_id", "tenant_id}"],
    ],
)
def test_template__that_is_none(template: str) -> None:
    with pytest.raises(InvalidName, match="is not a template"):
        names.fill_template(template, "acme")


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize(("prefix", "letters"), [("", 63), ("é", 61), ("客_", 59), ("😀", 59)])
def test_name__has_63_bytes_at_most(compute: Callable[[str, str], str], prefix: str, letters: int) -> None:
    assert len(compute(prefix + "{tenant_id}", "a" * letters).encode()) == 63
    with pytest.raises(InvalidName, match="has 64 bytes; PostgreSQL allows 63"):
        compute(prefix + "{tenant_id}", "a" * (letters + 1))


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("prefix", ["pg_", "PG_", "Pg_", "pG_toast_"])
def test_name__with_the_prefix_of_postgresql(compute: Callable[[str, str], str], prefix: str) -> None:
    with pytest.raises(InvalidName, match="begins with 'pg_', which PostgreSQL reserves"):
        compute(prefix + "{tenant_id}", "acme")


@pytest.mark.parametrize("tenant_id", ["pg", "pg-acme", "pgacme"])
def test_name__that_only_looks_like_the_prefix(tenant_id: str) -> None:
    assert names.schema_name("{tenant_id}", tenant_id) == tenant_id


@pytest.mark.parametrize(
    ("compute", "template", "tenant_id"),
    [
        (names.schema_name, "{tenant_id}", "public"),
        (names.schema_name, "PUB{tenant_id}", "lic"),
        (names.schema_name, "information_{tenant_id}", "schema"),
        (names.schema_name, "Information_{tenant_id}", "schema"),
        (names.database_name, "{tenant_id}", "postgres"),
        (names.database_name, "{tenant_id}", "template0"),
        (names.database_name, "POST{tenant_id}", "gres"),
    ],
)
def test_name__that_is_taken_by_postgresql(compute: Callable[[str, str], str], template: str, tenant_id: str) -> None:
    with pytest.raises(InvalidName, match="is reserved"):
        compute(template, tenant_id)


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("character", list("\"'\\,;$%"))
def test_name__with_a_character_that_is_read_in_several_ways(
    compute: Callable[[str, str], str], character: str
) -> None:
    with pytest.raises(InvalidName, match="characters that are not allowed"):
        compute(f"a{character}{{tenant_id}}", "acme")


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("character", ["\0", "\n", "\t", "\x7f", "\u200b", "\u202e", "\ud800", "\u00a0"])
def test_name__with_a_character_that_nobody_sees(compute: Callable[[str, str], str], character: str) -> None:
    with pytest.raises(InvalidName, match="cannot be printed") as caught:
        compute(f"a{character}{{tenant_id}}", "acme")
    assert caught.value.message.isprintable()


@given(st.text(), st.text())
def test_name__of_any_template_is_refused_or_kept_as_it_is_by_postgresql(before: str, after: str) -> None:
    for compute in COMPUTE:
        try:
            name = compute(before + "{tenant_id}" + after, "acme")
        except InvalidName:
            continue
        assert "acme" in name
        assert len(name.encode()) <= 63
        assert not name.lower().startswith("pg_")
        assert not set(name) & set("\0\n\"'\\,")


@pytest.mark.parametrize(
    ("template", "name", "tenant_id"),
    [
        ("public_{tenant_id}", "public_acme", "acme"),
        ("public_{tenant_id}", "acme", None),
        ("public_{tenant_id}", "public_", None),
        ("{tenant_id}_db", "a.b_db", "a.b"),
        ("{tenant_id}", "acme", "acme"),
        ("{tenant_id}_{tenant_id}", "a_b_a_b", "a_b"),
        ("{tenant_id}_{tenant_id}", "a_b", None),
        ("a.{{{tenant_id}}}", "a.{acme}", "acme"),
        ("a.{{{tenant_id}}}", "ab{acme}", None),
    ],
)
def test_tenant_id__is_found_in_a_name(template: str, name: str, tenant_id: str | None) -> None:
    assert names.tenant_id_in(template, name) == tenant_id


@given(st.from_regex(names.DNS_LABEL, fullmatch=True), st.text(), st.text())
def test_tenant_id__is_found_where_a_template_has_put_it(tenant_id: str, before: str, after: str) -> None:
    template = (
        before.replace("{", "{{").replace("}", "}}") + "{tenant_id}" + after.replace("{", "{{").replace("}", "}}")
    )
    assert names.tenant_id_in(template, names.fill_template(template, tenant_id)) == tenant_id


@given(st.text())
def test_fitted_tenant_id__keeps_what_is_one_and_else_only_what_one_may_hold(text: str) -> None:
    fitted = names.fitted_tenant_id(text)
    assert set(fitted) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert fitted == fitted.strip("-")
    assert names.fitted_tenant_id(fitted) == fitted
