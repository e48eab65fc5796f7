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
def role(attributes: str = "LOGIN", *, password: str = PASSWORD) -> Iterator[dict[str, Any]]:
    """Settings of the server `shop` for a new user; the user and all that it has been given is dropped afterwards."""
    shop, plane = (catalog.dsn(each) for each in (settings.TENANT_DATABASES["shop"], settings.DATABASES["default"]))
    name = f"user{next(_numbers)}_{settings.SUFFIX}"
    user = sql.Identifier(name)
    catalog.query(shop, sql.SQL("CREATE ROLE {} PASSWORD %s " + attributes).format(user), [password])
    # Who only has CREATEROLE may drop what a user owns as a member of it.
    catalog.query(shop, sql.SQL("GRANT {} TO CURRENT_USER").format(user))
    try:
        yield {**settings.TENANT_DATABASES["shop"], "USER": name, "PASSWORD": password}
    finally:
        for database in (shop, plane):
            catalog.query(database, sql.SQL("DROP OWNED BY {} CASCADE").format(user))
        catalog.query(shop, sql.SQL("DROP ROLE {}").format(user))
