"""The events of a run, made from its rows: for whoever was not there to be told."""

from collections.abc import Iterable, Iterator, Sequence

from migrations_api.events import Event, RunEnded, RunPlanned, RunPruned, RunStarted, StepFinished, StepStarted
from migrations_api.models import Action, MigrationRun, RunStep
from migrations_api.plan import Refresh, Reset
from migrations_api.states import DONE_STEP_STATES, StepState
from tenants.models import Tenant


def events_of(run_ids: Iterable[int]) -> Iterator[Event]:
    """What the workers of these runs, which have ended, would have told; nothing of a run that none has claimed.

    Of migrations that are applied and unknown to the code, and of tables that run-syncdb made, the rows know nothing.
    """
    runs = MigrationRun.objects.filter(pk__in=run_ids, attempt__gt=0).order_by("finished_at", "pk")
    ended = list(runs.select_related("applied_before", "applied_after").prefetch_related("steps"))
    names = dict(Tenant.objects.filter(pk__in=[run.tenant_id for run in ended]).values_list("pk", "name"))
    for run in ended:
        # A tenant may be forgotten as soon as its run has ended.
        yield from _events(run, names.get(run.tenant_id, run.tenant_id))


def run_ended(run: MigrationRun, *, steps: int) -> RunEnded:
    return RunEnded(
        run_id=run.pk,
        tenant_id=run.tenant_id,
        state=run.state,
        steps=steps,
        error_code=run.error_code,
        failed_step=run.failed_step,
        message=run.message,
    )


def describe_target(app_label: str, migration_name: str, app_labels: Sequence[str]) -> str:
    """The line that Django's `migrate` prints under "Operations to perform"; a name that is not given is empty."""
    if migration_name == "zero":
        return f"Unapply all migrations: {app_label}"
    if migration_name:
        return f"Target specific migration: {migration_name}, from {app_label}"
    return f"Apply all migrations: {', '.join(app_labels) or '(none)'}"


def describe_action(run: MigrationRun) -> str:
    """The same line for what Django's `migrate` has no word for; empty for a run that migrates."""
    if run.action == Action.ROLLBACK:
        return f"Undo what run {run.undoes_id} applied" if run.undoes_id else "Undo what was applied last"
    return {Action.RESET: str(Reset()), Action.REFRESH: str(Refresh())}.get(Action(run.action), "")


def _events(run: MigrationRun, tenant_name: str) -> Iterator[Event]:
    steps = list(run.steps.all())
    pruned = _pruned(run)
    yield RunStarted(run_id=run.pk, tenant_id=run.tenant_id, tenant_name=tenant_name)
    if run.plan_digest:
        labels = [run.app_label] if run.app_label else list(dict.fromkeys(step.app_label for step in steps))
        target = describe_action(run) or describe_target(run.app_label, run.migration_name, labels)
        yield RunPlanned(run_id=run.pk, tenant_id=run.tenant_id, target=target, steps=len(steps), unknown=())
    for step in steps:
        yield from _step_events(run, step)
    if run.options.get("prune"):
        yield RunPruned(run_id=run.pk, tenant_id=run.tenant_id, migrations=pruned)
    yield run_ended(run, steps=sum(step.state in DONE_STEP_STATES for step in steps) + len(pruned))


def _step_events(run: MigrationRun, step: RunStep) -> Iterator[Event]:
    if step.state == StepState.PENDING:
        return
    file = f"{step.app_label}/{step.name}.py"
    yield StepStarted(run_id=run.pk, tenant_id=run.tenant_id, file=file, backwards=step.backwards)
    if step.state in DONE_STEP_STATES:
        yield StepFinished(
            run_id=run.pk,
            tenant_id=run.tenant_id,
            file=file,
            backwards=step.backwards,
            faked=step.state == StepState.FAKED,
            seconds=step.seconds or 0.0,
        )


def _pruned(run: MigrationRun) -> tuple[str, ...]:
    if not run.options.get("prune") or run.applied_before is None or run.applied_after is None:
        return ()
    return tuple(f"{app}.{name}" for app, name in sorted(run.applied_before.keys - run.applied_after.keys))
