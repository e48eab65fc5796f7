"""Fills a control plane and prints, as JSON, a token and what to ask with how many queries each answer takes.

A process of its own, for `reads`: the service's settings have to be those of the server that was just started.
"""

import argparse
import json
import sys
from collections.abc import Iterable

import django

django.setup()

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import connection
from django.db.models import Model
from django.test import Client
from django.test.utils import CaptureQueriesContext
from psycopg2 import sql

from migrations_api.models import ApiToken, AppliedSet, MigrationRun, Role, Rollout, RunStep, TenantObservation
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.sources import source_for
from migrations_api.rest import metrics
from tenants.models import Isolation, Tenant
from tenants.provisioning import create_tenant

TENANTS = """
    INSERT INTO tenants_tenant (tenant_id, name, isolation, database, database_name, schema_name, labels, created_at,
                                provisioned_at)
    SELECT format('t%%s', lpad(n::text, 6, '0')), format('Tenant %%s', n), 'database', 'shop', format('t%%s_db', n),
           'public', jsonb_build_object('tier', (ARRAY['free', 'paid'])[1 + n %% 2]), now(), now()
      FROM generate_series(1, %s) n
"""
OBSERVATIONS = """
    INSERT INTO migrations_api_tenantobservation (tenant_id, applied_id, partial, error_code, detail, observed_at)
    SELECT tenant_id, CASE WHEN n %% 100 > 1 THEN (%s::text[])[1 + n %% %s] END, n %% 500 = 3,
           CASE WHEN n %% 100 < 2 THEN 'unreachable' ELSE '' END, '', now()
      FROM (SELECT tenant_id, row_number() OVER (ORDER BY tenant_id) n FROM tenants_tenant) numbered
"""
# One rollout after the other, each over the whole fleet.
RUNS = """
    INSERT INTO migrations_api_migrationrun (tenant_id, rollout_id, wave, state, waiting_cause, app_label,
           migration_name, options, requested_by, requested_via, created_at, started_at, finished_at, attempt,
           cancel_requested, expected_digest, plan_digest, applied_after_id, error_code, error_class, sqlstate,
           failed_step, message)
    SELECT format('t%%s', lpad((1 + (n - 1) %% %s)::text, 6, '0')), (%s::bigint[])[1 + (n - 1) / %s], 1,
           CASE WHEN n %% 50 = 0 THEN 'failed' WHEN n %% 1000 = 1 THEN 'partial' ELSE 'succeeded' END, '', '',
           '', '{}', 'ci', 'api', now(), now(), now() + n %% 30 * interval '1 second', 1,
           false, '', '', %s, CASE WHEN n %% 50 = 0 THEN 'migration_failed' ELSE '' END, '', '',
           CASE WHEN n %% 50 = 0 THEN 'orders.0003_order_total' ELSE '' END, ''
      FROM generate_series(1, %s) n
"""
STEPS = """
    INSERT INTO migrations_api_runstep (run_id, position, app_label, name, backwards, atomic, state, started_at,
                                        seconds)
    SELECT id, position, 'orders', format('000%s_step', position), false, true, 'done', now(), 0.1
      FROM migrations_api_migrationrun, generate_series(1, 3) position
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("tenants", "runs", "migrated"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    fill(tenants=options.tenants, runs=options.runs)
    for number in range(options.migrated):
        create_tenant(tenant_id=f"real{number}", name="", isolation=Isolation.SCHEMA, database="shop")
    token = new_token()
    asked = {name: [url, queries(url, token)] for name, url in questions()}
    json.dump({"token": token, "asked": asked}, sys.stdout)


def give_defaults(model: type[Model]) -> None:
    """Those that Django keeps to itself, for columns that the statements here do not name."""
    for field in model._meta.concrete_fields:
        default = field.get_db_prep_save(field.get_default(), connection)
        if field.null or field.primary_key or default is None:
            continue
        table, column = sql.Identifier(model._meta.db_table), sql.Identifier(field.column)
        statement = sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT {}")
        with connection.cursor() as cursor:
            cursor.execute(statement.format(table, column, sql.Literal(default)))


def fill(*, tenants: int, runs: int) -> None:
    for model in (Tenant, TenantObservation, MigrationRun, RunStep):
        give_defaults(model)
    keys = sorted(source_for(Isolation.DATABASE).migrations)
    sets = [AppliedSet.store(frozenset(keys[:length])) for length in range(len(keys) + 1)]
    rollouts = Rollout.objects.bulk_create(
        Rollout(requested_via="api", state="succeeded") for _ in range(-(-runs // tenants))
    )
    ids = [rollout.pk for rollout in rollouts]
    with connection.cursor() as cursor:
        cursor.execute(TENANTS, [tenants])
        cursor.execute(OBSERVATIONS, [sets, len(sets)])
        cursor.execute(RUNS, [tenants, ids, tenants, sets[-1], runs])
        cursor.execute(STEPS)
        cursor.execute("VACUUM ANALYZE")


def new_token() -> str:
    user = get_user_model().objects.create(username="benchmark")
    user.groups.add(Group.objects.get(name=Role.ADMIN))
    return ApiToken.objects.create_key(user=user, name="benchmark", scope=Role.ADMIN)[1]


def questions() -> Iterable[tuple[str, str]]:
    middle = Tenant.objects.order_by("pk")[Tenant.objects.count() // 2]
    run = MigrationRun.objects.order_by("-pk")[MigrationRun.objects.count() // 2]
    rollout = run.rollout_id
    return {
        "tenants": "/tenants",
        "tenants, pending": "/tenants?status=pending",
        "tenants, by name": "/tenants?ordering=-name",
        "tenants, search": "/tenants?search=99",
        "tenant": f"/tenants/{middle.pk}",
        "fleet": "/fleet",
        "fleet plan": "/tenants/plan",
        "runs": "/runs",
        "runs, failed": "/runs?state=failed",
        "runs of a tenant": f"/runs?tenant_id={middle.pk}",
        "run": f"/runs/{run.pk}",
        "rollouts": "/rollouts",
        "rollout": f"/rollouts/{rollout}",
        "rollout runs": f"/rollouts/{rollout}/runs",
        "rollout failures": f"/rollouts/{rollout}/failures",
        "metrics": "/metrics",
    }.items()


def queries(url: str, token: str) -> int:
    """Of a process that has answered nothing before."""
    client = Client(headers={"Authorization": f"Bearer {token}"}, SERVER_NAME="localhost")
    client.get("/rollouts")  # writes when the token was used last
    observations._places.clear()
    metrics.cache.clear()
    with CaptureQueriesContext(connection) as captured:
        response = client.get(url)
    assert response.status_code == 200, (url, response.content)
    return len(captured)


if __name__ == "__main__":
    main()
