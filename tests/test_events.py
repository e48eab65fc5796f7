import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection

from migrations_api.events import Event
from migrations_api.models import MigrationRun, Rollout
from migrations_api.orchestrator import progress
from migrations_api.orchestrator.requests import Request, request_rollout, request_run
from migrations_api.orchestrator.work import work
from migrations_api.plan import Target
from migrations_api.rest import events
from migrations_api.rest.events import RunWatcher, TooManyStreams, rollout_events, run_events
from migrations_api.serializers.runs import MigrationRunSerializer
from tenants.binding import control_plane
from tenants.models import Tenant


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL", 0.01)


@pytest.fixture
def run(make_tenant: Callable[..., Tenant]) -> MigrationRun:
    return request_run(make_tenant(), Request(target=Target(app_label="users", migration_name="0003"), via="api"))


def carry_out(run: MigrationRun) -> None:
    work(run.pk, emit=lambda event: None, should_stop=lambda: False)
    run.refresh_from_db()


def parsed(chunks: Iterator[bytes]) -> list[dict[str, Any]]:
    """The events as a browser's EventSource reads them; comments and `retry` are left out."""
    found = []
    for block in b"".join(chunks).decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append({"id": fields["id"], "event": fields["event"], "data": json.loads(fields["data"])})
    return found


def test_run_events__of_a_run_that_has_ended(run: MigrationRun) -> None:
    carry_out(run)
    found = parsed(run_events(run.pk))
    assert [each["event"] for each in found] == ["step", "step", "step", "run"]
    assert [each["data"]["state"] for each in found] == ["done", "done", "done", "succeeded"]
    assert found[-1]["data"] == json.loads(json.dumps(MigrationRunSerializer(run).data, default=str))


def test_run_events__tell_of_a_run_while_it_goes_on(run: MigrationRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PACE", 0.0)
    watcher = RunWatcher(run.pk, "")
    first = watcher.look()
    assert [(each.kind, each.data["state"], first.over) for each in first.events] == [("run", "pending", False)]
    assert watcher.look().events == []

    looks = []

    def look(event: Event) -> None:
        with control_plane():
            looks.append(watcher.look())

    work(run.pk, emit=look, should_stop=lambda: False)
    steps = [(each.data["name"], each.data["state"]) for news in looks for each in news.events if each.kind == "step"]
    names = ("0001_initial", "0002_email_unique", "0003_full_name")
    assert steps == [(name, state) for name in names for state in ("running", "done")]
    assert [news.over for news in looks] == [False] * (len(looks) - 1) + [True]


def test_run_events__a_reader_that_comes_back_gets_what_is_new(run: MigrationRun) -> None:
    carry_out(run)
    found = parsed(run_events(run.pk))
    for number, each in enumerate(found):
        assert parsed(run_events(run.pk, last_event_id=each["id"])) == found[number + 1 :]


FOREIGN = ["x", "1.2", "1.2.3", "-1.0.0.a", "²..0.a", "1" * 5000, "9.9.9.x", "\x00", "1.2.3.4.5"]


@pytest.mark.parametrize("last", FOREIGN)
def test_run_events__an_id_that_is_none_of_ours_knows_nothing(run: MigrationRun, last: str) -> None:
    carry_out(run)
    assert len(parsed(run_events(run.pk, last_event_id=last))) == 4


def test_run_events__steps_of_a_new_attempt_are_told_anew(run: MigrationRun) -> None:
    watcher = RunWatcher(run.pk, "")
    answers = iter([False, True])
    work(run.pk, emit=lambda event: None, should_stop=lambda: next(answers), requeues=True)
    assert [each.data["state"] for each in watcher.look().events] == ["done", "pending"]
    carry_out(run)
    assert [each.data["state"] for each in watcher.look().events] == ["done", "done", "done", "succeeded"]


def test_run_events__looking_costs_one_query_while_nothing_happens(
    run: MigrationRun, django_assert_num_queries: Any
) -> None:
    watcher = RunWatcher(run.pk, "")
    watcher.look()
    with django_assert_num_queries(1):
        watcher.look()


def test_stream__keeps_no_connection_between_two_looks(run: MigrationRun) -> None:
    stream = run_events(run.pk)
    assert next(stream) == b"retry: 1000\n\n"
    assert b"event: run\n" in next(stream)
    assert connection.connection is None
    stream.close()  # type: ignore[attr-defined]


def test_stream__keeps_alive_and_ends_after_a_while(run: MigrationRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE", 0.0)
    monkeypatch.setattr(events, "LONGEST", 0.2)
    assert b": keep-alive\n\n" in list(run_events(run.pk))


def test_stream__of_nothing_ends(plane: None) -> None:
    assert parsed(run_events(1)) == []
    assert parsed(rollout_events(1)) == []


def test_streams__are_bounded_and_give_their_place_back(run: MigrationRun) -> None:
    carry_out(run)
    for _ in range(3):
        streams = [run_events(run.pk) for _ in range(events.MAX_STREAMS)]
        with pytest.raises(TooManyStreams):
            run_events(run.pk)
        # Read to the end, closed without having been read, closed half-way, closed twice.
        list(streams[0])
        next(streams[2])
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]
            stream.close()  # type: ignore[attr-defined]


def test_rollout_events__counts_at_each_change(make_tenant: Callable[..., Tenant]) -> None:
    rollout = request_rollout([make_tenant()], Request(via="api"))
    stream = rollout_events(rollout.pk)
    next(stream)
    [first] = parsed(iter([next(stream)]))
    assert (first["event"], first["data"]["state"], first["data"]["runs"]["pending"]) == ("rollout", "pending", 1)

    carry_out(rollout.runs.get())
    Rollout.objects.update(state="succeeded")
    [last] = parsed(stream)
    assert (last["data"]["state"], last["data"]["runs"]["succeeded"]) == ("succeeded", 1)
    assert parsed(rollout_events(rollout.pk, last_event_id=last["id"])) == []
