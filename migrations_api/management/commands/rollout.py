from collections.abc import Iterator
from typing import Any, Final

from django.core.management.base import CommandError, CommandParser

from migrations_api.exceptions import InvalidTransition, UnknownRollout
from migrations_api.management.base import ServiceCommand, failed, positive, reason, tenant_id, try_again_later, user
from migrations_api.management.foreground import carry_out, failure_line, newcomers_line, what_next
from migrations_api.management.tables import write_table
from migrations_api.models import MigrationRun, RequestedVia, Rollout
from migrations_api.orchestrator import rollout_verbs, verbs
from migrations_api.orchestrator.abandoned import settle_abandoned
from migrations_api.orchestrator.endings import NOT_MIGRATED, failure_groups
from migrations_api.orchestrator.reports import reports
from migrations_api.orchestrator.retries import retry_rollout
from migrations_api.orchestrator.rollout_verbs import is_abandoned
from migrations_api.orchestrator.selection import SHARED_WAVE
from migrations_api.serializers.rollouts import RolloutDetailSerializer, RolloutSerializer
from migrations_api.states import ACTIVE_ROLLOUT_STATES, RolloutState
from tenants.conf import load_conf

SHOWN: Final = 20
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
            action.add_argument("--reason", type=reason, required=name == "skip", help="Shown to whoever asks.")
        if name == "skip":
            action.add_argument("--tenant-id", required=True, type=tenant_id)

    def handle(self, *, action: str, rollout_id: int = 0, **options: Any) -> None:
        if action == "list":
            self.list(**options)
            return
        rollout = Rollout.objects.filter(pk=rollout_id).first()
        if rollout is None:
            raise failed(UnknownRollout.code, f"Rollout {rollout_id} does not exist. See: manage.py rollout list")
        if action != "show" and is_abandoned(rollout):
            settle_abandoned()
        getattr(self, action)(rollout, **options)

    def list(self, *, format: str, **options: Any) -> None:  # noqa: A002
        found = list(Rollout.objects.order_by("-pk")[:SHOWN])
        rows = RolloutSerializer(found, many=True, context={"reports": reports(found)}).data
        if format == "json":
            self.write_json(rows)
        elif rows:
            cells = map(_cells, found, rows)
            shown = [["" if each[name] is None else str(each[name]) for name in COLUMNS] for each in cells]
            write_table(self.stdout, COLUMNS, shown)
        else:
            self.stdout.write("There are no rollouts. Start one with: manage.py migratealltenants")

    def show(self, rollout: Rollout, *, format: str, **options: Any) -> None:  # noqa: A002
        data = RolloutDetailSerializer(rollout, context={"reports": reports([rollout])}).data
        if format == "json":
            self.write_json(data)
            return
        reason = f": {rollout.stop_reason}" if rollout.stop_reason else "."
        lines = [f"Rollout {rollout.pk} is {data['state']}{reason}", *map(_wave_line, data["waves"])]
        if data["progress"]["per_minute"] is not None:
            lines.append(f"  {_speed(data['progress'])}")
        lines += [f"  {failure_line(group)}: {group['message']}" for group in failure_groups(rollout)]
        lines += _left_lines(rollout)
        if data["newcomers"]:
            lines.append(f"  {newcomers_line(data['newcomers'])}")
        self.stdout.write("\n".join([*lines, *filter(None, [what_next(rollout)])]))

    def pause(self, rollout: Rollout, *, reason: str | None, **options: Any) -> None:
        rollout_verbs.pause(rollout, reason=f"Paused by {user()}{f': {reason}' if reason else '.'}")
        self._tell(rollout)

    def resume(self, rollout: Rollout, *, format: str, executor: str, verbosity: int, **options: Any) -> None:  # noqa: A002
        rollout_verbs.resume(rollout)
        if not rollout_verbs.take_over(rollout):
            self._tell(rollout)
            return
        rollout.refresh_from_db()
        carry_out(self, rollout, executor=executor, output=format, verbosity=verbosity)

    def promote(self, rollout: Rollout, *, full: bool, **options: Any) -> None:
        rollout_verbs.promote(rollout, full=full)
        self._tell(rollout)

    def cancel(self, rollout: Rollout, *, interrupt: bool, **options: Any) -> None:
        rollout_verbs.cancel_rollout(rollout, interrupt=interrupt)
        self._tell(rollout)

    def retry(self, rollout: Rollout, *, format: str, executor: str, verbosity: int, **options: Any) -> None:  # noqa: A002
        try:
            again = retry_rollout(rollout, by=user(), via=RequestedVia.COMMAND)
        except InvalidTransition as error:
            hint = f"\n{try_again_later()}" if rollout.foreground and rollout.state in ACTIVE_ROLLOUT_STATES else ""
            raise failed(error.code, f"{error.message}{hint}") from error
        carry_out(self, again, executor=executor, output=format, verbosity=verbosity)

    def skip(self, rollout: Rollout, *, tenant_id: str, reason: str, **options: Any) -> None:
        run = MigrationRun.objects.filter(rollout=rollout, tenant=tenant_id).first()
        if run is None:
            raise CommandError(f"Rollout {rollout.pk} has no tenant '{tenant_id}'.")
        verbs.skip_run(run, by=user(), reason=reason)
        self.stdout.write(f"Tenant '{tenant_id}' is left out of rollout {rollout.pk}.")

    def _tell(self, rollout: Rollout) -> None:
        rollout.refresh_from_db()
        self.stdout.write(f"Rollout {rollout.pk} is {_STANDS.get(rollout.state, rollout.state)}.")
        if following := what_next(rollout):
            self.stdout.write(following)


_STANDS: Final[dict[str, str]] = {
    RolloutState.PAUSING: "pausing: nothing more is started, and what is in flight goes on to its end",
    RolloutState.CANCELING: "canceling: nothing more is started, and what is in flight is stopped",
}


def _cells(rollout: Rollout, row: Any) -> dict[str, Any]:
    return {
        **row,
        "ended": row["progress"]["ended"],
        "failed": row["runs"]["failed"] + row["runs"]["partial"],
        "created_at": f"{rollout.created_at:%Y-%m-%d %H:%M}",
    }


def _wave_line(wave: Any) -> str:
    runs = ", ".join(f"{count} {state}" for state, count in wave["runs"].items() if count)
    return f"  Wave {wave['number']}{' (shared)' if wave['number'] == SHARED_WAVE else ''}: {runs}"


def _speed(progress: Any) -> str:
    left = "" if progress["eta_seconds"] is None else f"; {progress['eta_seconds']:.0f} s left at this speed"
    return f"{progress['per_minute']:g} tenants a minute{left}"


def _left_lines(rollout: Rollout) -> Iterator[str]:
    """Who has not been migrated: so many by name."""
    left = rollout.runs.filter(NOT_MIGRATED)
    names = list(left.order_by("tenant_id").values_list("tenant_id", flat=True)[:SHOWN])
    if names:
        more = left.count() - len(names)
        yield f"  Not migrated: {', '.join(names)}{f' and {more} more' if more else ''}"
