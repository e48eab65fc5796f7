"""Database users with fewer rights than the tests' own."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from psycopg2 import sql

from tests import catalog

PASSWORD = "p@ss:w/rd#100%"
_numbers = itertools.count()


@contextmanager
def role(attributes: str = "LOGIN") -> Iterator[dict[str, Any]]:
    """Settings of the server `shop` for a new user; the user and all that it owns there is dropped afterwards."""
    shop = catalog.dsn(settings.TENANT_DATABASES["shop"])
    name = f"user{next(_numbers)}_{settings.SUFFIX}"
    user = sql.Identifier(name)
    catalog.query(shop, sql.SQL("CREATE ROLE {} PASSWORD %s " + attributes).format(user), [PASSWORD])
    try:
        yield {**settings.TENANT_DATABASES["shop"], "USER": name, "PASSWORD": PASSWORD}
    finally:
        catalog.query(shop, sql.SQL("DROP OWNED BY {} CASCADE").format(user))
        catalog.query(shop, sql.SQL("DROP ROLE {}").format(user))
