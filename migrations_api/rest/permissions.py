"""Who may do what: a view grants methods to roles, and everything else is refused."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from migrations_api.models import ApiToken, Role

if TYPE_CHECKING:  # APIView imports the default classes, and this module with them, while it is being defined.
    from rest_framework.views import APIView


class RolePermission(BasePermission):
    """Grants a method to the role that the view's `required_roles` has for it, and to those above. HEAD is as GET."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        role = role_of(request)
        if role is None:
            self.message = "You have none of the roles viewer, operator and admin."
            return False
        method = request.method or ""
        if method not in view.allowed_methods:
            return True  # the view answers 405
        required: Mapping[str, Role] = getattr(view, "required_roles", {})
        needed = required.get("GET" if method == "HEAD" else method)
        self.message = f"This needs the role {needed}; you have {role}." if needed else "Nobody may do this."
        return needed is not None and role.rank >= needed.rank


def role_of(request: Request) -> Role | None:
    """The role that the user's groups give, but no more than the token's scope; asked of the database once."""
    if not hasattr(request, "_role"):
        request._role = _role_of(request)  # type: ignore[attr-defined]
    role: Role | None = request._role  # type: ignore[attr-defined]
    return role


def require_role(request: Request, role: Role, reason: str) -> None:
    """Raise PermissionDenied with `reason` unless the request has that role, or one above."""
    own = role_of(request)
    if own is None or own.rank < role.rank:
        raise PermissionDenied(reason)


def _role_of(request: Request) -> Role | None:
    if request.user is None or not request.user.is_authenticated:
        return None
    role = Role.of(request.user)
    if role is None or not isinstance(request.auth, ApiToken):
        return role
    return min(role, Role(request.auth.scope), key=lambda each: each.rank)
