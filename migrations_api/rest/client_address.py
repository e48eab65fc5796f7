"""Where a request came from."""

import ipaddress

from django.conf import settings
from django.http import HttpRequest
from rest_framework.request import Request


def client_address(request: Request | HttpRequest) -> str | None:
    """The address of the client; None when the server listens on a socket that has none.

    Each of the TRUSTED_PROXIES proxies in front of the service has appended to X-Forwarded-For the address it was
    called from, so the client's stands that many places from the right. What is left of it is the client's own word.
    """
    proxies: int = getattr(settings, "TRUSTED_PROXIES", 0)
    forwarded = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
    direct = request.META.get("REMOTE_ADDR", "")
    # A shorter header was not made by those proxies: somebody went round them.
    if 0 < proxies <= len(forwarded):
        return _address(forwarded[-proxies]) or _address(direct)
    return _address(direct)


def _address(text: str) -> str | None:
    # PostgreSQL's inet has no zone: fe80::1%eth0.
    try:
        return str(ipaddress.ip_address(text.strip().partition("%")[0]))
    except ValueError:
        return None
