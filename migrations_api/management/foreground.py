"""Carry out a rollout in this process, show it, and end the command as the rollout ends."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

from django.core.management.base import CommandError

from migrations_api.events import RunEnded
from migrations_api.exceptions import RunActive
from migrations_api.management.base import EXIT_SOME_FAILED, ServiceCommand, try_again_later
from migrations_api.management.interrupt import graceful_stop
from migrations_api.management.presenter import FAILED, NOT_STARTED, STOPPED, FleetPresenter, describe, result_of
from migrations_api.management.progress import with_bar, without_bar
from migrations_api.models import Rollout
from migrations_api.orchestrator.driver import drive
from migrations_api.orchestrator.endings import LEFT_BEHIND
from migrations_api.orchestrator.reports import failure_groups, newcomers
from migrations_api.orchestrator.strategy import OnError, Strategy
from migrations_api.serializers.runs import MigrationRunSerializer
from migrations_api.states import RolloutState, RunState
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
        continues=strategy.on_error == OnError.CONTINUE,
    )
    shown = nullcontext(without_bar(make, command.stdout)) if quiet else with_bar(make, command.stdout, rollout.total)
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
        for run in rollout.runs.prefetch_related("steps").order_by("wave", "tenant_id").iterator(chunk_size=200):
            command.write_json(MigrationRunSerializer(run).data)
    elif verbosity >= 1:
        command.stdout.write(presenter.summary(results) if results else "There are no tenants to migrate.\n", ending="")
    _tell_what_is_left(command, rollout)
    if UNFINISHED & set(results.values()):
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
        if rollout.open_wave == self._told:
            return
        if rollout.awaits_promotion:
            following = f"Open the next with: manage.py rollout promote {rollout.pk}"
        elif rollout.next_wave_at is not None:
            following = f"The next opens at {rollout.next_wave_at:%H:%M:%S} UTC."
        else:
            return
        self._told = rollout.open_wave
        self._command.stderr.write(f"Wave {rollout.open_wave} has ended. {following}")


def _results(command: ServiceCommand, ended: list[RunEnded], rollout: Rollout) -> dict[str, str]:
    """What became of each tenant; the reasons that no event has told go to stderr."""
    results = {event.tenant_id: result_of(event) for event in ended}
    for run in rollout.runs.exclude(tenant_id__in=results).order_by("wave", "tenant_id"):
        left_behind = run.state == RunState.SKIPPED and run.error_code not in LEFT_BEHIND
        results[run.tenant_id] = (
            "skipped" if left_behind else NOT_STARTED if run.state in {RunState.CANCELED, RunState.PENDING} else FAILED
        )
        if run.error_code == RunActive.code:
            command.stderr.write(f"✗ {run.message}\n{try_again_later()}")
        elif left_behind:
            command.stderr.write(f"- Tenant '{run.tenant_id}' skipped: {run.message}")
        elif run.state not in {RunState.CANCELED, RunState.PENDING}:
            reason = describe(run) or run.waiting_cause
            command.stderr.write(f"✗ Migrations failed for tenant '{run.tenant_id}': {reason}")
    return results


def _tell_what_is_left(command: ServiceCommand, rollout: Rollout) -> None:
    for group in failure_groups(rollout):
        command.stderr.write(failure_line(group))
    if created := newcomers(rollout):
        command.stderr.write(f"Created meanwhile, and not migrated by this rollout: {', '.join(created)}")
    if rollout.stop_reason:
        command.stderr.write(f"Rollout {rollout.pk} was stopped: {rollout.stop_reason}")
    if rollout.state == RolloutState.PAUSED:
        command.stderr.write(
            f"It is paused. Go on with: manage.py rollout resume {rollout.pk}\n"
            f"End it with:          manage.py rollout cancel {rollout.pk}"
        )
    elif rollout.state in {RolloutState.FAILED, RolloutState.CANCELED}:
        command.stderr.write(f"For those that were not migrated: manage.py rollout retry {rollout.pk}")


def failure_line(group: Mapping[str, object]) -> str:
    """As in: 190 x UniqueViolation in orders.0004_unique_number, with the sign for times."""
    place = f" in {group['failed_step']}" if group["failed_step"] else ""
    return f"{group['count']} × {group['error_class'] or group['error_code']}{place}"


def _verdict(results: dict[str, str]) -> str:
    bad = sum(result in UNFINISHED for result in results.values())
    return f"{bad} of {len(results)} tenants {'was' if bad == 1 else 'were'} not migrated."
