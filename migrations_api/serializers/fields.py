"""Fields that several serializers have, and what refuses those that a serializer does not have."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from django.core.validators import RegexValidator
from rest_framework import serializers

from migrations_api.exceptions import InvalidOptions
from migrations_api.orchestrator.fleet import TenantStatus
from migrations_api.orchestrator.strategy import Amount, Group
from tenants.names import LABEL_KEY, MAX_LABEL, MAX_REASON

# With what OpenAPI has of regular expressions, too; `$` alone would let a newline follow.
ONE_LINE: Final = r"^(?=.*\S)[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+(?!\n)$"
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


class WholeNumberField(serializers.IntegerField):
    """A JSON number; its digits as a string are text."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class SecondsField(serializers.FloatField):
    """A JSON number of at most a year."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"min_value": 0, "max_value": 31_536_000, **kwargs})

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool | str):
            self.fail("invalid")
        return super().to_internal_value(data)


class ParsedField(serializers.Field[Any, Any, Any, Any]):
    """What `kind.parse` takes, as it was given; a string is a percentage."""

    kind: ClassVar[type[Amount | Group]]

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, str) and data.isdigit():
            raise serializers.ValidationError(f"{data[:20]!r} is a string; a number has no quotes.")
        try:
            return self.kind.parse(data).value
        except InvalidOptions as error:
            raise serializers.ValidationError(error.message) from error

    def to_representation(self, value: Any) -> Any:
        return value


class AmountField(ParsedField):
    kind = Amount


class WaveField(ParsedField):
    kind = Group

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("labels"), Mapping):
            try:
                LabelsField().run_validation(data["labels"])
            except serializers.ValidationError as error:
                raise serializers.ValidationError({"labels": error.detail}) from error
        return super().to_internal_value(data)


class WaitingForField(serializers.ChoiceField):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=["bake_time", "promotion"], allow_null=True, **kwargs)


class OldestObservationField(serializers.DateTimeField):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_null=True, help_text="When the oldest look at one of these tenants was.", **kwargs)


class ReasonField(TextField):
    """One line, which can stand on a terminal."""

    def __init__(self, **kwargs: Any) -> None:
        one_line = RegexValidator(ONE_LINE, "A reason is one line without control characters.")
        super().__init__(max_length=MAX_REASON, validators=[one_line], help_text="Shown to whoever asks why.", **kwargs)
