"""What schema editors send, as against what is sent of them later on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db.backends.postgresql.schema import DatabaseSchemaEditor


@contextmanager
def schema_editors() -> Iterator[list[str]]:
    """What is sent by way of them: what Django has written for that very tenant."""
    found: list[str] = []
    execute = DatabaseSchemaEditor.execute

    def noted(self: DatabaseSchemaEditor, statement: Any, params: Any = ()) -> Any:
        found.append(str(statement))
        return execute(self, statement, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseSchemaEditor, "execute", noted)
        yield found
