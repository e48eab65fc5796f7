"""Database servers by alias: from URLs to Django's connection settings, and no further.

Imported by the settings module, so nothing here may need configured settings at import time.
"""

import copy
import re
from collections import deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

import dj_database_url
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS

from tenants.exceptions import ServerNotConfigured

DatabaseSettings = dict[str, Any]

ENGINE: Final = "django.db.backends.postgresql"
ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
ESCAPE = re.compile("%[0-9A-F]{2}")
# `options` and `service` could undo the session's own settings; the rest of libpq's list has no use here.
URL_PARAMETERS = frozenset(
    {
        "channel_binding",
        "connect_timeout",
        "gssencmode",
        "host",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslrootcert",
        "tcp_user_timeout",
    }
)


def database_settings(alias: str, url: str) -> DatabaseSettings:
    """Django's connection settings for a `postgresql://user:password@host:port/database?sslmode=…` URL.

    Raises ImproperlyConfigured, naming the alias and what is wrong and never the URL: it may hold a password.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
        # urlsplit leaves control characters out in silence, and libpq ends at a NUL.
        if not url.isprintable() or "\0" in unquote(url):
            raise ValueError
    except ValueError:
        raise _unusable(alias, "it cannot be parsed. Percent-encode special characters in the password") from None
    if parts.scheme not in {"postgres", "postgresql"}:
        raise _unusable(alias, "it must begin with postgresql://")
    # The @ before the host lands behind it when the password holds one of / ? #, and then no part may be shown.
    if parts.fragment or "@" in parts.path + parts.query or len(parts.path.strip("/").split("/")) > 1:
        raise _unusable(alias, "percent-encode the characters # / ? @ : % in the user and password")
    if not parts.path.strip("/"):
        raise _unusable(alias, "it names no database")
    unknown = sorted({name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} - URL_PARAMETERS)
    if unknown:
        raise _unusable(alias, f"unknown parameters {', '.join(unknown)}; allowed: {', '.join(sorted(URL_PARAMETERS))}")
    if "," in unquote(parts.hostname or "") or "," in dict(parse_qsl(parts.query)).get("host", ""):
        raise _unusable(alias, "it names more than one host")
    return {**dj_database_url.parse(url, engine=ENGINE)}


def _unusable(alias: str, reason: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"The database URL of '{alias}' cannot be used: {reason}.")


def server_map(pairs: Iterable[str]) -> dict[str, DatabaseSettings]:
    """`alias=url` pairs, as TENANT_DATABASE_URLS has them, by alias."""
    servers: dict[str, DatabaseSettings] = {}
    for pair in pairs:
        alias, separator, url = pair.partition("=")
        if not separator or not ALIAS.fullmatch(alias):
            raise ImproperlyConfigured(
                "TENANT_DATABASE_URLS takes alias=url pairs, separated by commas; "
                f"an alias is lower-case letters, digits, - and _ ({len(servers) + 1}. pair)."
            )
        if alias == DEFAULT_DB_ALIAS or alias in servers:
            raise ImproperlyConfigured(f"TENANT_DATABASE_URLS names '{alias}', which is defined already.")
        servers[alias] = database_settings(alias, url)
    return servers


def server_aliases() -> list[str]:
    return [DEFAULT_DB_ALIAS, *sorted(settings.TENANT_DATABASES)]


def server_settings(alias: str) -> DatabaseSettings:
    """A copy of the server's connection settings, for the caller to change as it likes."""
    if alias == DEFAULT_DB_ALIAS:
        return copy.deepcopy(settings.DATABASES[DEFAULT_DB_ALIAS])
    try:
        return copy.deepcopy(settings.TENANT_DATABASES[alias])
    except KeyError:
        known = ", ".join(server_aliases())
        raise ServerNotConfigured(f"There is no database server '{alias}'; configured are: {known}.") from None


# Passwords that came from a team's own store, the newest last. In a worker it is the tenant's that it works on.
_remembered: deque[str] = deque(maxlen=32)


def remember_secret(database: DatabaseSettings) -> None:
    """Have what was resolved for one tenant redacted as well."""
    password = str(database.get("PASSWORD") or "")
    if password and password not in _remembered:
        _remembered.append(password)


def secrets() -> set[str]:
    """Every spelling of every configured password, and of those resolved last, for redaction."""
    databases: Mapping[str, DatabaseSettings] = {**settings.DATABASES, **settings.TENANT_DATABASES}
    passwords = {str(database.get("PASSWORD") or "") for database in databases.values()}
    passwords.update(_broker_passwords(str(getattr(settings, "CELERY_BROKER_URL", ""))))
    # A copy: other threads remember meanwhile.
    return {spelling for password in passwords | {*_remembered.copy()} for spelling in _spellings(password)}


@lru_cache(maxsize=8)
def _broker_passwords(urls: str) -> frozenset[str]:
    """Of one URL or of several, with `;` in between; up to the last @, in case a password holds one."""
    return frozenset(unquote(found) for found in re.findall(r"://[^:/@;]*:([^;]*)@", urls))


@lru_cache(maxsize=256)
def _spellings(password: str) -> frozenset[str]:
    encoded = {quote(password, safe=""), quote(password), quote_plus(password)}
    lower = {ESCAPE.sub(lambda match: match[0].lower(), each) for each in encoded}
    # A driver that misreads a URL cuts the password at these.
    pieces = {part for part in re.split(r"[@/:#?%]", password) if len(part) > 2}
    return frozenset({password, *encoded, *lower, *pieces} - {""})
