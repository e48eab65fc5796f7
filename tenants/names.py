"""Which tenant ids and names of schemas, databases and roles are allowed, and how the names are computed."""

import re
from string import Formatter

from tenants.exceptions import InvalidName

MAX_NAME = 200  # characters of a tenant's name
MAX_LABEL = 255  # and of a label's value
LABEL_KEY = re.compile("[^=]{1,63}")
MAX_REASON = 300  # characters of why a tenant is held or skipped, or was repaired
MAX_IDENTIFIER_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1; what is longer is cut in silence.

# A path segment of the API stands beside /tenants/{tenant_id}.
RESERVED_TENANT_IDS = frozenset({"plan", "migrate-all", "reset-all", "refresh-all"})
RESERVED_SCHEMAS = frozenset({"public", "information_schema"})
RESERVED_DATABASES = frozenset({"postgres", "template0", "template1"})
# What GRANT or SET ROLE read as something else than a role of that name, and the usual superuser.
RESERVED_ROLES = frozenset({"none", "public", "current_role", "current_user", "session_user", "user", "postgres"})

DNS_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1035, section 2.3.1, in lower case


def validate_tenant_id(value: str) -> None:
    """Raise InvalidName unless `value` is a lower-case DNS label that is not reserved."""
    if not DNS_LABEL.fullmatch(value):
        raise InvalidName(
            f"{_shortened(value)!r} is not a tenant id: use 1 to 63 lower-case letters, digits and hyphens, "
            "beginning with a letter and not ending with a hyphen (a DNS label, RFC 1035)."
        )
    if value in RESERVED_TENANT_IDS:
        reserved = ", ".join(sorted(RESERVED_TENANT_IDS))
        raise InvalidName(f"'{value}' is reserved; these tenant ids are: {reserved}.")


def validate_name(value: str) -> None:
    """Raise InvalidName unless `value` can stand on one line of a terminal and in its column."""
    if not value.isprintable():
        raise InvalidName(f"The name {_shortened(value)!r} has a character that cannot be printed.")
    if len(value) > MAX_NAME:
        raise InvalidName(f"The name '{_shortened(value)}' has {len(value)} characters; {MAX_NAME} are allowed.")


def _shortened(value: str) -> str:
    return value if len(value) <= MAX_IDENTIFIER_BYTES else value[:MAX_IDENTIFIER_BYTES] + "…"


def schema_name(template: str, tenant_id: str) -> str:
    """The schema of a tenant; raises InvalidName for a name that PostgreSQL would refuse, cut or reserve."""
    return _checked("schema", fill_template(template, tenant_id), RESERVED_SCHEMAS)


def database_name(template: str, tenant_id: str) -> str:
    return _checked("database", fill_template(template, tenant_id), RESERVED_DATABASES)


def role_name(template: str, tenant_id: str) -> str:
    return _checked("role", fill_template(template, tenant_id), RESERVED_ROLES)


def validate_schema_name(name: str) -> None:
    """Raise InvalidName for a schema that no tenant can have, whoever made it."""
    _checked("schema", name, RESERVED_SCHEMAS)


def validate_database_name(name: str) -> None:
    _checked("database", name, RESERVED_DATABASES)


def tenant_id_in(template: str, name: str) -> str | None:
    """What stands for `{tenant_id}` in a name that the template gives; None for one that it cannot give."""
    fill_template(template, "acme")
    pattern, seen = "", False
    for literal, field, _, _ in Formatter().parse(template):
        pattern += re.escape(literal)
        if field is not None:
            pattern += "(?P=tenant_id)" if seen else "(?P<tenant_id>.+)"
            seen = True
    found = re.fullmatch(pattern, name, re.DOTALL)
    return found["tenant_id"] if found else None


def fitted_tenant_id(text: str) -> str:
    """In lower case, with a hyphen in place of whatever else a tenant id may not hold; not always a tenant id."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def fill_template(template: str, tenant_id: str) -> str:
    """Put `tenant_id` into `template`, in which `{tenant_id}` must stand and is the only field allowed."""
    try:
        fields = [
            (name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None
        ]
    except ValueError as error:
        raise InvalidName(f"{template!r} is not a template: {error}.") from error
    if not fields or any(field != ("tenant_id", "", None) for field in fields):
        raise InvalidName(f"{template!r} is not a template: it must hold {{tenant_id}} and no other field.")
    return template.format(tenant_id=tenant_id)


def _checked(kind: str, name: str, reserved: frozenset[str]) -> str:
    if not name.isprintable():
        raise InvalidName(f"The {kind} name {name!r} has a character that cannot be printed.")
    size = len(name.encode())
    if size > MAX_IDENTIFIER_BYTES:
        raise InvalidName(f"The {kind} name '{name}' has {size} bytes; PostgreSQL allows {MAX_IDENTIFIER_BYTES}.")
    if name.casefold().startswith("pg_"):
        raise InvalidName(f"The {kind} name '{name}' begins with 'pg_', which PostgreSQL reserves.")
    if name.casefold() in reserved:
        raise InvalidName(f"The {kind} name '{name}' is reserved.")
    # Quoting would carry these, but libpq's startup options, search_path and shell scripts each read them differently.
    if forbidden := sorted(set(name) & set("\"'\\,;$%")):
        raise InvalidName(f"The {kind} name '{name}' has characters that are not allowed: {' '.join(forbidden)}")
    return name
