from contextlib import nullcontext
from functools import partial
from typing import Any

from django.core.management.base import CommandError, CommandParser

from migrations_api.events import RunEnded
from migrations_api.exceptions import RunActive
from migrations_api.management.base import (
    EXIT_FAILED,
    EXIT_SOME_FAILED,
    ServiceCommand,
    add_migrate_arguments,
    exit_with,
    positive,
    request_of,
    try_again_later,
)
from migrations_api.management.interrupt import graceful_stop
from migrations_api.management.plans import check_question, write_plan
from migrations_api.management.presenter import (
    FAILED,
    NOT_STARTED,
    STOPPED,
    FleetPresenter,
    describe,
    explain,
    result_of,
)
from migrations_api.management.progress import with_bar, without_bar
from migrations_api.models import Rollout
from migrations_api.orchestrator.fleet import plans_for
from migrations_api.orchestrator.requests import Request, concerned_tenants, request_rollout
from migrations_api.orchestrator.rollouts import drive
from migrations_api.serializers import MigrationRunSerializer
from migrations_api.states import RunState
from tenants.conf import load_conf
from tenants.exceptions import ServiceError
from tenants.models import Isolation, Tenant

UNFINISHED = frozenset({FAILED, NOT_STARTED, STOPPED})


class Command(ServiceCommand):
    help = "Migrate all tenants: shared ones first, then the others in the order of their ids."

    def add_arguments(self, parser: CommandParser) -> None:
        conf = load_conf()
        add_migrate_arguments(parser)
        parser.add_argument("--isolation-type", choices=Isolation.values, help="Only tenants of this kind.")
        parser.add_argument("--executor", choices=sorted(conf.executors), default=conf.executor)
        parser.add_argument("--max-concurrency", type=positive, default=conf.max_concurrency, metavar="N")
        parser.add_argument(
            "--on-error",
            choices=Rollout.OnError.values,
            default=Rollout.OnError.CONTINUE,
            help="What a failing tenant means for those not yet started.",
        )
        parser.add_argument("--format", choices=["table", "json"], default="table")

    def handle(self, *, plan: bool, check: bool, isolation_type: str | None, **options: Any) -> None:
        request = request_of(options)
        tenants = list(Tenant.objects.filter(**{"isolation": isolation_type} if isolation_type else {}))
        if plan or check:
            self._show_plans(tenants, request, plan=plan, check=check, output=options["format"])
            return
        self._migrate(tenants, request, **options)

    def _show_plans(self, tenants: list[Tenant], request: Request, *, plan: bool, check: bool, output: str) -> None:
        check_question(request)
        pending = unknown = False
        for tenant, planned in plans_for(concerned_tenants(tenants, request.target), request.target):
            if isinstance(planned, ServiceError):
                unknown = True
                self.stderr.write(
                    f"✗ No plan for tenant '{tenant.tenant_id}': {explain(planned.code, planned.message)}"
                )
                continue
            pending = pending or bool(planned.steps)
            if plan:
                write_plan(self, tenant.tenant_id, planned, output=output)
        if unknown:
            exit_with(EXIT_SOME_FAILED)
        if check and pending:
            exit_with(EXIT_FAILED)

    def _migrate(
        self,
        tenants: list[Tenant],
        request: Request,
        *,
        executor: str,
        max_concurrency: int,
        on_error: str,
        format: str,  # noqa: A002
        verbosity: int,
        **options: Any,
    ) -> None:
        quiet = format == "json" or verbosity < 1
        make = partial(
            FleetPresenter,
            style=self.style,
            verbosity=0 if quiet else verbosity,
            live=executor == "sequential",
            continues=on_error == Rollout.OnError.CONTINUE,
        )
        rollout = request_rollout(tenants, request, on_error=on_error)
        shown = (
            nullcontext(without_bar(make, self.stdout)) if quiet else with_bar(make, self.stdout, rollout.runs.count())
        )
        with graceful_stop(self.stderr.write) as should_stop, shown as (presenter, emit):
            rollout = drive(
                rollout, executor=executor, max_concurrency=max_concurrency, emit=emit, should_stop=should_stop
            )
        results = self._results(presenter.ended, rollout)
        if format == "json":
            for run in rollout.runs.prefetch_related("steps").order_by("wave", "tenant_id").iterator(chunk_size=200):
                self.write_json(MigrationRunSerializer(run).data)
        elif verbosity >= 1:
            self.stdout.write(
                presenter.summary(results) if results else "There are no tenants to migrate.\n", ending=""
            )
        if UNFINISHED & set(results.values()):
            raise CommandError(self._verdict(results), returncode=EXIT_SOME_FAILED)

    def _results(self, ended: list[RunEnded], rollout: Rollout) -> dict[str, str]:
        """What became of each tenant; the reasons that no event has told go to stderr."""
        results = {event.tenant_id: result_of(event) for event in ended}
        for run in rollout.runs.exclude(tenant_id__in=results).order_by("wave", "tenant_id"):
            results[run.tenant_id] = NOT_STARTED if run.state == RunState.CANCELED else FAILED
            if run.error_code == RunActive.code:
                self.stderr.write(f"✗ {run.message}\n{try_again_later()}")
            elif run.state != RunState.CANCELED:
                reason = describe(run) or run.waiting_cause
                self.stderr.write(f"✗ Migrations failed for tenant '{run.tenant_id}': {reason}")
        return results

    def _verdict(self, results: dict[str, str]) -> str:
        bad = sum(result in UNFINISHED for result in results.values())
        return f"{bad} of {len(results)} tenants {'was' if bad == 1 else 'were'} not migrated."
