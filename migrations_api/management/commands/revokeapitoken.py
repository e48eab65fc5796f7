from typing import Any

from django.core.management.base import CommandError, CommandParser

from migrations_api.management.base import ServiceCommand
from migrations_api.models import ApiToken


class Command(ServiceCommand):
    help = "Revoke an API token for good."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--prefix", required=True, help="The token's first part, as showapitokens lists it.")

    def handle(self, *, prefix: str, **options: Any) -> None:
        tokens = ApiToken.objects.filter(prefix=prefix)
        if tokens.filter(revoked=False).update(revoked=True):
            self.stdout.write(f"Token {prefix} revoked.")
        elif tokens.exists():
            self.stdout.write(f"Token {prefix} was revoked already.")
        else:
            raise CommandError(f"There is no token with the prefix '{prefix}'.")
