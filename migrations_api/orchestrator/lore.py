"""What worker processes tell each other: the scripts that tenants have agreed on."""

from collections.abc import Sequence
from typing import Any, Final

from django.utils.module_loading import import_string

_SCRIPTS: Final = "migrations_api.executor.repertoire"


class Scripts:
    """For `Terms`; what executes is loaded with the first run, not with the dispatcher."""

    def learned(self) -> Sequence[Any]:
        found: Sequence[Any] = import_string(f"{_SCRIPTS}.learned")()
        return found

    def learn(self, lessons: Sequence[Any]) -> None:
        import_string(f"{_SCRIPTS}.learn")(lessons)
