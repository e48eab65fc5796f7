"""ETag, If-Match and Prefer, each refused with a 400 when malformed and never ignored."""

import re

from rest_framework.request import Request

from migrations_api.rest.problems import Problem

_ETAG = re.compile(r'"([0-9a-f]{64})"')
_WAIT = re.compile(r"wait=(\d{1,3})")
MAX_WAIT = 60  # seconds


def etag(digest: str) -> str:
    return f'"{digest}"'


def expected_digest(request: Request) -> str:
    """The plan_digest that If-Match pins; empty without the header."""
    header = request.headers.get("If-Match")
    if header is None:
        return ""
    match = _ETAG.fullmatch(header.strip())
    if match is None:
        raise Problem(400, "malformed_header", "If-Match takes one strong ETag, as GET …/plan gives it, in quotes.")
    return match[1]


def requested_wait(request: Request) -> int:
    """Seconds of `Prefer: wait=N` (RFC 7240), at most MAX_WAIT; 0 without the header."""
    header = request.headers.get("Prefer")
    if header is None:
        return 0
    match = _WAIT.fullmatch(header.strip())
    if match is None or int(match[1]) > MAX_WAIT:
        raise Problem(400, "malformed_header", f"Prefer takes wait=N with N from 0 to {MAX_WAIT} seconds.")
    return int(match[1])
