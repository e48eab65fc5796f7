"""The tools that are compared: what each needs before it is measured, and how it is started then."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from psycopg2.extensions import parse_dsn

from benchmarks.peers import databases, processes
from benchmarks.peers.app_set import LAST
from benchmarks.peers.databases import Truth
from benchmarks.peers.environments import ROOT, environment, own_requirements
from benchmarks.peers.processes import Command, Cost
from benchmarks.peers.replay import Home
from benchmarks.peers.workloads import Workload
from service.embedded_postgres import EmbeddedPostgres

PROJECTS = Path(__file__).resolve().parent / "projects"
FROM_ZERO = frozenset({"from-zero", "wagtail"})
QUESTIONS = {"status": ["showtenants"], "plan": ["migratealltenants", "--dry-run"]}
SETUP = "import django; django.setup()"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where it all happens; `apps` is the folder with the generated apps, `bytecode` that of whatever is compiled."""

    server: EmbeddedPostgres
    workload: Workload
    apps: Path
    bytecode: Path

    def run(self, command: Command) -> Cost:
        return processes.run(command, bytecode=self.bytecode)

    def django(self, module: str, database: str, *, schema: str = "public", **settings: Any) -> dict[str, str]:
        """The environment of a project in PROJECTS whose database this is."""
        dsn = parse_dsn(self.server.url(database))
        address = {"HOST": dsn["host"], "PORT": dsn["port"], "USER": dsn["user"]}
        given = {
            "database": {"NAME": database, **address, "OPTIONS": {"options": f"-c search_path={schema}"}},
            "apps": self.workload.apps,
            "settings": {**self.workload.settings, **settings},
        }
        return {
            "PEERS": json.dumps(given),
            "DJANGO_SETTINGS_MODULE": module,
            "PYTHONPATH": f"{PROJECTS}:{self.apps}",
        }


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Tenants of one kind, as one tool sees them: schemas in `database`, or databases beside it."""

    isolation: str
    database: str
    homes: Sequence[Home]


class Tool(Protocol):
    """What is compared. A peer's executors count for the ratio to the best of them.

    One that `remembers` is run once before it is measured on tenants that somebody else has migrated. `own_app` is one
    that it has beside the tenants' apps, and that leaves rows in each of them. `most` limits the tenants that it is
    given, where what one costs does not depend on their number.
    """

    name: str
    is_peer: bool
    remembers: bool
    own_app: str
    most: int | None
    isolations: frozenset[str]

    def variants(self, case: str) -> Sequence[str]:
        """Its executors with their settings; none if it takes no part in the case."""

    def prepare(self, bench: Bench, fleet: Fleet) -> None:
        """Make what the tool itself has in a database, and make the tenants known to it; they exist and are empty."""

    def keep(self, bench: Bench, case: str) -> None:
        """Have renew() come back to here for that case: before any deploy but the first, a tool has met its tenants."""

    def renew(self, bench: Bench, case: str) -> None:
        """Forget what the tool remembers of measurements since."""

    def last_deploy(self, bench: Bench, fleet: Fleet) -> list[Command]:
        """The one before the last migration came; of a tool that keeps no record of it, nothing."""

    def commands(self, bench: Bench, fleet: Fleet, variant: str, case: str, truth: Truth) -> list[Command]:
        """What brings the fleet up to date; of the plain loop, one for each of its tenants."""


class Own:
    """The service, with a control plane beside the tenants."""

    name = "ours"
    is_peer = False
    remembers = True
    own_app = ""
    most = None
    isolations = frozenset({"schema", "database"})

    def variants(self, case: str) -> Sequence[str]:
        # Worker processes: for two processors, and the default.
        return ("sequential", "parallel 2", "parallel 4", *(QUESTIONS if case == "large" else ()))

    def prepare(self, bench: Bench, fleet: Fleet) -> None:
        databases.recreate(bench.server, "plane_start")
        code = (
            "from django.utils import timezone\n"
            "from tenants.models import Tenant\n"
            f"ids = ['t%d' % number for number in range(1, {len(fleet.homes)} + 1)]\n"
            "Tenant.objects.bulk_create(Tenant.at_home(tenant_id=each, name=each, database='shop',"
            f" isolation={fleet.isolation!r}, provisioned_at=timezone.now()) for each in ids)"
        )
        for arguments in (["migrate", "-v0"], ["shell", "-v0", "-c", code]):
            bench.run(self._manage(bench, fleet, "plane_start", *arguments))

    def keep(self, bench: Bench, case: str) -> None:
        databases.recreate(bench.server, f"plane_{case}", template="plane_run")

    def renew(self, bench: Bench, case: str) -> None:
        kept = f"plane_{'nothing' if case == 'large' else case}"
        databases.recreate(bench.server, "plane_run", template=kept if _is_there(bench, kept) else "plane_start")

    def last_deploy(self, bench: Bench, fleet: Fleet) -> list[Command]:
        app, name, _, _ = LAST
        before = f"{int(name[:4]) - 1:04}"
        return [self._manage(bench, fleet, "plane_run", "migratealltenants", app, before)]

    def commands(self, bench: Bench, fleet: Fleet, variant: str, case: str, truth: Truth) -> list[Command]:
        executor, *workers = variant.split()
        executing = ["migratealltenants", f"--executor={executor}", *(f"--max-concurrency={each}" for each in workers)]
        return [self._manage(bench, fleet, "plane_run", *QUESTIONS.get(variant, executing))]

    def _manage(self, bench: Bench, fleet: Fleet, plane: str, *arguments: str) -> Command:
        environment_of = {
            **bench.django("service.settings", plane),
            "PYTHONPATH": f"{ROOT}:{PROJECTS}:{bench.apps}",
            "DATABASE_URL": bench.server.url(plane),
            "TENANT_DATABASE_URLS": f"shop={bench.server.url(fleet.database)}",
            "TENANT_APPS": ",".join(bench.workload.apps),
            "TENANT_SCHEMA_TEMPLATE": "{tenant_id}",
        }
        start: list[str | Path] = [plain_python(bench.workload), "manage.py"]
        if bench.workload.requirements:
            start[1:] = ["-m", "django"]
            environment_of["DJANGO_SETTINGS_MODULE"] = "own_settings"
        return Command(arguments=[*start, *arguments], environment=environment_of, cwd=ROOT)


class DjangoTenants:
    name = "django-tenants"
    is_peer = True
    remembers = True
    own_app = "tenants_fleet"
    most = None
    isolations = frozenset({"schema"})

    def variants(self, case: str) -> Sequence[str]:
        # Processes and chunks: the defaults, and settings that are better where there are more tenants or cores.
        several = ("multiprocessing 2/2", "multiprocessing 4/10", "multiprocessing 8/5")
        return () if case == "large" else ("standard", *several, "subprocess 4")

    def prepare(self, bench: Bench, fleet: Fleet) -> None:
        bench.run(self._manage(bench, fleet, "migrate_schemas", "--shared", "-v0"))
        _register(bench, fleet, f"{self.own_app}_client")

    def keep(self, bench: Bench, case: str) -> None: ...

    def renew(self, bench: Bench, case: str) -> None: ...

    def last_deploy(self, bench: Bench, fleet: Fleet) -> list[Command]:
        return []

    def commands(self, bench: Bench, fleet: Fleet, variant: str, case: str, truth: Truth) -> list[Command]:
        executor, _, setting = variant.partition(" ")
        processes_, _, chunks = setting.partition("/")
        settings: dict[str, Any] = {"TENANT_LIMIT_SET_CALLS": True}
        if chunks:
            settings |= {
                "TENANT_MULTIPROCESSING_MAX_PROCESSES": int(processes_),
                "TENANT_MULTIPROCESSING_CHUNKS": int(chunks),
            }
        elif processes_:
            settings |= {"TENANT_SUBPROCESS_PARALLEL": int(processes_)}
        return [self._manage(bench, fleet, "migrate_schemas", "--tenant", f"--executor={executor}", **settings)]

    def _manage(self, bench: Bench, fleet: Fleet, *arguments: str, **settings: Any) -> Command:
        python = self.python(bench.workload)
        around = bench.django("tenants_settings", fleet.database, **settings)
        return Command(arguments=[python, "manage.py", *arguments], environment=around, cwd=PROJECTS)

    def python(self, workload: Workload) -> Path:
        return environment(f"django-tenants-{workload.name}", ["django-tenants", *workload.requirements])


class DjangoPgschemas:
    name = "django-pgschemas"
    is_peer = True
    remembers = True
    own_app = "pgschemas_fleet"
    most = None
    isolations = frozenset({"schema"})

    def variants(self, case: str) -> Sequence[str]:
        return () if case in {"large", "wagtail"} else ("sequential", "parallel 2", "parallel 4", "parallel 8")

    def prepare(self, bench: Bench, fleet: Fleet) -> None:
        bench.run(self._manage(bench, fleet, "migrate", "--schema", "public", "-v0"))
        _register(bench, fleet, f"{self.own_app}_client")

    def keep(self, bench: Bench, case: str) -> None: ...

    def renew(self, bench: Bench, case: str) -> None: ...

    def last_deploy(self, bench: Bench, fleet: Fleet) -> list[Command]:
        return []

    def commands(self, bench: Bench, fleet: Fleet, variant: str, case: str, truth: Truth) -> list[Command]:
        executor, _, threads = variant.partition(" ")
        arguments = ["migrate", "--include-dynamic-schemas", "--no-create-schemas"]
        settings: dict[str, Any] = {"PGSCHEMAS_LIMIT_SET_CALLS": True}
        if executor == "parallel":
            arguments.append("--parallel")
            settings["PGSCHEMAS_PARALLEL_MAX_PROCESSES"] = int(threads)
        return [self._manage(bench, fleet, *arguments, **settings)]

    def _manage(self, bench: Bench, fleet: Fleet, *arguments: str, **settings: Any) -> Command:
        python = self.python(bench.workload)
        around = bench.django("pgschemas_settings", fleet.database, **settings)
        return Command(arguments=[python, "manage.py", *arguments], environment=around, cwd=PROJECTS)

    def python(self, workload: Workload) -> Path:
        return environment(f"django-pgschemas-{workload.name}", ["django-pgschemas", *workload.requirements])


class Loop:
    """Django's own `migrate`, a process for each tenant."""

    name = "plain migrate"
    is_peer = False
    remembers = False
    own_app = ""
    most = 5
    isolations = frozenset({"schema", "database"})

    def variants(self, case: str) -> Sequence[str]:
        if case == "start":
            return ("django.setup() alone",)
        return () if case == "large" else ("in a loop",)

    def prepare(self, bench: Bench, fleet: Fleet) -> None: ...

    def keep(self, bench: Bench, case: str) -> None: ...

    def renew(self, bench: Bench, case: str) -> None: ...

    def last_deploy(self, bench: Bench, fleet: Fleet) -> list[Command]:
        return []

    def commands(self, bench: Bench, fleet: Fleet, variant: str, case: str, truth: Truth) -> list[Command]:
        if not fleet.homes:
            around = bench.django("stock_settings", fleet.database)
            return [Command(arguments=[plain_python(bench.workload), "-c", SETUP], environment=around, cwd=PROJECTS)]
        return [stock_migrate(bench, home) for home in fleet.homes]


class SqlAlone:
    """The statements that stock Django has sent, without any Django."""

    name = "SQL alone"
    is_peer = False
    remembers = False
    own_app = ""
    most = None
    isolations = frozenset({"schema", "database"})

    def variants(self, case: str) -> Sequence[str]:
        return ("4 connections",)

    def prepare(self, bench: Bench, fleet: Fleet) -> None: ...

    def keep(self, bench: Bench, case: str) -> None: ...

    def renew(self, bench: Bench, case: str) -> None: ...

    def last_deploy(self, bench: Bench, fleet: Fleet) -> list[Command]:
        return []

    def commands(self, bench: Bench, fleet: Fleet, variant: str, case: str, truth: Truth) -> list[Command]:
        batches = ["SELECT app, name FROM django_migrations"]
        if case in FROM_ZERO:
            batches = truth.batches
        elif case == "pending":
            batches = [pending_batch(truth)]
        work = {"dsn": bench.server.url(), "homes": fleet.homes, "batches": batches}
        arguments = [plain_python(bench.workload), "-m", "benchmarks.peers.replay"]
        return [Command(arguments=arguments, cwd=ROOT, given=json.dumps(work))]


TOOLS: dict[str, Tool] = {
    tool.name.replace(" ", "-").lower(): tool
    for tool in (Own(), DjangoTenants(), DjangoPgschemas(), Loop(), SqlAlone())
}


def plain_python(workload: Workload) -> Path:
    """One with what the service needs, as it is installed, and what the tenants' apps do."""
    return environment(f"own-{workload.name}", [*own_requirements(), *workload.requirements])


def stock_migrate(bench: Bench, home: Home, *, recording: Path | None = None) -> Command:
    module = "recording_settings" if recording else "stock_settings"
    around = bench.django(module, home.database, schema=home.schema)
    if recording:
        around["PEERS_RECORDING"] = str(recording)
    return Command(arguments=[plain_python(bench.workload), "manage.py", "migrate"], environment=around, cwd=PROJECTS)


def pending_batch(truth: Truth) -> str:
    """What the last migration has sent, its row included."""
    _, name, _, _ = LAST
    return next(batch for batch in truth.batches if f"'{name}'" in batch)


def _is_there(bench: Bench, database: str) -> bool:
    with databases.cursor_of(bench.server, "postgres") as cursor:
        cursor.execute("SELECT FROM pg_database WHERE datname = %s", [database])
        return cursor.fetchone() is not None


def _register(bench: Bench, fleet: Fleet, table: str) -> None:
    with databases.cursor_of(bench.server, fleet.database) as cursor:
        names = [home.schema for home in fleet.homes]
        cursor.execute(f"INSERT INTO {table} (schema_name) SELECT unnest(%s::text[])", [names])
