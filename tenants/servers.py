"""Database servers by alias: from URLs to Django's connection settings, and no further.

Imported by the settings module, so nothing here may need configured settings at import time.
"""

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

from tenants.exceptions import ServerError, ServerNotConfigured

DatabaseSettings = dict[str, Any]

ENGINE: Final = "django.db.backends.postgresql"
ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
ESCAPE = re.compile("%[0-9A-F]{2}")
NUMBER, TEXT = "[0-9]{1,9}", ".+"
# Of libpq, where nothing else is said. Without the first, a server that takes the connection and says nothing is waited
# for without end.
CONNECT_TIMEOUT: Final = 10  # seconds
# What is sent and not acknowledged, and a host that is silent, are noticed within half a minute; the kernel takes a
# quarter of an hour, or two hours.
KEEPALIVES: Final = {
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# With a pattern of what each takes. `options` and `service` could undo the session's own settings, a list of hosts
# leads to whichever answers; the rest of libpq's parameters have no use here.
URL_PARAMETERS: Final[Mapping[str, str]] = {
    "channel_binding": "disable|prefer|require",
    "connect_timeout": NUMBER,
    "gssencmode": "disable|prefer|require",
    "host": "[^,]+",
    "keepalives": "0|1",
    "keepalives_count": NUMBER,
    "keepalives_idle": NUMBER,
    "keepalives_interval": NUMBER,
    "sslcert": TEXT,
    "sslcrl": TEXT,
    "sslkey": TEXT,
    "sslmode": "disable|allow|prefer|require|verify-ca|verify-full",
    "sslrootcert": TEXT,
    "tcp_user_timeout": NUMBER,
}


def database_settings(alias: str, url: str) -> DatabaseSettings:
    """Django's connection settings for a `postgresql://user:password@host:port/database?sslmode=…` URL.

    Unless the URL says otherwise, connecting is given up after CONNECT_TIMEOUT, and a host that vanishes is noticed.
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
    given = parse_qsl(parts.query, keep_blank_values=True)
    if unknown := sorted({name for name, _ in given} - set(URL_PARAMETERS)):
        raise _unusable(alias, f"unknown parameters {', '.join(unknown)}; allowed: {', '.join(URL_PARAMETERS)}")
    hosts = [unquote(parts.hostname or ""), *(value for name, value in given if name == "host")]
    if any("," in host for host in hosts) or len(list(filter(None, hosts))) > 1:
        raise _unusable(alias, "it names more than one host")
    for name, value in given:
        if not re.fullmatch(URL_PARAMETERS[name], value) or [each for each, _ in given].count(name) > 1:
            raise _unusable(alias, f"{name} takes one value{_kind(URL_PARAMETERS[name])}")
    settings = dj_database_url.parse(url, engine=ENGINE)
    return {**settings, "OPTIONS": {"connect_timeout": CONNECT_TIMEOUT, **KEEPALIVES, **settings.get("OPTIONS", {})}}


def _kind(pattern: str) -> str:
    if "|" in pattern:
        return f" of {', '.join(pattern.split('|'))}"
    return ", a whole number" if pattern == NUMBER else ""


def require_allowed(alias: str, database: DatabaseSettings) -> None:
    """Raise ServerError for settings of a team's own store that say more than a URL may, but for what the server's do.

    The store may hold what others than the operator have written: no second host, no socket of this machine.
    """
    server = server_settings(alias)
    own = server.get("OPTIONS", {})
    options = {name: value for name, value in database.get("OPTIONS", {}).items() if own.get(name) != value}
    for name, value in options.items():
        if name not in URL_PARAMETERS or not re.fullmatch(URL_PARAMETERS[name], str(value)):
            allowed = ", ".join(URL_PARAMETERS)
            raise ServerError(f"The connection_resolver's {name} is not allowed, or not so; allowed: {allowed}.")
    host = _host(database)
    if host != _host(server) and ("," in host or host.startswith(("/", "@")) or not host):
        raise ServerError("The connection_resolver's host is a socket of this machine, or more than one host.")


def _host(database: DatabaseSettings) -> str:
    return str(database.get("OPTIONS", {}).get("host") or database.get("HOST") or "")


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
        return _copied(settings.DATABASES[DEFAULT_DB_ALIAS])
    try:
        return _copied(settings.TENANT_DATABASES[alias])
    except KeyError:
        known = ", ".join(server_aliases())
        raise ServerNotConfigured(f"There is no database server '{alias}'; configured are: {known}.") from None


def _copied(server: DatabaseSettings) -> DatabaseSettings:
    # Asked for several times a tenant, where deepcopy() would take a tenth of a short migration.
    return {name: dict(value) if isinstance(value, dict) else value for name, value in server.items()}


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
