"""The rows of a tenant's own `django_migrations`, by qualified name: another schema's on the path never counts."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder
from django.utils.timezone import now
from psycopg2 import sql

from migrations_api.executor.statements import OwnStatement
from migrations_api.plan import Applied

TABLE = "django_migrations"
# For a question that has other parts as well. Tenants that have come the same way have the same text.
TEXT: Final = sql.SQL("(SELECT json_agg(json_build_array(app, name))::text FROM {})")

IS_THERE: Final = sql.SQL("to_regclass(quote_ident({}) || '.' || quote_ident({})) IS NOT NULL")


def is_there(schema: str) -> sql.Composed:
    """An expression for whether the schema has the table."""
    return IS_THERE.format(sql.Literal(schema), sql.Literal(TABLE))


def applied_text(table: sql.Identifier) -> sql.Composed:
    """An expression for the rows of that table; what it says, applied_of() reads."""
    return TEXT.format(table)


@lru_cache(maxsize=64)
def applied_of(text: str | None) -> Applied:
    """NULL, where there are no rows, is None."""
    return frozenset((app, name) for app, name in json.loads(text or "[]"))


class TenantRecorder(MigrationRecorder):
    """Django's recorder for one schema.

    Its statements name the schema, so that a migration which changed the search_path cannot move its own record; and it
    finds its table by name, where Django's lists every table of the catalog. That it is a table, the session has
    checked.
    """

    def __init__(self, connection: BaseDatabaseWrapper, schema: str) -> None:
        super().__init__(connection)
        self._schema = schema
        self._table = sql.Identifier(schema, TABLE)
        self._behind: list[sql.Composable] | None = None

    def has_table(self) -> bool:
        with self.connection.cursor() as cursor:
            cursor.execute(OwnStatement(sql.SQL("SELECT ") + is_there(self._schema)))
            return bool(cursor.fetchone()[0])

    def applied_keys(self, *, is_there: bool | None = None) -> Applied:
        """`is_there` saves the question whether the table is."""
        if not (self.has_table() if is_there is None else is_there):
            return frozenset()
        with self.connection.cursor() as cursor:
            cursor.execute(sql.SQL("SELECT app, name FROM {}").format(self._table))
            return frozenset((app, name) for app, name in cursor.fetchall())

    def applied_migrations(self) -> dict[tuple[str, str], Any]:
        return dict.fromkeys(self.applied_keys())

    @contextmanager
    def sent_with(self, script: str = "", *, asking: sql.Composable | None = None) -> Iterator[list[tuple[Any, ...]]]:
        """Rows recorded inside are sent as one message behind the script, which PostgreSQL makes one transaction of.

        What is asked at its end is in the list afterwards.
        """
        answer: list[tuple[Any, ...]] = []
        self._behind = [sql.SQL(script)] if script else []
        try:
            yield answer
            statements = self._behind
        finally:
            self._behind = None
        if asking is not None:
            statements.append(asking)
        with self.connection.cursor() as cursor:
            cursor.execute(OwnStatement(sql.SQL(";\n").join(statements)))
            if asking is not None:
                answer.extend(cursor.fetchall())

    def looking(self) -> sql.Composed:
        """Asks what is applied; the only value of its answer, applied_of() reads."""
        return sql.SQL("SELECT ") + applied_text(self._table)

    def record_applied(self, app: str, name: str) -> None:
        values = sql.SQL(", ").join(map(sql.Literal, (app, name, now())))
        statement = sql.SQL("INSERT INTO {} (app, name, applied) VALUES ({})").format(self._table, values)
        if self._behind is not None:
            self._behind.append(statement)
            return
        with self.connection.cursor() as cursor:
            cursor.execute(OwnStatement(statement))

    def record_unapplied(self, app: str, name: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(
                sql.SQL("DELETE FROM {} WHERE app = %s AND name = %s").format(self._table),
                [app, name],
            )
