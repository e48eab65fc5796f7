from typing import Any, Final

from django.core.management.base import CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS
from django.utils.module_loading import import_string

from migrations_api.executor import Options
from migrations_api.management.base import EXIT_USAGE, ServiceCommand, label, user
from migrations_api.orchestrator.registration import create
from migrations_api.orchestrator.requests import Request, request_run
from tenants.exceptions import InvalidName
from tenants.models import Isolation
from tenants.names import validate_name, validate_tenant_id
from tenants.servers import server_aliases

# Loaded where the tenant is migrated at once.
CARRY_OUT: Final = "migrations_api.management.commands.migratetenant.carry_out"


class Command(ServiceCommand):
    help = "Register a tenant and create its schema or database. Asks for what the options leave open."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tenant-id", help="A DNS label, such as acme.")
        parser.add_argument("--name", help="The customer's name, for people; the tenant id without it.")
        parser.add_argument("--isolation", choices=Isolation.values)
        parser.add_argument("--database", help=f"Alias of the database server: {', '.join(server_aliases())}.")
        parser.add_argument("--label", dest="labels", type=label, action="append", default=[], metavar="KEY=VALUE")
        parser.add_argument("--register-only", action="store_true", help="Its schema or database is made elsewhere.")
        parser.add_argument("--migrate", action="store_true", help="Migrate it at once.")
        parser.add_argument(
            "--template", action="store_true", help="Migrate it at once, by copying a template where that is exact."
        )
        parser.add_argument("--no-input", "--noinput", action="store_false", dest="interactive", help="Ask nothing.")
        parser.add_argument("--format", choices=["table", "json"], default="table")

    def handle(self, *, register_only: bool, migrate: bool, template: bool, **options: Any) -> None:
        answers = self._ask(options) if options["interactive"] else self._given(options)
        tenant = create(**answers, labels=dict(options["labels"]), provision=not register_only)
        if options["format"] == "json":
            from migrations_api.management import documents  # noqa: PLC0415 - REST framework is not for the others

            self.write_json(documents.of_new_tenant(tenant))
        elif options["verbosity"] >= 1:
            home = tenant.database_name or tenant.schema_name
            done = "registered" if register_only else "created"
            self.stdout.write(
                f"Tenant '{tenant.tenant_id}' {done}: {tenant.isolation} '{home}' on server '{tenant.database}'."
            )
        if migrate or template:
            request = Request(options=Options(template=template), by=user())
            import_string(CARRY_OUT)(self, request_run(tenant, request), **options)

    def _given(self, options: dict[str, Any]) -> dict[str, str]:
        if missing := [f"--{name.replace('_', '-')}" for name in ("tenant_id", "isolation") if not options[name]]:
            raise CommandError(f"With --no-input, {' and '.join(missing)} must be given.", returncode=EXIT_USAGE)
        return {
            "tenant_id": options["tenant_id"],
            "name": options["name"] or "",
            "isolation": options["isolation"],
            "database": options["database"] or DEFAULT_DB_ALIAS,
        }

    def _ask(self, options: dict[str, Any]) -> dict[str, str]:
        """Nothing secret is ever asked for: a tenant names a server, and its settings hold the password."""
        if options["tenant_id"] and options["isolation"]:
            return self._given(options)
        tenant_id = options["tenant_id"] or self._prompt("Tenant id", check=validate_tenant_id)
        validate_tenant_id(tenant_id)
        name = options["name"] or self._prompt("Name", default=tenant_id, check=validate_name)
        isolation = options["isolation"] or self._prompt("Isolation", default="schema", choices=Isolation.values)
        servers = server_aliases()
        database = options["database"] or self._prompt("Server", default=DEFAULT_DB_ALIAS, choices=servers)
        return {"tenant_id": tenant_id, "name": name, "isolation": isolation, "database": database}

    def _prompt(self, question: str, *, default: str = "", choices: list[str] | None = None, check: Any = None) -> str:
        hint = f" ({'/'.join(choices)})" if choices else ""
        while True:
            try:
                answer = input(f"{question}{hint}{f' [{default}]' if default else ''}: ").strip() or default
            except KeyboardInterrupt as error:
                raise CommandError("Canceled; nothing was created.") from error
            except EOFError as error:
                raise CommandError(
                    f"No answer to '{question}'; use --no-input and options.", returncode=EXIT_USAGE
                ) from error
            if choices and answer not in choices:
                self.stderr.write(f"Choose one of: {', '.join(choices)}.")
                continue
            try:
                if check is not None:
                    check(answer)
            except InvalidName as error:
                self.stderr.write(error.message)
                continue
            return answer
