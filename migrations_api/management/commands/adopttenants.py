import argparse
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS

from migrations_api.management.base import (
    EXIT_FAILED,
    EXIT_SOME_FAILED,
    EXIT_USAGE,
    ServiceCommand,
    exit_with,
    label,
    user,
)
from migrations_api.management.tables import write_table
from migrations_api.orchestrator import adoption
from migrations_api.orchestrator.adoption import LEFT_OUT, REFUSED, Adoption, Finding, Search
from tenants.discovery import TenantTable
from tenants.servers import server_aliases

COLUMNS = ("found", "tenant_id", "name", "isolation", "status", "applied", "pending", "adoption")


def name(value: str) -> str:
    if not value or not value.isprintable():
        raise argparse.ArgumentTypeError(f"{value!r} is not a name")
    return value


class Command(ServiceCommand):
    help = "Show the tenants that another tool has made and where each stands; with --register, register them, held."

    def add_arguments(self, parser: CommandParser) -> None:
        where = parser.add_mutually_exclusive_group(required=True)
        where.add_argument("--schemas", nargs="+", type=name, metavar="PATTERN", help="As in a shell: 'tenant_*'.")
        where.add_argument("--databases", nargs="+", type=name, metavar="PATTERN", help="Likewise: 'tenant_*'.")
        where.add_argument("--table", type=name, help="The other tool's table of tenants, such as customers_client.")
        parser.add_argument(
            "--schema-column", type=name, metavar="COLUMN", help="Of that table; schema_name without it."
        )
        parser.add_argument("--name-column", type=name, metavar="COLUMN", help="Of that table: the customers' names.")
        parser.add_argument("--id-column", type=name, metavar="COLUMN", help="Of that table: the tenant ids.")
        parser.add_argument(
            "--database", default=DEFAULT_DB_ALIAS, help=f"Alias of the database server: {', '.join(server_aliases())}."
        )
        parser.add_argument(
            "--exclude", nargs="+", type=name, default=[], metavar="PATTERN", help="Schemas or databases to leave out."
        )
        parser.add_argument(
            "--tenant-id-pattern",
            type=name,
            metavar="TEMPLATE",
            help="Where the id stands in a name, such as 'tenant_{tenant_id}'; by TENANT_SCHEMA_TEMPLATE (or "
            "TENANT_DATABASE_TEMPLATE) without it, and where that does not fit, the name is the id.",
        )
        parser.add_argument(
            "--fit-ids",
            action="store_true",
            help="Lower case, and a hyphen for what an id may not hold: Acme_Co is acme-co.",
        )
        parser.add_argument(
            "--without-record",
            action="store_true",
            help="Count as tenants, too, those in which no migration is recorded; then see --fake-initial.",
        )
        parser.add_argument("--label", dest="labels", type=label, action="append", default=[], metavar="KEY=VALUE")
        parser.add_argument("--register", action="store_true", help="Register what is new; without it nothing changes.")
        parser.add_argument("--format", choices=["table", "json"], default="table")

    def handle(self, *, register: bool, format: str, **options: Any) -> None:  # noqa: A002
        findings = adoption.find(_search(options))
        refused = [each for each in findings if each.adoption in REFUSED]
        if register and not refused:
            findings = adoption.register(findings, by=user(), labels=dict(options["labels"]))
        if format == "json":
            self.write_json([_row(each) for each in findings])
        else:
            self._write_table(findings, register=register)
        if refused:
            told = "Nothing was registered: " if register else ""
            raise CommandError(f"{told}{len(refused)} of {len(findings)} cannot be registered.", returncode=EXIT_FAILED)
        if any(each.adoption in LEFT_OUT for each in findings):
            exit_with(EXIT_SOME_FAILED)

    def _write_table(self, findings: list[Finding], *, register: bool) -> None:
        rows = [_row(each) for each in findings]
        write_table(self.stdout, COLUMNS, [[_cell(row[column]) for column in COLUMNS] for row in rows])
        for row in rows:
            ahead = f"applied, but unknown to this code: {', '.join(row['unknown'])}" if row["unknown"] else ""
            if remark := row["detail"] or ahead:
                self.stdout.write(f"{_cell(row['found'])}: {remark}")
        self.stdout.write(_summary(findings, register=register))


def _search(options: dict[str, Any]) -> Search:
    columns = {key: options[key] for key in ("schema_column", "name_column", "id_column") if options[key]}
    if columns and not options["table"]:
        raise CommandError("The columns are those of a --table, which is not given.", returncode=EXIT_USAGE)
    return Search(
        database=options["database"],
        schemas=tuple(options["schemas"] or ()),
        databases=tuple(options["databases"] or ()),
        table=TenantTable(table=options["table"], **columns) if options["table"] else None,
        exclude=tuple(options["exclude"]),
        id_pattern=options["tenant_id_pattern"] or "",
        fit_ids=options["fit_ids"],
        without_record=options["without_record"],
    )


def _row(finding: Finding) -> dict[str, Any]:
    standing, tenant = finding.standing, finding.tenant
    return {
        "found": finding.home,
        "tenant_id": tenant.tenant_id,
        "name": tenant.name,
        "isolation": tenant.isolation,
        "database": tenant.database,
        "status": standing.status.value if standing else "",
        "applied": standing.applied if standing else None,
        "pending": standing.pending if standing else None,
        "unknown": list(standing.unknown) if standing else [],
        "adoption": finding.adoption.value,
        "detail": finding.detail,
    }


def _cell(value: object) -> str:
    """Nobody has checked what another tool calls its schemas; a terminal would carry out what is in there."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else repr(text)


def _summary(findings: list[Finding], *, register: bool) -> str:
    new = sum(each.adoption == Adoption.NEW for each in findings)
    if adopted := sum(each.adoption == Adoption.ADOPTED for each in findings):
        release = f"manage.py releasetenant --reason={adoption.ADOPTED}"
        return f"Registered {adopted}, which are held. When they may be migrated: {release}"
    if register or not new:
        return "Nothing was registered." if register else "Nothing new."
    return f"{new} can be registered, with --register; nothing was changed."
