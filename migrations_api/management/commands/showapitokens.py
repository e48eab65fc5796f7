from typing import Any

from django.core.management.base import CommandParser

from migrations_api.management.base import ServiceCommand
from migrations_api.management.tables import write_table
from migrations_api.models import ApiToken

COLUMNS = ("prefix", "name", "user", "scope", "created", "expires", "last_used", "revoked")


class Command(ServiceCommand):
    help = "List the API tokens, newest first; never what they consist of."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--format", choices=["table", "json"], default="table")

    def handle(self, *, format: str, **options: Any) -> None:  # noqa: A002
        rows = [_row(token) for token in ApiToken.objects.select_related("user")]
        if format == "json":
            self.write_json(rows)
        elif rows:
            write_table(self.stdout, COLUMNS, [[_cell(row[column]) for column in COLUMNS] for row in rows])
        else:
            self.stdout.write("There are no API tokens. Create one with: manage.py createapitoken")


def _row(token: ApiToken) -> dict[str, Any]:
    return {
        "prefix": token.prefix,
        "name": token.name,
        "user": token.user.get_username(),
        "scope": token.scope,
        "created": token.created,
        "expires": token.expiry_date,
        "last_used": token.last_used_at,
        "revoked": token.revoked,
    }


def _cell(value: Any) -> str:
    if value is None:
        return "never"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else f"{value:%Y-%m-%d %H:%M}"
