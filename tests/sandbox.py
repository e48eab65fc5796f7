"""An empty schema on a real server, in which operations are carried out as a migration of the app `billing`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from django.conf import settings as configured
from django.db import connections
from django.db.migrations import Migration
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState

from tests import catalog
from tests.oracle import CATALOG

ALIAS = "sandbox"
APP = "billing"
COMMENTS = """
SELECT concat_ws(' ', 'comment', c.relname, a.attname, col_description(c.oid, a.attnum))
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
 WHERE c.relnamespace = current_schema()::regnamespace AND col_description(c.oid, a.attnum) IS NOT NULL ORDER BY 1
"""


def migration(operations: Sequence[Operation], *, atomic: bool = False) -> Migration:
    made: Any = Migration("0002_change", APP)
    made.operations, made.atomic = list(operations), atomic
    return made  # type: ignore[no-any-return]


class Sandbox:
    """`state` is where the schema stands."""

    def __init__(self) -> None:
        self.state = ProjectState()

    @property
    def connection(self) -> Any:
        return connections[ALIAS]

    def apply(self, operations: Sequence[Operation], *, atomic: bool = False) -> None:
        """Raises what the operations raise; what they have done by then stays, unless atomic."""
        with self.connection.schema_editor(atomic=atomic) as editor:
            self.state = migration(operations, atomic=atomic).apply(self.state.clone(), editor)

    def unapply(self, operations: Sequence[Operation], before: ProjectState, *, atomic: bool = False) -> None:
        with self.connection.schema_editor(atomic=atomic) as editor:
            migration(operations, atomic=atomic).unapply(before.clone(), editor)
        self.state = before

    def sql(self, operations: Sequence[Operation]) -> list[str]:
        """What sqlmigrate shows of a migration that is not atomic."""
        with self.connection.schema_editor(collect_sql=True, atomic=False) as editor:
            migration(operations).apply(self.state.clone(), editor, collect_sql=True)
        return [line for line in editor.collected_sql if not line.startswith("--")]

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def catalog(self) -> list[str]:
        return [line for (line,) in self.query(CATALOG) + self.query(COMMENTS)]

    def empty(self) -> None:
        self.query("DROP SCHEMA IF EXISTS sandbox CASCADE")
        self.query("CREATE SCHEMA sandbox")
        self.state = ProjectState()


def server() -> dict[str, Any]:
    """psycopg2's arguments for further sessions in the sandbox."""
    arguments = catalog.dsn(configured.TENANT_DATABASES["shop"])
    return {**arguments, "options": "-c search_path=sandbox"}


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    database = deepcopy({**connections.databases["default"], **configured.TENANT_DATABASES["shop"]})
    database["OPTIONS"] = {**database.get("OPTIONS", {}), "options": "-c search_path=sandbox -c lock_timeout=500"}
    connections.databases[ALIAS] = database
    made = Sandbox()
    try:
        made.empty()
        yield made
        made.query("DROP SCHEMA sandbox CASCADE")
    finally:
        made.connection.close()
        del connections[ALIAS]
        del connections.databases[ALIAS]
