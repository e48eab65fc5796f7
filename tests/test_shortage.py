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


def in_flight(folder: Path) -> int:
    return len(list(folder.glob("*.busy")))


def test_dispatcher__has_fewer_workers_after_a_shortage_and_more_again_later(tmp_path: Path) -> None:
    (tmp_path / "short").touch()

    def carry_out(run_id: int, *, emit: Emit, should_stop: Any) -> None:
        mine = tmp_path / f"{run_id}.busy"
        mine.touch()
        time.sleep(0.02)
        if (tmp_path / "short").exists() and in_flight(tmp_path) > 2:
            emit(RunWaiting(run_id=run_id, tenant_id="acme", cause="", seconds=0, is_shortage=True))
        (tmp_path / f"{run_id}.done").write_text(str(in_flight(tmp_path)))
        mine.unlink()

    events: list[Event] = []
    dispatcher = ParallelDispatcher(
        Terms(
            work=carry_out,
            max_concurrency=4,
            emit=events.append,
            should_stop=lambda: False,
            on_lost=lambda run_id: None,
        )
    )
    workers = []
    for run_id in range(60):
        if run_id == 30:
            (tmp_path / "short").unlink()
        while not dispatcher.free:
            dispatcher.wait(1)
        dispatcher.submit(run_id)
        workers.append(len(active_children()))
    dispatcher.close()
    assert max(workers[:10]) == 4
    assert min(workers[10:30]) <= 2
    assert max(workers[50:]) == 4
    # Some were refused while it found out, and when it tried one more; not each time.
    assert 0 < len(events) < 30
    assert len(list(tmp_path.glob("*.done"))) == 60


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
