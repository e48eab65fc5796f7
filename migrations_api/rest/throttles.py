"""How often somebody may ask. Rates are settings.REST_FRAMEWORK["DEFAULT_THROTTLE_RATES"], by scope; None is no limit.

They keep one client from crowding out the others. They are counted in Django's cache, per process where that is
in local memory, so nothing that must never happen may depend on them.
"""

from typing import TYPE_CHECKING

from rest_framework.exceptions import Throttled
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.settings import api_settings
from rest_framework.throttling import SimpleRateThrottle

from migrations_api.rest.client_address import client_address

if TYPE_CHECKING:  # APIView imports the default classes, and this module with them, while it is being defined.
    from rest_framework.views import APIView


class ScopeThrottle(SimpleRateThrottle):
    scope: str

    def get_rate(self) -> str | None:
        # DRF reads the rates when its module is imported; these are the settings as they stand.
        rate: str | None = api_settings.DEFAULT_THROTTLE_RATES[self.scope]  # type: ignore[assignment]  # as DRF has it
        return rate

    def get_cache_key(self, request: Request, view: "APIView | None") -> str | None:
        return self.cache_format % {"scope": self.scope, "ident": client_address(request) or "unknown"}


class PrincipalThrottle(ScopeThrottle):
    """Counts by user, whatever token they come with, and by address for whoever is nobody."""

    safe: bool

    def get_cache_key(self, request: Request, view: "APIView | None") -> str | None:
        if (request.method in SAFE_METHODS) is not self.safe:
            return None
        if request.user is not None and request.user.is_authenticated:
            return self.cache_format % {"scope": self.scope, "ident": f"user-{request.user.pk}"}
        return super().get_cache_key(request, view)


class ReadThrottle(PrincipalThrottle):
    scope = "read"
    safe = True


class WriteThrottle(PrincipalThrottle):
    scope = "write"
    safe = False


class FailedAuthenticationThrottle(ScopeThrottle):
    """Counts wrong tokens by address. A right one is never refused because of its neighbours' wrong ones."""

    scope = "failed_authentication"


def count_failed_authentication(request: Request) -> None:
    """Called for each wrong token; raises Throttled when the address has sent too many."""
    throttle = FailedAuthenticationThrottle()
    if not throttle.allow_request(request, None):  # type: ignore[arg-type]  # no view is needed
        raise Throttled(throttle.wait())


class ThrottleFirst:
    """For an APIView: refused requests count too. DRF itself looks at the throttles only after the rights."""

    def check_permissions(self, request: Request) -> None:
        super().check_throttles(request)  # type: ignore[misc]
        super().check_permissions(request)  # type: ignore[misc]

    def check_throttles(self, request: Request) -> None:
        """Done before the rights."""
