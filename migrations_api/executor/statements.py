"""What is sent to a server, as those who listen to it see it."""

from collections.abc import Mapping
from typing import Any

from psycopg2 import sql


class OwnStatement(sql.Composed):
    """A statement that is the service's own: nobody has to listen to what it says."""


def text_of(statement: Any, context: Mapping[str, Any]) -> str:
    """Whatever the driver takes, as text; `context` is that of a wrapper for the connection's statements."""
    if isinstance(statement, sql.Composable):
        return str(statement.as_string(context["cursor"].cursor))
    return statement.decode(errors="replace") if isinstance(statement, bytes) else str(statement)
