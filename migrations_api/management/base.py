"""What every command of the service shares: exit codes, argument types, options of `migrate`, a stop on Ctrl-C."""

import argparse
import getpass
import json
import os
import re
import sys
from io import TextIOWrapper
from typing import Any, Final, Literal, NoReturn

from django.core.checks import Tags
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.core.serializers.json import DjangoJSONEncoder
from django.db import DatabaseError
from psycopg2 import errorcodes

from migrations_api import exceptions
from migrations_api.executor import Options
from migrations_api.management.presenter import explain
from migrations_api.orchestrator.requests import Request
from migrations_api.plan import Target
from tenants.conf import load_conf
from tenants.driver_errors import sqlstate, translate
from tenants.exceptions import InvalidName, ServerNotConfigured, ServiceError
from tenants.names import LABEL_KEY, MAX_LABEL, MAX_REASON, validate_tenant_id

PLAN_DIGEST: Final = re.compile("[0-9a-f]{64}")
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_SOME_FAILED: Final = 3
EXIT_LOCKED: Final = 4
EXIT_PLAN_CHANGED: Final = 5

# By the error's stable code, so that an exception and a run that recorded it end the command alike.
EXIT_CODES: Final = {
    exceptions.AmbiguousMigration.code: EXIT_USAGE,
    exceptions.AppWithoutMigrations.code: EXIT_USAGE,
    exceptions.InvalidOptions.code: EXIT_USAGE,
    exceptions.UnknownApp.code: EXIT_USAGE,
    exceptions.UnknownMigration.code: EXIT_USAGE,
    exceptions.UnknownRollout.code: EXIT_USAGE,
    exceptions.UnknownTenants.code: EXIT_USAGE,
    InvalidName.code: EXIT_USAGE,
    ServerNotConfigured.code: EXIT_USAGE,
    exceptions.RunActive.code: EXIT_LOCKED,
    exceptions.TenantLocked.code: EXIT_LOCKED,
    exceptions.PlanChanged.code: EXIT_PLAN_CHANGED,
}


def try_again_later() -> str:
    return f"What a dead process left is settled {load_conf().lease:g} seconds after its end; then try again."


class ServiceCommand(BaseCommand):
    """A command whose ServiceErrors end it with a message and the exit code that the error has."""

    # Others load every view and every template engine, which takes longer than the rest of the process's start.
    requires_system_checks: tuple[str, ...] | list[str] | Literal["__all__"] = ("tenants", Tags.models)

    def execute(self, *args: Any, **options: Any) -> str | None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                # A locale that has no ✓ must not end a command in the middle.
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().execute(*args, **options)
        except KeyboardInterrupt as error:
            raise CommandError("Stopped.", returncode=EXIT_FAILED) from error
        except BrokenPipeError:
            # As when a pager is left; Python flushes once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            exit_with(EXIT_FAILED)
        except exceptions.RunActive as error:
            raise failed(error.code, f"{error.message}\n{try_again_later()}") from error
        except exceptions.TenantHeld as error:
            release = f"manage.py releasetenant --tenant-id={error.tenant_id}"
            raise failed(error.code, f"{error.message}\nWhen it may be migrated again: {release}") from error
        except ServiceError as error:
            raise failed(error.code, explain(error.code, error.message)) from error
        except DatabaseError as error:
            if sqlstate(error) == errorcodes.UNDEFINED_TABLE:
                raise CommandError("The control plane has no tables yet. Run: python manage.py migrate") from error
            raise CommandError(f"The control plane failed: {translate(error).message}") from error

    def write_json(self, data: object) -> None:
        self.stdout.write(json.dumps(data, cls=DjangoJSONEncoder, ensure_ascii=False))


def failed(code: str, message: str) -> CommandError:
    return CommandError(message, returncode=EXIT_CODES.get(code, EXIT_FAILED))


def exit_with(returncode: int) -> NoReturn:
    raise SystemExit(returncode)


def positive(value: str) -> int:
    number = int(value) if value.isascii() and value.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number above 0")
    return number


def tenant_id(value: str) -> str:
    try:
        validate_tenant_id(value)
    except InvalidName as error:
        raise argparse.ArgumentTypeError(error.message) from error
    return value


def label(value: str) -> tuple[str, str]:
    key, separator, content = value.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{value!r} is not key=value")
    if not value.isprintable() or not LABEL_KEY.fullmatch(key) or len(content) > MAX_LABEL:
        raise argparse.ArgumentTypeError(
            f"{value[:63]!r} is no label: a key of 1 to 63 characters, a value of at most {MAX_LABEL}, all printable"
        )
    return key, content


def reason(value: str) -> str:
    if not value.strip() or not value.isprintable() or len(value) > MAX_REASON:
        raise argparse.ArgumentTypeError(f"a reason is one line of 1 to {MAX_REASON} characters")
    return value.strip()


def plan_digest(value: str) -> str:
    # An ETag of the API, in its quotes, is a digest as well.
    digest = value.strip('"')
    if not PLAN_DIGEST.fullmatch(digest):
        raise argparse.ArgumentTypeError(f"{value!r} is not a plan_digest, which has 64 hexadecimal digits")
    return digest


def add_confirm_arguments(parser: CommandParser, *, word: str) -> None:
    parser.add_argument("--confirm", metavar=word, help="The answer to what is asked otherwise.")
    parser.add_argument("--no-input", "--noinput", action="store_false", dest="interactive", help="Ask nothing.")


def require_confirmed(command: BaseCommand, what: str, word: str, *, confirm: str | None, interactive: bool) -> None:
    """Raise CommandError unless somebody repeats `word`, beforehand or now, or said that nothing is to be asked."""
    if confirm is None and not interactive:
        return
    if confirm is None:
        command.stderr.write(what)
        try:
            confirm = input(f"Type {word} to go on: ").strip()
        except EOFError as error:
            hint = f"Nobody is there to be asked; use --confirm={word}, or --no-input."
            raise CommandError(hint, returncode=EXIT_USAGE) from error
    if confirm != word:
        raise CommandError(f"{what} Not confirmed; nothing was done: --confirm={word}", returncode=EXIT_USAGE)


def add_migrate_arguments(parser: CommandParser) -> None:
    """The options that Django's `migrate` has, with the same meaning."""
    parser.add_argument("app_label", nargs="?", help="App to migrate; all of the tenant's apps without it.")
    parser.add_argument("migration_name", nargs="?", help="Migration to go to; 'zero' undoes all of the app's.")
    parser.add_argument("--plan", action="store_true", help="Show what would be done and change nothing.")
    parser.add_argument("--pretend", action="store_true", help="Show the SQL that would be run; change nothing.")
    parser.add_argument("--check", action="store_true", help="Exit with 1 if anything is to be done; change nothing.")
    parser.add_argument("--fake", action="store_true", help="Record the migrations without running them.")
    parser.add_argument(
        "--fake-initial", action="store_true", help="Record initial migrations whose tables are there already."
    )
    parser.add_argument("--run-syncdb", action="store_true", help="Create tables of apps without migrations.")
    parser.add_argument("--template", action="store_true", help="Copy what is new from a template where that is exact.")
    parser.add_argument("--prune", action="store_true", help="Forget applied migrations that are gone from disk.")
    parser.add_argument(
        "--no-input", "--noinput", action="store_false", dest="interactive", help="Accepted; nothing is ever asked."
    )


def request_of(options: dict[str, Any]) -> Request:
    return Request(
        target=Target(app_label=options["app_label"], migration_name=options["migration_name"]),
        options=Options(
            fake=options["fake"],
            fake_initial=options["fake_initial"],
            run_syncdb=options["run_syncdb"],
            prune=options["prune"],
            template=options["template"],
        ),
        by=user(),
    )


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
