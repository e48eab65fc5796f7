"""Options that are kept in a row as they were given."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, ClassVar, Self


class Stored:
    """A frozen dataclass whose fields are written as JSON and read back; `readers` make a field's value of its JSON.

    What has a `value` of its own, such as an amount of tenants, is written as that.
    """

    readers: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}

    def as_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON has it."""
        given = {each.name: (getattr(self, each.name), _default(each)) for each in fields(self)}  # type: ignore[arg-type]  # its subclasses are
        return {name: _written(value) for name, (value, default) in given.items() if value != default}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The reverse of as_dict(); raises InvalidOptions."""
        return cls(**{name: cls.readers[name](each) if name in cls.readers else each for name, each in given.items()})


def _default(each: "Field[Any]") -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _written(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_written(each) for each in value]
    return getattr(value, "value", value)
