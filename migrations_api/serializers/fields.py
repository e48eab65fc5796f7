"""Fields that several serializers have, and what refuses those that a serializer does not have."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from migrations_api.exceptions import InvalidOptions
from migrations_api.orchestrator.fleet import TenantStatus
from migrations_api.orchestrator.strategy import Amount, Group

LABEL_KEY = re.compile("[^=]{1,63}")
MAX_LABEL = 255  # characters of a label's value
STATUSES = [(status.value, status.value) for status in TenantStatus]


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses fields that it does not know: a mistyped option must not be an option left out."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (unknown := sorted(set(data) - set(self.fields))):
            allowed = ", ".join(self.fields) or "(none)"
            message = f"Unknown field; allowed: {allowed}."
            raise serializers.ValidationError({name: [message] for name in unknown}, code="unknown_field")
        return super().to_internal_value(data)


class StatusField(serializers.ChoiceField):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=STATUSES, **kwargs)


class TextField(serializers.CharField):
    """A JSON string as it stands: a number is not text, and spaces around an id are not meant to be there."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"trim_whitespace": False, **kwargs})

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class FlagField(serializers.BooleanField):
    """true or false, and none of the words that a form would take for them."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class QueryFlagField(serializers.BooleanField):
    def to_internal_value(self, data: Any) -> bool:
        if data not in {"true", "false"}:
            self.fail("invalid", input=data)
        return bool(data == "true")


class LabelsField(serializers.DictField):
    child = TextField(max_length=MAX_LABEL, allow_blank=True)

    def to_internal_value(self, data: Any) -> Any:
        labels = super().to_internal_value(data)
        if wrong := [key for key in labels if not LABEL_KEY.fullmatch(key)]:
            message = "A label's key takes 1 to 63 characters without '='."
            raise serializers.ValidationError({key: [message] for key in wrong})
        return labels


AMOUNT_SCHEMA = {
    "oneOf": [
        {"type": "integer", "minimum": 0, "maximum": 9_999_999},
        {"type": "string", "pattern": r"^(100|[0-9]{1,2})(\.[0-9]{1,4})?%$"},
    ]
}
WAVE_SCHEMA = {
    "oneOf": [
        {"type": "integer", "minimum": 1, "maximum": 9_999_999},
        {"type": "string", "pattern": r"^(100|[0-9]{1,2})(\.[0-9]{1,4})?%$"},
        {
            "type": "object",
            "properties": {"labels": {"type": "object", "additionalProperties": {"type": "string"}}},
            "required": ["labels"],
            "additionalProperties": False,
        },
    ]
}


class ParsedField(serializers.Field[Any, Any, Any, Any]):
    """What `kind.parse` takes, as it was given."""

    kind: ClassVar[type[Amount | Group]]

    def to_internal_value(self, data: Any) -> Any:
        try:
            return self.kind.parse(data).value
        except InvalidOptions as error:
            raise serializers.ValidationError(error.message) from error

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field(AMOUNT_SCHEMA)
class AmountField(ParsedField):
    kind = Amount


@extend_schema_field(WAVE_SCHEMA)
class WaveField(ParsedField):
    kind = Group


class WaitingForField(serializers.ChoiceField):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=["", "bake_time", "promotion"], **kwargs)


class ReasonField(TextField):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=300, help_text="Shown to whoever asks why.", **kwargs)
