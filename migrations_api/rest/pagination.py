"""Cursor pages: stable under inserts, the same cost at the end of a list as at its start."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, cast

from django.core.exceptions import ValidationError
from django.db.models import Field, Model, Q, QuerySet
from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.rest.problems import Problem


def paginate(
    request: Request,
    queryset: QuerySet[Any],
    present: Callable[[list[Any]], Any],
    *,
    query: Mapping[str, Any],
    ordering: str,
) -> Response:
    """One page of `queryset` by `ordering` (a field, `-` for descending), ties broken by the primary key.

    `query` has the validated `cursor` and `page_size`; `present` makes JSON of the rows of the page.
    """
    field, key = _columns(queryset.model, ordering)
    sign = "-" if ordering.startswith("-") else ""
    page = queryset.order_by(*dict.fromkeys([f"{sign}{field}", f"{sign}{key}"]))
    if query["cursor"]:
        page = page.filter(_after(queryset.model, ordering, query["cursor"]))
    size = query["page_size"]
    rows = list(page[: size + 1])
    following = _url(request, _encode(rows[size - 1], ordering)) if len(rows) > size else None
    return Response({"next": following, "results": present(rows[:size])})


def _url(request: Request, cursor: str) -> str:
    query = request.GET.copy()
    query["cursor"] = cursor
    return request.build_absolute_uri(f"{request.path}?{query.urlencode()}")


def _columns(model: type[Model], ordering: str) -> tuple[str, str]:
    return ordering.removeprefix("-"), model._meta.pk.name


def _field(model: type[Model], name: str) -> "Field[Any, Any]":
    return cast("Field[Any, Any]", model._meta.get_field(name))


def _encode(row: Model, ordering: str) -> str:
    values = [_field(type(row), name).value_to_string(row) for name in _columns(type(row), ordering)]
    return base64.urlsafe_b64encode(json.dumps([ordering, *values]).encode()).decode().rstrip("=")


def _after(model: type[Model], ordering: str, cursor: str) -> Q:
    field, key = _columns(model, ordering)
    try:
        decoded = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        given, *values = json.loads(decoded)
        if given != ordering:
            raise ValueError
        position = [_position(_field(model, name), value) for name, value in zip((field, key), values, strict=True)]
    except (ValueError, TypeError, RecursionError, binascii.Error, OverflowError, ValidationError) as error:
        raise Problem(400, "invalid_cursor", "The cursor is not one that this service gave.") from error
    compare = "lt" if ordering.startswith("-") else "gt"
    if field == key:
        return Q(**{f"{key}__{compare}": position[1]})
    return Q(**{f"{field}__{compare}": position[0]}) | Q(**{field: position[0], f"{key}__{compare}": position[1]})


def _position(field: "Field[Any, Any]", text: Any) -> Any:
    """The value that `text` stands for in a cursor of ours; raises ValueError for what PostgreSQL would choke on."""
    if not isinstance(text, str) or "\0" in text:
        raise ValueError
    text.encode()  # refuses a lone surrogate
    value = field.to_python(text)
    if isinstance(value, datetime) and value.utcoffset() != timedelta(0):
        raise ValueError
    return value
