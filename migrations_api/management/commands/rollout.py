from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db.models.functions import Now

from migrations_api.management.base import ServiceCommand, positive, tenant_id, user
from migrations_api.management.foreground import carry_out, failure_line
from migrations_api.management.tables import write_table
from migrations_api.models import MigrationRun, RequestedVia, Rollout
from migrations_api.orchestrator import rollout_verbs, verbs
from migrations_api.orchestrator.readiness import is_coordinated
from migrations_api.orchestrator.reports import failure_groups, reports
from migrations_api.serializers.rollouts import RolloutDetailSerializer, RolloutSerializer
from migrations_api.states import RolloutState
from tenants.conf import load_conf

COLUMNS = ("id", "state", "waiting_for", "total", "ended", "failed", "stop_reason", "created_at")


class Command(ServiceCommand):
    help = "List rollouts, look at one, and pause, resume, promote, cancel or retry it."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        listing = actions.add_parser("list", help="The newest twenty.")
        listing.add_argument("--format", choices=["table", "json"], default="table")
        for name, text in {
            "show": "One rollout with its waves.",
            "pause": "Start nothing more; what is in flight goes on to its end.",
            "resume": "Go on with one that is paused.",
            "promote": "Open its next wave now.",
            "cancel": "End it: nothing more is started, what runs stops after its step.",
            "retry": "A new rollout over the tenants that it has not migrated.",
            "skip": "Leave a tenant that is not started out of it.",
        }.items():
            action = actions.add_parser(name, help=text)
            action.add_argument("rollout_id", type=positive, metavar="ID")
            self._add_options(name, action)

    def _add_options(self, name: str, action: CommandParser) -> None:
        if name in {"show", "resume", "retry"}:
            action.add_argument("--format", choices=["table", "json"], default="table")
        if name in {"resume", "retry"}:
            conf = load_conf()
            action.add_argument("--executor", choices=sorted(conf.executors), default=conf.executor)
        if name == "promote":
            action.add_argument("--full", action="store_true", help="All waves that follow as well.")
        if name == "cancel":
            action.add_argument("--interrupt", action="store_true", help="Cancel the statements in flight as well.")
        if name in {"pause", "skip"}:
            action.add_argument("--reason", default="", required=name == "skip")
        if name == "skip":
            action.add_argument("--tenant-id", required=True, type=tenant_id)

    def handle(self, *, action: str, rollout_id: int = 0, **options: Any) -> None:
        if action == "list":
            self.list(**options)
            return
        rollout = Rollout.objects.filter(pk=rollout_id).first()
        if rollout is None:
            raise CommandError(f"Rollout {rollout_id} does not exist. See: manage.py rollout list")
        getattr(self, action)(rollout, **options)

    def list(self, *, format: str, **options: Any) -> None:  # noqa: A002
        found = list(Rollout.objects.order_by("-pk")[:20])
        rows = RolloutSerializer(found, many=True, context={"reports": reports(found)}).data
        if format == "json":
            self.write_json(rows)
            return
        for row in rows:
            row.update(ended=row["progress"]["ended"], failed=row["runs"]["failed"] + row["runs"]["partial"])
            row["waiting_for"] = row["waiting_for"] or ""
        write_table(self.stdout, COLUMNS, [[str(row[name]) for name in COLUMNS] for row in rows])

    def show(self, rollout: Rollout, *, format: str, **options: Any) -> None:  # noqa: A002
        data = RolloutDetailSerializer(rollout, context={"reports": reports([rollout])}).data
        if format == "json":
            self.write_json(data)
            return
        self.stdout.write(f"Rollout {rollout.pk}: {data['state']}{self._why(data)}")
        for wave in data["waves"]:
            runs = ", ".join(f"{count} {state}" for state, count in wave["runs"].items() if count)
            self.stdout.write(f"  Wave {wave['number']}: {runs}")
        progress = data["progress"]
        if progress["per_minute"] is not None:
            eta = "unknown" if progress["eta_seconds"] is None else f"{progress['eta_seconds']:.0f} s"
            self.stdout.write(f"  {progress['per_minute']:g} tenants a minute; left: {eta}")
        for group in failure_groups(rollout):
            self.stdout.write(f"  {failure_line(group)}: {group['message']}")

    def _why(self, data: Any) -> str:
        return f" ({data['stop_reason'] or data['waiting_for']})" if data["stop_reason"] or data["waiting_for"] else ""

    def pause(self, rollout: Rollout, *, reason: str, **options: Any) -> None:
        rollout_verbs.pause(rollout, reason=f"Paused by {user()}{': ' if reason else '.'}{reason}")
        self._tell(rollout)

    def resume(self, rollout: Rollout, *, format: str, executor: str, verbosity: int, **options: Any) -> None:  # noqa: A002
        rollout_verbs.resume(rollout)
        if is_coordinated():
            self._tell(rollout)
            return
        # Nobody else would go on with it.
        lease = Now() + timedelta(seconds=load_conf().lease)
        Rollout.objects.filter(pk=rollout.pk).update(foreground=True, lease_expires_at=lease)
        rollout.refresh_from_db()
        carry_out(self, rollout, executor=executor, output=format, verbosity=verbosity)

    def promote(self, rollout: Rollout, *, full: bool, **options: Any) -> None:
        rollout_verbs.promote(rollout, full=full)
        self._tell(rollout)

    def cancel(self, rollout: Rollout, *, interrupt: bool, **options: Any) -> None:
        rollout_verbs.cancel_rollout(rollout, interrupt=interrupt)
        self._tell(rollout)

    def retry(self, rollout: Rollout, *, format: str, executor: str, verbosity: int, **options: Any) -> None:  # noqa: A002
        again = rollout_verbs.retry_rollout(rollout, by=user(), via=RequestedVia.COMMAND)
        carry_out(self, again, executor=executor, output=format, verbosity=verbosity)

    def skip(self, rollout: Rollout, *, tenant_id: str, reason: str, **options: Any) -> None:
        run = MigrationRun.objects.filter(rollout=rollout, tenant=tenant_id).first()
        if run is None:
            raise CommandError(f"Rollout {rollout.pk} has no tenant '{tenant_id}'.")
        verbs.skip_run(run, by=user(), reason=reason)
        self.stdout.write(f"Tenant '{tenant_id}' is left out of rollout {rollout.pk}.")

    def _tell(self, rollout: Rollout) -> None:
        rollout.refresh_from_db()
        state = RolloutState(rollout.state)
        self.stdout.write(f"Rollout {rollout.pk} is {state}.")
