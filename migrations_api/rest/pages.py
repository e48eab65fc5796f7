from functools import cache
from typing import Any

from drf_spectacular.utils import inline_serializer
from rest_framework import serializers


@cache
def page_of(name: str, item: type[serializers.BaseSerializer[Any]]) -> serializers.Serializer[Any]:
    """The schema of a cursor page of `item`; one component, however many operations answer with it."""
    return inline_serializer(
        f"{name}Page",
        fields={
            "next": serializers.URLField(allow_null=True, help_text="The following page; null on the last one."),
            "results": item(many=True),
        },
    )
