"""What every run writes, each as one statement: by a query for each row, records would cost more than migrations.

All are conditional on the attempt, the fencing token: False means that the run is no longer that attempt's.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

from django.db import connection
from django.db.models import Model
from psycopg2.extras import Json

from migrations_api.models.fleet import TenantObservation
from migrations_api.models.prepared import Statement, fetch_row, fetch_rows
from migrations_api.models.runs import RECORDING, Action, AppliedSet, MigrationRun, Rollout, RunStep
from migrations_api.plan import Applied, Plan, Step, fingerprint
from migrations_api.states import IN_FLIGHT_RUN_STATES, RUN_TRANSITIONS, STARTING_ROLLOUT_STATES, RunState, StepState
from tenants.models import Tenant

M = TypeVar("M", bound=Model)


def _table(model: type[Model]) -> str:
    return f'"{model._meta.db_table}"'


def _columns_of(model: type[Model], alias: str) -> str:
    return ", ".join(f'{alias}."{field.column}"' for field in model._meta.concrete_fields)


_RUN, _STEP = _table(MigrationRun), _table(RunStep)

# The placeholders that several statements have, and their types.
_RUNS: Final = {"run": "bigint", "attempt": "int"}

# The rollouts' rows are locked, so that one that is being paused starts nothing that was chosen before. Last in the row
# is what the tenant's last run has left, if that has migrated it as Django does.
CLAIM: Final = Statement(
    "claim_runs",
    f"""
    WITH rollout AS (
        SELECT id, state FROM {_table(Rollout)}
         WHERE id IN (SELECT rollout_id FROM {_RUN} WHERE id = ANY(%(runs)s)) FOR SHARE
    )
    UPDATE {_RUN} r
       SET state = %(to)s, attempt = attempt + 1, waiting_cause = '', started_at = coalesce(started_at, now()),
           lease_expires_at = now() + %(lease)s * interval '1 second'
      FROM {_table(Tenant)} t
     WHERE r.id = ANY(%(runs)s) AND t.tenant_id = r.tenant_id AND r.state = ANY(%(sources)s)
       AND (r.state <> %(pending)s
            OR NOT EXISTS (SELECT FROM rollout o WHERE o.id = r.rollout_id AND o.state <> ALL(%(starting)s)))
    RETURNING {_columns_of(MigrationRun, "r")}, {_columns_of(Tenant, "t")},
              (SELECT CASE WHEN b.state = %(succeeded)s AND b.action = %(migrate)s AND NOT b.options ?| %(recording)s
                           THEN b.applied_after_id END
                 FROM {_RUN} b
                WHERE b.tenant_id = r.tenant_id AND b.applied_after_id IS NOT NULL ORDER BY b.id DESC LIMIT 1)
""",  # noqa: S608 - names of our own tables
    {
        "runs": "bigint[]",
        "lease": "float8",
        "to": "text",
        "sources": "text[]",
        "pending": "text",
        "starting": "text[]",
        "succeeded": "text",
        "migrate": "text",
        "recording": "text[]",
    },
)
# The applied set is kept by its name before anything refers to it; thousands of tenants stand at a few sets.
BEGIN: Final = Statement(
    "begin_run",
    f"""
    WITH applied AS (
        INSERT INTO {_table(AppliedSet)} (fingerprint, migrations)
        SELECT %(set)s, %(migrations)s::jsonb WHERE %(set)s IS NOT NULL ON CONFLICT DO NOTHING
    ), mine AS (
        UPDATE {_RUN} SET waiting_cause = '', plan_digest = %(digest)s, applied_before_id = %(set)s,
               model_marks = %(marks)s
         WHERE id = %(run)s AND attempt = %(attempt)s AND state = ANY(%(in_flight)s) RETURNING id
    ), planned AS (
        INSERT INTO {_STEP} (run_id, position, app_label, name, backwards, atomic, state, statements)
        SELECT mine.id, step.*, %(pending)s, 0
          FROM mine, unnest(%(positions)s::int[], %(apps)s::text[], %(names)s::text[], %(backwards)s::bool[],
                            %(atomics)s::bool[]) step
    )
    SELECT count(*) FROM mine
""",  # noqa: S608
    _RUNS
    | {
        "set": "text",
        "migrations": "text",
        "digest": "text",
        "marks": "jsonb",
        "in_flight": "text[]",
        "pending": "text",
        "positions": "int[]",
        "apps": "text[]",
        "names": "text[]",
        "backwards": "bool[]",
        "atomics": "bool[]",
    },
)
PROGRESS: Final = Statement(
    "progress_run",
    f"""
    WITH mine AS (
        SELECT id, cancel_requested FROM {_RUN}
         WHERE id = %(run)s AND attempt = %(attempt)s AND state = ANY(%(in_flight)s)
    ), progress AS (
        UPDATE {_STEP} s
           SET state = told.state, seconds = told.seconds, started_at = now() - told.ago * interval '1 second',
               operation = CASE WHEN s.position = %(journaled)s THEN 0 ELSE s.operation END,
               statements = CASE WHEN s.position = %(journaled)s THEN 0 ELSE s.statements END
          FROM mine, unnest(%(positions)s::int[], %(states)s::text[], %(seconds)s::float[], %(agos)s::float[])
               told (position, state, seconds, ago)
         WHERE s.run_id = mine.id AND s.position = told.position
    )
    SELECT cancel_requested FROM mine
""",  # noqa: S608
    _RUNS
    | {
        "positions": "int[]",
        "states": "text[]",
        "seconds": "float8[]",
        "agos": "float8[]",
        "in_flight": "text[]",
        "journaled": "int",
    },
)
JOURNAL: Final = Statement(
    "journal_run",
    f"""
    UPDATE {_STEP} s SET operation = %(operation)s, statements = %(statements)s,
           first_operation = coalesce(s.first_operation, CASE WHEN %(statements)s > 0 THEN %(operation)s END)
      FROM {_RUN} r WHERE r.id = %(run)s AND r.attempt = %(attempt)s AND r.state = ANY(%(in_flight)s)
       AND s.run_id = r.id AND s.position = %(position)s
 RETURNING 1
""",  # noqa: S608
    _RUNS | {"in_flight": "text[]", "position": "int", "operation": "int", "statements": "int"},
)
# A look at the tenant that is newer than the run's end has seen what it left.
END: Final = Statement(
    "end_runs",
    f"""
    WITH told AS (
        SELECT * FROM jsonb_to_recordset(%(runs)s)
            AS (run bigint, attempt int, "to" text, sources text[], late float8, "set" text, findings jsonb,
                error_code text, error_class text, sqlstate text, failed_step text, message text)
    ), applied AS (
        INSERT INTO {_table(AppliedSet)} (fingerprint, migrations)
        SELECT * FROM jsonb_to_recordset(%(sets)s) AS (fingerprint text, migrations jsonb) ON CONFLICT DO NOTHING
    ), mine AS (
        UPDATE {_RUN} r
           SET state = told."to", finished_at = now() - told.late * interval '1 second', lease_expires_at = NULL,
               waiting_cause = '', findings = told.findings,
               applied_after_id = coalesce(told."set", r.applied_after_id), error_code = told.error_code,
               error_class = told.error_class, sqlstate = told.sqlstate, failed_step = told.failed_step,
               message = told.message
          FROM told
         WHERE r.id = told.run AND r.attempt = told.attempt AND r.state = ANY(told.sources)
     RETURNING r.id, r.tenant_id, told."set", told."to" = %(partial)s AS is_partial, told.late
    ), progress AS (
        UPDATE {_STEP} s
           SET state = step.state, seconds = step.seconds, started_at = now() - step.ago * interval '1 second'
          FROM mine JOIN jsonb_to_recordset(%(steps)s)
            AS step (run bigint, position int, state text, seconds float8, ago float8) ON step.run = mine.id
         WHERE s.run_id = step.run AND s.position = step.position
    ), seen AS (
        INSERT INTO {_table(TenantObservation)} AS o (tenant_id, applied_id, partial, error_code, detail, observed_at)
        SELECT t.tenant_id, mine."set", mine.is_partial, '', '',
               clock_timestamp() - mine.late * interval '1 second'
          FROM {_table(Tenant)} t JOIN mine ON mine.tenant_id = t.tenant_id WHERE mine."set" IS NOT NULL
           FOR NO KEY UPDATE OF t
            ON CONFLICT (tenant_id) DO UPDATE
           SET applied_id = excluded.applied_id, partial = excluded.partial, error_code = '', detail = '',
               observed_at = excluded.observed_at
         WHERE o.observed_at <= excluded.observed_at
    )
    SELECT id FROM mine
""",  # noqa: S608
    {"runs": "jsonb", "sets": "jsonb", "steps": "jsonb", "partial": "text"},
)

# What tells one run of a rollout from another.
_OWN: Final = {"id", "tenant", "wave"}
_ALIKE: Final = [str(field.column) for field in MigrationRun._meta.concrete_fields if field.name not in _OWN]
ADD_SQL: Final = f"""
    INSERT INTO {_RUN} (tenant_id, wave, {", ".join(_ALIKE)})
    SELECT other.tenant_id, other.wave, {", ".join(f"r.{column}" for column in _ALIKE)}
      FROM {_RUN} r, unnest(%(tenants)s::text[], %(waves)s::int[]) WITH ORDINALITY other (tenant_id, wave, place)
     WHERE r.id = %(run)s ORDER BY other.place
"""  # noqa: S608


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """How far one step is: `seconds` that it took, None while it runs, and how many seconds `ago` it was begun."""

    position: int
    state: str
    seconds: float | None
    ago: float


def add_alike(run: MigrationRun, others: Sequence[tuple[str, int]]) -> None:
    """Insert the same run for each of those tenants and waves; thousands of rows differ in nothing else."""
    values: dict[str, Any] = {"run": run.pk, "tenants": [pk for pk, _ in others], "waves": [wave for _, wave in others]}
    with connection.cursor() as cursor:
        cursor.execute(ADD_SQL, values)


def claim(run_id: int, *, lease: float) -> MigrationRun | None:
    """Make the run `running` as a new attempt, for `lease` seconds; None when somebody else did or it ended.

    None as well while its rollout starts nothing: it was chosen before that was paused.
    """
    return next(iter(claim_all([run_id], lease=lease)), None)


def claim_all(run_ids: Sequence[int], *, lease: float) -> list[MigrationRun]:
    """The same for several, in their order; those that were not to be had are missing."""
    sources, to = RUN_TRANSITIONS["claim"]
    values: dict[str, Any] = {"runs": list(run_ids), "lease": lease, "to": to, "sources": list(sources)}
    states: dict[str, Any] = {
        "pending": RunState.PENDING,
        "starting": list(STARTING_ROLLOUT_STATES),
        "succeeded": RunState.SUCCEEDED,
        "migrate": Action.MIGRATE,
        "recording": list(RECORDING),
    }
    claimed = [_claimed(row) for row in fetch_rows(CLAIM, {**values, **states})]
    return sorted(claimed, key=lambda run: run_ids.index(run.pk))


def _claimed(row: Sequence[Any]) -> MigrationRun:
    own = len(MigrationRun._meta.concrete_fields)
    run = _loaded(MigrationRun, row[:own])
    run.tenant = _loaded(Tenant, row[own:-1])
    run.left_before = row[-1]
    return run


def _loaded(model: type[M], row: Sequence[Any]) -> M:
    loaded = {
        field.attname: field.from_db_value(value, None, connection) if hasattr(field, "from_db_value") else value
        for field, value in zip(model._meta.concrete_fields, row, strict=True)
    }
    return model.from_db(connection.alias, list(loaded), list(loaded.values()))


def begin(run: MigrationRun, plan: Plan, *, positions: Mapping[Step, int]) -> bool:
    """Record the plan that is about to be carried out, and from where; of its steps, those that have a position."""
    return bool(
        _value(
            BEGIN,
            run,
            digest=plan.digest,
            **_set(plan.applied),
            marks=Json(list(plan.marks or ())),
            in_flight=list(IN_FLIGHT_RUN_STATES),
            pending=StepState.PENDING,
            positions=list(positions.values()),
            apps=[step.app_label for step in positions],
            names=[step.name for step in positions],
            backwards=[step.backwards for step in positions],
            atomics=[step.atomic for step in positions],
        )
    )


def progress(run: MigrationRun, told: Sequence[StepProgress], *, journaled: int | None = None) -> bool | None:
    """Whether the run is to be canceled; None if it is no longer that attempt's.

    `journaled` is the position of a step whose journal begins with this: nothing of it has been sent.
    """
    values = {"in_flight": list(IN_FLIGHT_RUN_STATES), "journaled": journaled}
    canceled: bool | None = _value(PROGRESS, run, **values, **_columns(told))
    return canceled


def journal(run: MigrationRun, position: int, *, operation: int, statements: int) -> bool:
    """How far a step has come that is not atomic."""
    place = {"position": position, "operation": operation, "statements": statements}
    return bool(_value(JOURNAL, run, in_flight=list(IN_FLIGHT_RUN_STATES), **place))


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """That a run has ended by `action` a while ago, and where its tenant stands since then, if that is known.

    `values` are fields of the run; how many seconds ago a step was begun is counted from `at`, of the monotonic clock.
    """

    run: MigrationRun
    action: str
    told: Sequence[StepProgress]
    after: Applied | None
    findings: Sequence[Mapping[str, str]]
    values: Mapping[str, str]
    at: float

    def row(self) -> dict[str, Any]:
        sources, to = RUN_TRANSITIONS[self.action]
        return {
            "run": self.run.pk,
            "attempt": self.run.attempt,
            "to": to,
            "sources": list(sources & IN_FLIGHT_RUN_STATES),
            "late": time.monotonic() - self.at,
            "set": None if self.after is None else fingerprint(self.after),
            "findings": self.findings,
            **self.values,
        }

    def steps(self) -> list[dict[str, Any]]:
        late = time.monotonic() - self.at
        return [{"run": self.run.pk, **vars(step), "ago": step.ago + late} for step in self.told]


def end_all(ends: Sequence[RunEnd]) -> set[int]:
    """End the runs, with their steps, and keep where their tenants stand; returns those whose attempt was newest."""
    sets = {end.after for end in ends if end.after is not None}
    values = {
        "runs": Json([end.row() for end in ends]),
        "sets": Json([{"fingerprint": fingerprint(each), "migrations": sorted(each)} for each in sets]),
        "steps": Json([step for end in ends for step in end.steps()]),
        "partial": RunState.PARTIAL,
    }
    return {run_id for (run_id,) in fetch_rows(END, values)}


def _set(applied: Applied | None) -> dict[str, str | None]:
    return {"set": None, "migrations": None} if applied is None else dict(_named(applied))


@lru_cache(maxsize=64)
def _named(applied: Applied) -> dict[str, str]:
    return {"set": fingerprint(applied), "migrations": json.dumps(sorted(applied))}


def _columns(told: Sequence[StepProgress]) -> dict[str, list[Any]]:
    return {
        "positions": [each.position for each in told],
        "states": [each.state for each in told],
        "seconds": [each.seconds for each in told],
        "agos": [each.ago for each in told],
    }


def _value(statement: Statement, run: MigrationRun, **values: Any) -> Any:
    row = fetch_row(statement, {"run": run.pk, "attempt": run.attempt, **values})
    return None if row is None else row[0]
