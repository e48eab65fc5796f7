"""Idempotency-Key: the same key and request give the same answer, once carried out and however often sent."""

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

from django.db import transaction
from django.utils.timezone import now
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from migrations_api.models import IdempotencyRecord
from migrations_api.rest.problems import Problem

MAX_LENGTH = 255
KEPT_HEADERS = ("Location", "ETag", "Preference-Applied")
IN_PROGRESS = 0
STALE = timedelta(hours=1)
Handler = Callable[..., Response]


def idempotent(handler: Handler) -> Handler:
    """Decorate a method of a view: what it does and the record of its answer are one transaction.

    A second request with the key waits for the first, then gets its answer. An error leaves no record: the same key may
    be tried again. Another request under the same key is a 422.
    """

    @wraps(handler)
    def accept(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = _key(request)
        with transaction.atomic():
            if key is None:
                return handler(view, request, *args, **kwargs)
            record, created = _record(request, key)
            if not created:
                return _replay(record, request)
            response = handler(view, request, *args, **kwargs)
            _keep(record, response)
            return response

    return accept


def idempotent_outside(handler: Handler) -> Handler:
    """As idempotent(), for what no transaction can undo: creating a schema or database.

    The key is taken first; a second request meanwhile is a 409, and a key whose request died is free after an hour.
    """

    @wraps(handler)
    def accept(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = _key(request)
        if key is None:
            return handler(view, request, *args, **kwargs)
        IdempotencyRecord.objects.filter(status=IN_PROGRESS, created_at__lt=now() - STALE).delete()
        record, created = _record(request, key)
        if not created:
            return _replay(record, request)
        try:
            response = handler(view, request, *args, **kwargs)
        except BaseException:
            record.delete()
            raise
        _keep(record, response)
        return response

    return accept


def _record(request: Request, key: str) -> tuple[IdempotencyRecord, bool]:
    return IdempotencyRecord.objects.get_or_create(
        actor=request.user.get_username(), key=key, defaults={"request_digest": _digest(request), "status": IN_PROGRESS}
    )


def _keep(record: IdempotencyRecord, response: Response) -> None:
    record.status = response.status_code
    record.body = json.loads(JSONRenderer().render(response.data) or b"null")
    record.headers = {name: response[name] for name in KEPT_HEADERS if response.has_header(name)}
    record.save(update_fields=["status", "body", "headers"])


def _replay(record: IdempotencyRecord, request: Request) -> Response:
    if record.request_digest != _digest(request):
        raise Problem(422, "idempotency_key_reused", "This Idempotency-Key was used for another request.")
    if record.status == IN_PROGRESS:
        raise Problem(409, "idempotency_key_in_progress", "The first request with this Idempotency-Key still runs.")
    return Response(record.body, status=record.status, headers={**record.headers, "Idempotency-Replayed": "true"})


def _key(request: Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_LENGTH or not key.isascii() or not key.isprintable():
        detail = f"Idempotency-Key takes 1 to {MAX_LENGTH} printable ASCII characters."
        raise Problem(400, "malformed_header", detail)
    return key


def _digest(request: Request) -> str:
    content = [
        request.method,
        request.get_full_path(),
        request.headers.get("If-Match", ""),
        json.dumps(request.data, sort_keys=True),
    ]
    return hashlib.sha256("\0".join(map(str, content)).encode("utf-8", "surrogatepass")).hexdigest()
