"""Which tenants a rollout is for, and in which wave each of them is."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from migrations_api.exceptions import InvalidOptions, UnknownRollout, UnknownTenants
from migrations_api.models import MigrationRun, Rollout, TenantObservation
from migrations_api.orchestrator import observations
from migrations_api.orchestrator.fleet import TenantStatus
from migrations_api.orchestrator.holds import hold
from migrations_api.orchestrator.requests import Request, request_rollout
from migrations_api.orchestrator.selection import Selector, Shard, arrange, created_meanwhile, select
from migrations_api.orchestrator.sources import source_for
from migrations_api.orchestrator.strategy import Strategy
from migrations_api.plan import Applied, Target, make_plan
from tenants.models import Isolation, Tenant

pytestmark = pytest.mark.django_db


def add(*tenant_ids: str, isolation: str = Isolation.SCHEMA, **values: Any) -> list[Tenant]:
    """Tenants that are rows and nothing else."""
    given = {"name": "Somebody", "provisioned_at": timezone.now(), **values}
    return Tenant.objects.bulk_create(
        Tenant.at_home(tenant_id=tenant_id, isolation=isolation, **given) for tenant_id in tenant_ids
    )


def many(number: int) -> list[Tenant]:
    return add(*[f"t{index:03}" for index in range(number)])


def ids(**given: Any) -> list[str]:
    return [tenant.tenant_id for tenant in select(Selector.from_dict(given))]


def everything() -> Applied:
    plan = make_plan(source_for(Isolation.SCHEMA), frozenset(), Target())
    return frozenset((step.app_label, step.name) for step in plan.steps)


def see(tenant_id: str, applied: Applied, *, partial: bool = False) -> None:
    observations.after_run(tenant_id, applied, partial=partial)


def queries(do: Callable[[], object]) -> int:
    with CaptureQueriesContext(
        connection,
    ) as captured:
        do()
    return len(captured)


def test_select__without_anything_is_everybody_in_the_order_of_ids() -> None:
    add("initech", "acme")
    add("globex", isolation=Isolation.DATABASE)
    add("zulu", isolation=Isolation.SHARED)
    assert ids() == ["acme", "globex", "initech", "zulu"]


def test_select__of_no_tenants() -> None:
    assert ids() == ids(sample=5, seed=1) == ids(shard="1/2") == ids(status=["pending"]) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tenant_ids": ["globex", "acme", "acme"]}, ["acme", "globex"]),
        ({"exclude": ["acme", "globex"]}, ["initech", "zulu"]),
        ({"tenant_ids": ["acme", "globex"], "exclude": ["acme"]}, ["globex"]),
        ({"tenant_ids": ["acme"], "exclude": ["acme"]}, []),
        ({"labels": {"tier": "free"}}, ["acme", "initech"]),
        ({"labels": {"tier": "free", "region": "eu"}}, ["initech"]),
        ({"labels": {"tier": "nobody's"}}, []),
        ({"isolation": "schema"}, ["acme", "initech"]),
        ({"isolation": "database"}, ["globex"]),
        ({"isolation": "shared"}, ["zulu"]),
        ({"isolation": "schema", "labels": {"region": "eu"}, "exclude": ["acme"]}, ["initech"]),
        ({"tenant_ids": ["acme", "globex"], "labels": {"tier": "free"}}, ["acme"]),
        ({"sample": 10, "labels": {"tier": "free"}, "seed": 1}, ["acme", "initech"]),
    ],
)
def test_select__those_that_fit_everything(given: dict[str, Any], expected: list[str]) -> None:
    add("acme", labels={"tier": "free"})
    add("initech", labels={"tier": "free", "region": "eu"})
    add("globex", isolation=Isolation.DATABASE, labels={"tier": "paid"})
    add("zulu", isolation=Isolation.SHARED)
    assert sorted(ids(**given)) == expected


def test_select__unknown_tenants_are_named() -> None:
    add("acme")
    with pytest.raises(UnknownTenants, match=r"^These tenants do not exist: amce, golbex\.$"):
        ids(tenant_ids=["golbex", "acme"], exclude=["amce"])
    with pytest.raises(UnknownTenants, match=r"x09 and 5 more\.$"):
        ids(exclude=[f"x{index:02}" for index in range(15)])


@pytest.mark.parametrize("name", ["failed_in", "unfinished_in"])
def test_select__unknown_rollout(name: str) -> None:
    with pytest.raises(UnknownRollout, match="Rollout 4711 does not exist"):
        ids(**{name: 4711})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tenant_ids": []}, "tenant_ids is empty"),
        ({"seed": 1}, "A seed is for a sample"),
        ({"sample": 0}, "A sample has at least one tenant"),
        ({"sample": "0%"}, "A sample has at least one tenant"),
        *[
            ({"shard": shard}, "is no shard")
            for shard in ("0/2", "3/2", "1/0", "1", "/", "1/2/3", "a/b", "-1/2", "1/²")
        ],
    ],
)
def test_selector__what_it_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptions, match=message):
        Selector.from_dict(given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"sample": "5%", "seed": 0},
        {
            "tenant_ids": ["acme"],
            "exclude": ["globex"],
            "labels": {"tier": "free"},
            "isolation": "schema",
            "status": ["pending", "ahead"],
            "failed_in": 1,
            "unfinished_in": 2,
            "shard": "2/5",
            "sample": 5,
            "seed": 7,
        },
    ],
)
def test_selector__is_written_as_it_was_given(given: dict[str, Any]) -> None:
    assert Selector.from_dict(given).as_dict() == given


def test_sample__is_the_same_for_the_same_seed() -> None:
    many(60)
    first = ids(sample=10, seed=1)
    assert first == ids(sample=10, seed=1)
    assert set(first) != set(ids(sample=10, seed=2))
    assert len(set(first)) == 10


def test_sample__without_a_seed_gets_one_that_is_kept() -> None:
    seeded = Selector.from_dict({"sample": 10}).seeded()
    assert seeded.seed is not None
    assert seeded.seeded() == seeded
    assert Selector().seeded() == Selector()
    assert len({Selector.from_dict({"sample": 10}).seeded().seed for _ in range(5)}) > 1


@pytest.mark.parametrize(("sample", "size"), [(1, 1), (10, 10), (500, 40), ("10%", 4), ("1%", 1), ("100%", 40)])
def test_sample__is_of_those_that_fit(sample: int | str, size: int) -> None:
    many(60)
    held_back = [f"t{index:03}" for index in range(20)]
    chosen = ids(sample=sample, seed=3, exclude=held_back)
    assert len(chosen) == size
    assert not set(chosen) & set(held_back)


def test_sample__a_larger_one_has_the_smaller_one_in_it() -> None:
    many(60)
    assert set(ids(sample=5, seed=1)) < set(ids(sample=20, seed=1))


def test_shards__have_each_tenant_once() -> None:
    many(60)
    shards = [ids(shard=f"{number}/4") for number in range(1, 5)]
    assert Counter(tenant_id for shard in shards for tenant_id in shard) == Counter(ids())
    assert all(shards)
    assert ids(shard="1/1") == ids()


def test_shards__stay_as_they_are_when_the_fleet_grows() -> None:
    many(30)
    before = [set(ids(shard=f"{number}/4")) for number in range(1, 5)]
    add(*[f"new{index:03}" for index in range(30)])
    after = [set(ids(shard=f"{number}/4")) for number in range(1, 5)]
    assert all(old < new for old, new in zip(before, after, strict=True))


def test_shard__is_the_same_in_every_version() -> None:
    chosen = [Shard.parse(f"{number}/3").has("acme") for number in (1, 2, 3)]
    assert chosen == [True, False, False]


@pytest.fixture
def standings() -> dict[str, str]:
    """A tenant for each status, called like it."""
    names = {status: status.replace("_", "-") for status in TenantStatus}
    add(*[name for status, name in names.items() if status != TenantStatus.UNPROVISIONED])
    add(names[TenantStatus.UNPROVISIONED], provisioned_at=None)
    all_of_them = everything()
    see("up-to-date", all_of_them)
    see("pending", frozenset())
    see("ahead", all_of_them | {("orders", "0099_future")})
    see("partial", frozenset(), partial=True)
    see("held", frozenset())
    TenantObservation.objects.create(tenant_id="unreachable", error_code="unreachable", observed_at=timezone.now())
    hold(Tenant.objects.get(pk="held"), by="ada", reason="audit")
    return dict(names)


@pytest.mark.parametrize("status", list(TenantStatus))
def test_status__is_that_of_the_stored_picture(standings: dict[str, str], status: str) -> None:
    assert ids(status=[status]) == [standings[status]]


def test_status__any_of_several(standings: dict[str, str]) -> None:
    assert ids(status=["pending", "held", "ahead"]) == ["ahead", "held", "pending"]
    assert ids(status=["pending", "held"], exclude=["held"]) == ["pending"]
    assert set(ids(status=list(TenantStatus))) == set(standings.values())


def test_status__held_is_that_wherever_it_stands(standings: dict[str, str]) -> None:
    for tenant_id in ("partial", "unreachable", "up-to-date"):
        hold(Tenant.objects.get(pk=tenant_id), by="ada", reason="audit")
    assert ids(status=["partial", "unreachable", "up_to_date"]) == []
    assert ids(status=["held"]) == ["held", "partial", "unreachable", "up-to-date"]


def rollout_with(**states: str) -> Rollout:
    """One that has ended with its tenants' runs in those states; `skipped_x` is skipped for that reason."""
    rollout = Rollout.objects.create(state="failed", requested_via="api")
    for tenant_id, state in states.items():
        add(tenant_id)
        run_state, _, code = state.partition("_")
        MigrationRun.objects.create(
            tenant_id=tenant_id, rollout=rollout, state=run_state, error_code=code, requested_via="api"
        )
    return rollout


def test_earlier_rollout__failed_and_unfinished() -> None:
    rollout = rollout_with(
        done="succeeded",
        failed="failed",
        torn="partial",
        stopped="canceled",
        held="skipped_held",
        busy="skipped_run_active",
        ghost="skipped_unprovisioned",
        half="skipped_partial",
    )
    add("newcomer")
    assert ids(failed_in=rollout.pk) == ["failed", "torn"]
    assert ids(unfinished_in=rollout.pk) == ["busy", "failed", "half", "stopped", "torn"]
    assert ids(unfinished_in=rollout.pk, exclude=["torn"], tenant_ids=["torn", "busy", "done"]) == ["busy"]


def test_earlier_rollout__another_one_does_not_count() -> None:
    first, second = rollout_with(acme="failed"), rollout_with(globex="canceled")
    assert ids(failed_in=first.pk) == ["acme"]
    assert ids(unfinished_in=second.pk) == ["globex"]
    assert ids(failed_in=first.pk, unfinished_in=second.pk) == []


def newcomers(rollout: Rollout) -> list[str]:
    return [tenant.tenant_id for tenant in created_meanwhile(rollout)]


def rollout_over(**given: Any) -> Rollout:
    """Made an hour ago, by when its tenants had been there for long."""
    Tenant.objects.update(created_at=Now() - timedelta(days=1))
    selector = Selector.from_dict(given)
    rollout = request_rollout(select(selector), Request(via="api"), selector=selector)
    Rollout.objects.filter(pk=rollout.pk).update(created_at=Now() - timedelta(hours=1))
    rollout.refresh_from_db()
    return rollout


def test_created_meanwhile__fit_the_selector_and_are_not_in_it() -> None:
    add("acme", "globex", labels={"tier": "free"})
    rollout = rollout_over(labels={"tier": "free"}, exclude=["globex"])
    assert newcomers(rollout) == []
    add("initech", labels={"tier": "free"})
    add("umbrella", labels={"tier": "paid"})
    assert newcomers(rollout) == ["initech"]


def test_created_meanwhile__until_the_rollout_ended() -> None:
    add("acme")
    rollout = rollout_over()
    rollout.finished_at = timezone.now() - timedelta(minutes=30)
    add("globex", "initech")
    Tenant.objects.filter(pk="globex").update(created_at=Now() - timedelta(minutes=45))
    assert newcomers(rollout) == ["globex"]


@pytest.mark.parametrize(
    "given", [{"tenant_ids": ["acme"]}, {"sample": 1, "seed": 1}, {"shard": "1/1"}, {"status": ["unreachable"]}]
)
def test_created_meanwhile__nobody_joins_a_chosen_few(given: dict[str, Any]) -> None:
    add("acme")
    rollout = rollout_over(**given)
    add("globex")
    assert newcomers(rollout) == []


def waves(**given: Any) -> dict[int, list[str]]:
    arranged = arrange(list(Tenant.objects.all()), Strategy.from_dict(given))
    return {wave: [tenant.tenant_id for tenant in tenants] for wave, tenants in arranged.waves.items()}


def test_arrange__shared_tenants_come_before_all_others() -> None:
    add("globex", "acme", "initech")
    add("zulu", isolation=Isolation.SHARED)
    assert waves() == {0: ["zulu"], 1: ["acme", "globex", "initech"]}
    # They are nobody's canary.
    assert waves(canary=1) == {0: ["zulu"], 1: ["acme"], 2: ["globex", "initech"]}


def test_arrange__without_shared_tenants_begins_with_wave_one() -> None:
    add("acme", "globex")
    assert waves(canary=1) == {1: ["acme"], 2: ["globex"]}


def test_arrange__only_shared_tenants_are_one_wave() -> None:
    add("zulu", isolation=Isolation.SHARED)
    arranged = arrange(list(Tenant.objects.all()), Strategy.from_dict({"canary": 1}))
    assert (list(arranged.waves), arranged.last_wave, arranged.total) == ([0], 0, 1)


def test_arrange__of_nobody() -> None:
    arranged = arrange([], Strategy.from_dict({"canary": 1}))
    assert (arranged.waves, arranged.last_wave, arranged.total) == ({}, 0, 0)


def test_arrange__groups_by_labels_keep_the_order_of_ids() -> None:
    add("initech", "acme", labels={"tier": "free"})
    add("globex")
    assert waves(waves=[{"labels": {"tier": "free"}}]) == {1: ["acme", "initech"], 2: ["globex"]}


def test_arrange__what_cannot_be_started_takes_no_place_of_the_canary() -> None:
    add("a-held", "b-suspended", "c-busy", "d-partial", "e-free", "f-free")
    hold(Tenant.objects.get(pk="a-held"), by="ada", reason="audit")
    Tenant.objects.filter(pk="b-suspended").update(suspended=True)
    run = MigrationRun.objects.create(tenant_id="c-busy", requested_via="api", state="waiting")
    see("d-partial", frozenset(), partial=True)
    arranged = arrange(list(Tenant.objects.all()), Strategy.from_dict({"canary": 1}))
    assert {wave: [each.pk for each in tenants] for wave, tenants in arranged.waves.items()} == {
        1: ["e-free"],
        2: ["f-free"],
    }
    assert arranged.total == 6
    assert {each.tenant.pk: (each.code, each.reason) for each in arranged.left_out} == {
        "a-held": ("held", "The tenant is held by ada (audit)."),
        "b-suspended": ("suspended", "The tenant is suspended."),
        "c-busy": ("run_active", f"Tenant 'c-busy' has an unfinished run: {run.pk}."),
        "d-partial": (
            "partial",
            "The tenant stands between two migrations and has to be repaired, or migrated by itself.",
        ),
    }


def test_arrange__is_what_the_rows_of_a_rollout_say() -> None:
    add("a-held", "acme", "globex", "initech")
    add("zulu", isolation=Isolation.SHARED)
    hold(Tenant.objects.get(pk="a-held"), by="", reason="audit")
    strategy = Strategy.from_dict({"canary": 1, "waves": [1]})
    rollout = request_rollout(Tenant.objects.all(), Request(via="api"), strategy=strategy)
    rows = rollout.runs.order_by("tenant_id").values_list("tenant_id", "wave", "state", "error_code", "message")
    assert list(rows) == [
        ("a-held", 3, "skipped", "held", "The tenant is held by somebody (audit)."),
        ("acme", 1, "pending", "", ""),
        ("globex", 2, "pending", "", ""),
        ("initech", 3, "pending", "", ""),
        ("zulu", 0, "pending", "", ""),
    ]
    assert (rollout.total, rollout.open_wave, rollout.last_wave) == (5, 0, 3)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"status": ["pending", "held", "unreachable"]},
        {"labels": {"tier": "free"}, "isolation": "schema"},
        {"sample": "50%", "seed": 1},
        {"shard": "1/2"},
    ],
)
def test_select_and_arrange__ask_no_more_of_a_larger_fleet(given: dict[str, Any]) -> None:
    def ask() -> object:
        strategy = Strategy.from_dict({"canary": 1, "waves": ["10%", {"labels": {"tier": "free"}}]})
        return arrange(select(Selector.from_dict(given)), strategy)

    def grow(first: int, last: int) -> None:
        for tenant in add(*[f"t{index:03}" for index in range(first, last)], labels={"tier": "free"}):
            see(tenant.tenant_id, frozenset(), partial=not tenant.tenant_id.endswith("1"))

    grow(0, 3)
    ask()
    few = queries(ask)
    grow(3, 30)
    assert queries(ask) == few


def test_request_rollout__asks_no_more_of_a_larger_fleet() -> None:
    def ask(prefix: str, number: int) -> int:
        tenants = add(*[f"{prefix}{index:03}" for index in range(number)])
        return queries(lambda: request_rollout(tenants, Request(via="api"), strategy=Strategy()))

    ask("warm", 1)
    assert ask("few", 3) == ask("many", 30)
