"""A server that has fewer connections to spare than workers would take gets fewer workers, until it has more again."""

import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured

from migrations_api.dispatch.base import Emit, Terms
from migrations_api.dispatch.cap import Cap
from migrations_api.dispatch.parallel import ParallelDispatcher
from migrations_api.events import Event, RunEnded, RunWaiting
from migrations_api.orchestrator.driver import drive
from migrations_api.orchestrator.requests import Request, request_rollout
from tenants.models import Tenant
from tests import catalog, roles
from tests.forks import one_by_one
from tests.processes import wait_until
from tests.small_app import Code, MakeTenant, add_field, migration, standing_at_first


def test_cap__is_halved_once_for_those_that_were_refused_together() -> None:
    cap = Cap(8)
    for _ in range(5):
        cap.shortage()
    assert cap.now == 4


def test_cap__is_never_none(monkeypatch: pytest.MonkeyPatch) -> None:
    instants = iter(range(0, 100, 10))
    monkeypatch.setattr(time, "monotonic", lambda: next(instants))
    cap = Cap(6)
    found = []
    for _ in range(4):
        cap.shortage()
        found.append(cap.now)
    assert found == [3, 1, 1, 1]


def test_cap__grows_again_up_to_where_it_was() -> None:
    cap = Cap(4)
    cap.shortage()
    found = []
    for _ in range(9):
        cap.ended()
        found.append(cap.now)
    # After two of two, three of three, and never above.
    assert found == [2, 3, 3, 3, 4, 4, 4, 4, 4]


def test_dispatcher__has_fewer_workers_after_a_shortage_and_more_again_later(tmp_path: Path) -> None:
    def carry_out(run_id: int, *, emit: Emit, should_stop: Any) -> None:
        (tmp_path / f"{run_id}").touch()
        if run_id < 4:
            # All are in flight when the first is refused.
            wait_until(lambda: len(list(tmp_path.iterdir())) >= 4)
            emit(RunWaiting(run_id=run_id, tenant_id="acme", cause="", seconds=0, is_shortage=True))

    events: list[Event] = []
    terms = Terms(
        work=one_by_one(carry_out),
        max_concurrency=4,
        emit=events.append,
        should_stop=lambda: False,
        on_lost=lambda run_id: None,
    )
    dispatcher = ParallelDispatcher(terms)

    def carry_out_all(*run_ids: int) -> int:
        for run_id in run_ids:
            dispatcher.submit([run_id])
        while dispatcher.held:
            dispatcher.wait(1)
        return dispatcher.free

    # Two, if all were refused at the same moment; those that have ended since may have let in one more.
    fewer = carry_out_all(0, 1, 2, 3)
    assert 1 <= fewer < 4
    assert len(active_children()) <= fewer
    allowed = [carry_out_all(run_id) for run_id in range(4, 14)]
    assert allowed == sorted(allowed)
    assert allowed[-1] == 4
    dispatcher.close()
    assert len(events) == 4
    assert len(list(tmp_path.iterdir())) == 14


def test_rollout__of_more_workers_than_the_server_has_connections_for(
    make_tenant: MakeTenant, code: Code, settings: Any
) -> None:
    code(m2=migration("m2", add_field("total")))
    tenants = standing_at_first(make_tenant, 12)
    shop = settings.TENANT_DATABASES["shop"]
    settings.TENANT_MIGRATIONS = {**settings.TENANT_MIGRATIONS, "backoff": 0.1, "max_backoff": 0.5, "attempts": 10}
    # Each worker has a session with the tenant and one beside it.
    with roles.role("LOGIN CONNECTION LIMIT 5") as server:
        user, rights = server["USER"], "GRANT ALL ON {0} TO {2}; GRANT ALL ON ALL TABLES IN {0} TO {2}"
        for tenant in tenants:
            schema = f'SCHEMA "{tenant.schema_name}"'
            owned = f'ALTER TABLE "{tenant.schema_name}".orders_order OWNER TO {user}'
            statement = f"{rights.format(schema, '', user)}; {owned}"
            catalog.query(catalog.dsn(configured.TENANT_DATABASES["shop"]), statement)
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "shop": server}
        events: list[Event] = []
        rollout = request_rollout(Tenant.objects.all(), Request())
        drive(rollout, executor="parallel", max_concurrency=6, emit=events.append, should_stop=lambda: False)
        settings.TENANT_DATABASES = {**settings.TENANT_DATABASES, "shop": shop}
    rollout.refresh_from_db()
    assert rollout.state == "succeeded"
    assert {event.state for event in events if isinstance(event, RunEnded)} == {"succeeded"}
