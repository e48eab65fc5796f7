"""Cursor pages: stable under inserts, the same cost at the end of a list as at its start."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
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
    descending = ordering.startswith("-")
    field, key = ordering.removeprefix("-"), queryset.model._meta.pk.name
    sign = "-" if descending else ""
    page = queryset.order_by(*dict.fromkeys([f"{sign}{field}", f"{sign}{key}"]))
    if query["cursor"]:
        page = page.filter(_after(queryset.model, field, key, query["cursor"], descending=descending))
    size = query["page_size"]
    rows = list(page[: size + 1])
    following = _url(request, _encode(rows[size - 1], field, key)) if len(rows) > size else None
    return Response({"next": following, "results": present(rows[:size])})


def _url(request: Request, cursor: str) -> str:
    query = request.GET.copy()
    query["cursor"] = cursor
    return request.build_absolute_uri(f"{request.path}?{query.urlencode()}")


def _field(model: type[Model], name: str) -> "Field[Any, Any]":
    return cast("Field[Any, Any]", model._meta.get_field(name))


def _encode(row: Model, field: str, key: str) -> str:
    values = [_field(type(row), name).value_to_string(row) for name in (field, key)]
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def _after(model: type[Model], field: str, key: str, cursor: str, *, descending: bool) -> Q:
    try:
        decoded = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        values = json.loads(decoded)
        if not isinstance(values, list) or len(values) != 2 or any(not isinstance(v, str) or "\0" in v for v in values):
            raise ValueError
        position = [_field(model, name).to_python(value) for name, value in zip((field, key), values, strict=True)]
        _field(model, key).get_prep_value(position[1])
    except (ValueError, TypeError, RecursionError, binascii.Error, OverflowError, ValidationError) as error:
        raise Problem(400, "invalid_cursor", "The cursor is not one that this service gave.") from error
    compare = "lt" if descending else "gt"
    if field == key:
        return Q(**{f"{key}__{compare}": position[1]})
    return Q(**{f"{field}__{compare}": position[0]}) | Q(**{field: position[0], f"{key}__{compare}": position[1]})
