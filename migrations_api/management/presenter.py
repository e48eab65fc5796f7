"""The promised text of a run, from its events. A tenant's lines stay together however many are worked on at once."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress

from django.core.management.base import OutputWrapper
from django.core.management.color import Style

from migrations_api.events import (
    Event,
    RunEnded,
    RunPlanned,
    RunPruned,
    RunStarted,
    RunWaiting,
    StepFinished,
    StepStarted,
)
from migrations_api.models import MigrationRun
from migrations_api.states import RunState
from tenants.exceptions import AuthenticationFailed, ServerUnreachable

MIGRATED, UNCHANGED, FAILED, SKIPPED, NOT_STARTED = "migrated", "unchanged", "failed", "skipped", "not started"
STOPPED = "stopped half-way"

_RESULTS = {
    RunState.SUCCEEDED: MIGRATED,
    RunState.FAILED: FAILED,
    RunState.PARTIAL: FAILED,
    RunState.SKIPPED: SKIPPED,
    RunState.CANCELED: NOT_STARTED,
}


def result_of(event: RunEnded) -> str:
    if event.state == RunState.SUCCEEDED and not event.steps:
        return UNCHANGED
    if event.state == RunState.CANCELED and event.error_code == "locked":
        return FAILED
    if event.state == RunState.CANCELED and event.steps:
        return STOPPED
    return _RESULTS[RunState(event.state)]


class Presenter:
    """Prints one tenant's run as Django's `migrate` would, with the tenant named."""

    def __init__(self, stdout: OutputWrapper, style: Style, *, verbosity: int) -> None:
        self.ended: list[RunEnded] = []
        self._stdout = stdout
        self._style = style
        self._verbosity = verbosity
        self._printers: dict[type[Event], Callable[..., str]] = {
            RunStarted: self.run_started,
            RunPlanned: self.run_planned,
            RunPruned: self.run_pruned,
            StepStarted: self.step_started,
            StepFinished: self.step_finished,
            RunWaiting: self.run_waiting,
            RunEnded: self.run_ended,
        }
        self._in_step: set[int] = set()

    def __call__(self, event: Event) -> None:
        text = self._printers[type(event)](event)
        if isinstance(event, RunEnded):
            self.ended.append(event)
        if self._verbosity >= 1 and text:
            with suppress(BrokenPipeError):  # nobody reads any more, which is no migration's failure
                self.write(event, text)

    def write(self, event: Event, text: str) -> None:
        self._stdout.write(text, ending="")
        self._stdout.flush()

    def run_started(self, event: RunStarted) -> str:
        return f"Running migrations for tenant: {event.tenant_name}\n"

    def run_planned(self, event: RunPlanned) -> str:
        ahead = ""
        if event.unknown:
            ahead = f"  Applied, but unknown to this code (the tenant is ahead): {', '.join(event.unknown)}\n"
        nothing = "" if event.steps else "  No migrations to apply.\n"
        return f"Operations to perform:\n  {event.target}\n{ahead}Running migrations:\n{nothing}"

    def run_pruned(self, event: RunPruned) -> str:
        lines = [f"  Pruning {name} OK" for name in event.migrations] or ["  No migrations to prune."]
        return "\n".join(["Pruning migrations:", *lines, ""])

    def step_started(self, event: StepStarted) -> str:
        self._in_step.add(event.run_id)
        return f"  {'Undoing ' if event.backwards else ''}{event.file} ..."

    def step_finished(self, event: StepFinished) -> str:
        self._in_step.discard(event.run_id)
        took = f" ({event.seconds:.3f}s)" if self._verbosity >= 2 else ""
        return f" {self._style.SUCCESS('FAKED' if event.faked else 'OK')}{took}\n"

    def run_waiting(self, event: RunWaiting) -> str:
        # Nothing has failed yet: red is for what ends with an exit code other than 0.
        broken = self._end_step(event, self._style.WARNING("INTERRUPTED"))
        return f"{broken}  Trying again in {event.seconds:.1f}s: {event.cause}\n"

    def run_ended(self, event: RunEnded) -> str:
        broken = self._end_step(event, self._style.ERROR("FAILED"))
        if event.state == RunState.SUCCEEDED:
            return f"Migrations completed successfully for tenant '{event.tenant_id}'.\n"
        return broken

    def _end_step(self, event: Event, word: str) -> str:
        if event.run_id not in self._in_step:
            return ""
        self._in_step.discard(event.run_id)
        return f" {word}\n"


class FleetPresenter(Presenter):
    """Prints a rollout, tenant by tenant; a tenant's lines are held back until it ends unless `live`."""

    def __init__(self, stdout: OutputWrapper, style: Style, *, verbosity: int, live: bool, continues: bool) -> None:
        super().__init__(stdout, style, verbosity=verbosity)
        self._live = live
        self._continues = continues
        self._held: defaultdict[int, list[str]] = defaultdict(list)

    def write(self, event: Event, text: str) -> None:
        if self._live:
            super().write(event, text)
            return
        self._held[event.run_id].append(text)
        if isinstance(event, RunEnded):
            super().write(event, "".join(self._held.pop(event.run_id)))

    def run_started(self, event: RunStarted) -> str:
        return f"Migrating tenant: {event.tenant_id}\n"

    def run_planned(self, event: RunPlanned) -> str:
        if event.unknown:
            return f"  Applied, but unknown to this code (the tenant is ahead): {', '.join(event.unknown)}\n"
        return ""

    def run_ended(self, event: RunEnded) -> str:
        result = result_of(event)
        if result == MIGRATED:
            text = f"✓ Tenant '{event.tenant_id}' migrated successfully.\n\n"
        elif result == UNCHANGED:
            text = f"✓ Tenant '{event.tenant_id}' is up to date.\n\n"
        elif result == FAILED:
            on = "Continuing with next tenant...\n" if self._continues else ""
            text = f"✗ Migrations failed for tenant '{event.tenant_id}': {describe(event)}\n{on}\n"
        else:
            text = f"- Tenant '{event.tenant_id}' {result}: {event.message}\n\n"
        return self._end_step(event, self._style.ERROR("FAILED")) + text

    def summary(self, results: dict[str, str]) -> str:
        """The closing table: every tenant of the rollout once, and totals that count each kind apart."""
        lines = ["Migration Summary:"]
        marks = {MIGRATED: "✓", UNCHANGED: "✓", FAILED: "✗", SKIPPED: "-", NOT_STARTED: "-", STOPPED: "-"}
        words = {MIGRATED: "migrated successfully", FAILED: "FAILED"}
        lines += [f"  {marks[result]} {tenant} - {words.get(result, result)}" for tenant, result in results.items()]
        counts = Counter(results.values())
        rest = [f"{counts[kind]} {kind}" for kind in (UNCHANGED, FAILED, SKIPPED, NOT_STARTED)]
        rest += [f"{counts[STOPPED]} {STOPPED}"] if counts[STOPPED] else []
        noun = "tenant" if counts[MIGRATED] == 1 else "tenants"
        lines.append(f"  Total: {counts[MIGRATED]} {noun} migrated, {', '.join(rest)}")
        return "\n".join(lines) + "\n"


def describe(ended: RunEnded | MigrationRun) -> str:
    """What went wrong and in which step; the server's words and rows never come along."""
    partial = " (the tenant stands between two migrations)" if ended.state == RunState.PARTIAL else ""
    step = f"{ended.failed_step}: " if ended.failed_step else ""
    return f"{step}{explain(ended.error_code, ended.message)}{partial}"


def describe_finding(finding: Mapping[str, str]) -> str:
    """What a run that succeeded has left that is worth knowing."""
    if finding["code"] == "unvalidated_constraint":
        return f"the constraint {finding['detail']} is NOT VALID; rows from before it may break it."
    if finding["code"] == "not_copied":
        return f"not copied from a template, but migrated: {finding['detail']}"
    return f"{finding['code']}: {finding['detail']}"


def explain(error_code: str, message: str) -> str:
    """What the server said, with what that means for the tenant."""
    if error_code in {ServerUnreachable.code, AuthenticationFailed.code}:
        return f"Cannot connect to the tenant's database: {message}"
    return message
