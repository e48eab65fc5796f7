import argparse
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from migrations_api.management.base import EXIT_USAGE, ServiceCommand
from migrations_api.models import ApiToken, Role
from migrations_api.models.access import TOKEN_LIFETIME


def days(value: str) -> int:
    number = int(value) if value.isascii() and value.isdigit() else -1
    if not 0 <= number <= 36_500:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of days from 0 to 36500")
    return number


class Command(ServiceCommand):
    help = "Create a bearer token for a user. It is printed once, alone on standard output, and kept only as a hash."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", required=True, metavar="NAME", help="Whose token it is.")
        parser.add_argument("--name", required=True, metavar="TEXT", help="What it is for, in up to 50 characters.")
        parser.add_argument("--scope", required=True, choices=Role.values, help="The most that it may do.")
        parser.add_argument(
            "--expires-in-days",
            type=days,
            default=TOKEN_LIFETIME.days,
            metavar="N",
            help=f"{TOKEN_LIFETIME.days} without it; 0 is never.",
        )
        parser.add_argument(
            "--create-user",
            action="store_true",
            help="If there is no such user, make one without a password, in the group of the scope.",
        )

    def handle(
        self, *, user: str, name: str, scope: str, expires_in_days: int, create_user: bool, **options: Any
    ) -> None:
        expiry = timezone.now() + timedelta(days=expires_in_days) if expires_in_days else None
        try:
            with transaction.atomic():
                owner = _user(user, Role(scope), create=create_user)
                token = ApiToken(user=owner, name=name, scope=scope, expiry_date=expiry)  # type: ignore[misc]  # any user model
                key = _save(token)
        except ValidationError as error:
            raise CommandError("; ".join(error.messages), returncode=EXIT_USAGE) from error
        self.stdout.write(key)
        if options["verbosity"] >= 1:
            self._explain(token, owner, expiry)

    def _explain(self, token: ApiToken, owner: AbstractBaseUser, expiry: datetime | None) -> None:
        until = f"expires {expiry:%Y-%m-%d %H:%M} UTC" if expiry else "never expires"
        told = f"Token {token.prefix} of user '{owner.get_username()}': scope {token.scope}, {until}. Keep it safe."
        self.stderr.write(told, self.style.SUCCESS)
        role = Role.of(owner)
        if role is None or role.rank < Role(token.scope).rank:
            has = f"has only the role {role}" if role else "has no role"
            warning = f"The user {has}, and a token gives no more; add the user to the group '{token.scope}'."
            self.stderr.write(warning, self.style.WARNING)


def _user(name: str, role: Role, *, create: bool) -> AbstractBaseUser:
    model = get_user_model()
    found = model._default_manager.filter(**{model.USERNAME_FIELD: name}).first()
    if found is not None:
        return found
    if not create:
        raise CommandError(f"User '{name}' does not exist. Add --create-user to make it.")
    made = model(**{model.USERNAME_FIELD: name})
    made.set_unusable_password()
    made.clean_fields()
    made.save()
    Group.objects.get_or_create(name=role)[0].user_set.add(made)
    return made


def _save(token: ApiToken) -> str:
    key = ApiToken.objects.assign_key(token)
    token.clean_fields()
    token.save(force_insert=True)
    return key
