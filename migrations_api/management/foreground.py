"""Carry out a rollout in this process, show it, and end the command as the rollout ends."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

from django.core.management.base import CommandError
from django.db.models import Count, Q

from migrations_api.dispatch.history import run_ended
from migrations_api.events import RunEnded
from migrations_api.exceptions import RunActive
from migrations_api.management.base import EXIT_SOME_FAILED, ServiceCommand, try_again_later
from migrations_api.management.interrupt import graceful_stop
from migrations_api.management.presenter import (
    FAILED,
    NOT_STARTED,
    SKIPPED,
    STOPPED,
    FleetPresenter,
    describe,
    result_of,
)
from migrations_api.management.progress import with_bar, without_bar
from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator.driver import drive
from migrations_api.orchestrator.endings import LEFT_BEHIND, failure_groups
from migrations_api.orchestrator.rollout_verbs import is_abandoned
from migrations_api.orchestrator.selection import newcomers
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.states import ACTIVE_ROLLOUT_STATES, DONE_STEP_STATES, RolloutState, RunState
from tenants.conf import load_conf

UNFINISHED = frozenset({FAILED, NOT_STARTED, STOPPED})


def carry_out(command: ServiceCommand, rollout: Rollout, *, executor: str, output: str, verbosity: int) -> None:
    """Raises CommandError with exit code 3 when a tenant was not migrated."""
    quiet = output == "json" or verbosity < 1
    strategy = Strategy.from_dict(rollout.strategy)
    make = partial(
        FleetPresenter,
        style=command.style,
        verbosity=0 if quiet else verbosity,
        live=executor == "sequential",
        continues=strategy.allowed_failures(rollout.total) is None,
    )
    shown = (
        nullcontext(without_bar(make, command.stdout))
        if quiet
        else with_bar(make, command.stdout, rollout.runs.active().count)
    )
    with graceful_stop(command.stderr.write) as should_stop, shown as (presenter, emit):
        rollout = drive(
            rollout,
            executor=executor,
            max_concurrency=_pool_size(strategy, rollout.total),
            emit=emit,
            should_stop=should_stop,
            on_gate=_Gatekeeper(command),
        )
    results = _results(command, presenter.ended, rollout)
    if output == "json":
        from migrations_api.management import documents  # noqa: PLC0415 - REST framework is not for the others

        for run in rollout.runs.prefetch_related("steps").order_by("wave", "tenant_id").iterator(chunk_size=200):
            command.write_json(documents.of_run(run))
    elif verbosity >= 1:
        command.stdout.write(presenter.summary(results) if results else "There are no tenants to migrate.\n", ending="")
    unfinished = UNFINISHED & set(results.values())
    _tell_what_is_left(command, rollout, failure_groups(rollout) if unfinished else ())
    if unfinished:
        raise CommandError(_verdict(results), returncode=EXIT_SOME_FAILED)


def _pool_size(strategy: Strategy, total: int) -> int:
    if strategy.max_concurrency is None:
        return load_conf().max_concurrency
    return strategy.max_concurrency.at_least_one_of(total)


class _Gatekeeper:
    """Says once for each wave what the next one waits for."""

    def __init__(self, command: ServiceCommand) -> None:
        self._command = command
        self._told = -1

    def __call__(self, rollout: Rollout) -> None:
        if rollout.open_wave != self._told and (line := gate_line(rollout)):
            self._told = rollout.open_wave
            self._command.stderr.write(line)


def gate_line(rollout: Rollout) -> str:
    """What the next wave of a running rollout waits for; empty if it waits for nothing."""
    promote = f"manage.py rollout promote {rollout.pk}"
    if rollout.awaits_promotion:
        return f"Wave {rollout.open_wave} has ended. Open the next one with: {promote}"
    if rollout.next_wave_at is not None:
        at = f"{rollout.next_wave_at:%H:%M:%S} UTC"
        return f"Wave {rollout.open_wave} has ended. The next one opens at {at}; at once with: {promote}"
    return ""


def _results(command: ServiceCommand, ended: list[RunEnded], rollout: Rollout) -> dict[str, str]:
    """What became of each tenant; the reasons that no event has told go to stderr."""
    results = {event.tenant_id: result_of(event) for event in ended}
    if len(results) == rollout.total:
        return results
    done = Count("steps", filter=Q(steps__state__in=DONE_STEP_STATES))
    untold = rollout.runs.exclude(tenant_id__in=results).annotate(done=done).order_by("wave", "tenant_id")
    busy = False
    for run in untold:
        results[run.tenant_id] = result = _result(run, steps=run.done)  # type: ignore[attr-defined]  # annotated
        busy = busy or run.error_code == RunActive.code
        if result in {FAILED, SKIPPED}:
            command.stderr.write(_reason_line(run, result))
    if busy:
        command.stderr.write(try_again_later())
    return results


def _result(run: MigrationRun, *, steps: int) -> str:
    if run.is_active:
        return NOT_STARTED if run.state == RunState.PENDING else FAILED
    if run.state == RunState.SKIPPED and run.error_code in LEFT_BEHIND:
        return FAILED
    return result_of(run_ended(run, steps=steps))


def _reason_line(run: MigrationRun, result: str) -> str:
    if run.is_active:
        cause = run.waiting_cause or "its worker was lost"
        return f"✗ Run {run.pk} of tenant '{run.tenant_id}' is not settled: {cause}"
    if result == SKIPPED:
        return f"- Tenant '{run.tenant_id}' skipped: {run.message}"
    if run.error_code == RunActive.code:
        return f"✗ {run.message}"
    if run.state == RunState.SKIPPED:
        return f"✗ Tenant '{run.tenant_id}' was not migrated: {run.message}"
    return f"✗ Migrations failed for tenant '{run.tenant_id}': {describe(run)}"


def _tell_what_is_left(command: ServiceCommand, rollout: Rollout, failures: Iterable[Mapping[str, object]]) -> None:
    for group in failures:
        if group["error_code"] not in LEFT_BEHIND:  # each of those has been told
            command.stderr.write(failure_line(group))
    if created := newcomers(rollout):
        command.stderr.write(newcomers_line(created))
    if rollout.stop_reason:
        word = "is paused" if rollout.state == RolloutState.PAUSED else "was stopped"
        command.stderr.write(f"Rollout {rollout.pk} {word}: {rollout.stop_reason}")
    if following := what_next(rollout):
        command.stderr.write(following)


def failure_line(group: Mapping[str, object]) -> str:
    """As in: 190 x UniqueViolation in orders.0004_unique_number, with the sign for times."""
    place = f" in {group['failed_step']}" if group["failed_step"] else ""
    return f"{group['count']} × {group['error_class'] or group['error_code']}{place}"


def newcomers_line(created: Sequence[str]) -> str:
    return f"Created meanwhile, and not migrated by this rollout: {', '.join(created)}"


def what_next(rollout: Rollout) -> str:
    """What to type next; empty where there is nothing to be done."""
    if rollout.state == RolloutState.PAUSED:
        return f"Go on with:  manage.py rollout resume {rollout.pk}\nEnd it with: manage.py rollout cancel {rollout.pk}"
    retry = f"For those that were not migrated: manage.py rollout retry {rollout.pk}"
    if rollout.state in {RolloutState.FAILED, RolloutState.CANCELED}:
        return retry
    if rollout.state in ACTIVE_ROLLOUT_STATES and is_abandoned(rollout):
        return f"Whoever carried it out has ended before it did. {retry}"
    return gate_line(rollout) if rollout.state == RolloutState.RUNNING else ""


def _verdict(results: dict[str, str]) -> str:
    bad = sum(result in UNFINISHED for result in results.values())
    return f"{bad} of {len(results)} tenants {'was' if bad == 1 else 'were'} not migrated."
