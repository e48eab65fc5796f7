"""How a rollout goes through its tenants, as numbers."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import floor
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from migrations_api.exceptions import InvalidOptions
from migrations_api.orchestrator.strategy import MAX_WAVES, Amount, Group, Strategy, split

LABELS: Sequence[Mapping[str, str]] = (
    {},
    {"tier": "free"},
    {"tier": "paid"},
    {"tier": "free", "region": "eu"},
    {"region": "eu"},
)

numbers = st.integers(0, 9_999_999)
percents = st.decimals(0, 100, places=4).map(lambda percent: f"{percent}%")
amounts = st.one_of(numbers, numbers.map(str), percents)
sizes = st.one_of(st.integers(1, 60), st.integers(1, 100).map("{}%".format))
label_groups = st.sampled_from([labels for labels in LABELS if labels]).map(lambda labels: {"labels": labels})
groups = st.one_of(sizes, label_groups).map(Group.parse)


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    waves = draw(st.lists(groups, max_size=4))
    canary = draw(st.none() | groups)
    gated = bool(waves or canary)
    return Strategy(
        max_concurrency=draw(st.none() | amounts.map(Amount.parse).filter(lambda amount: not amount.is_nothing)),
        max_per_database=draw(st.none() | st.integers(1, 99)),
        max_failures=Amount.parse(draw(amounts)),
        failure_mode=draw(st.sampled_from(["soft", "strict"])),
        on_error=draw(st.sampled_from(["continue", "pause", "fail"])),
        canary=canary,
        waves=tuple(waves),
        bake_time=draw(st.floats(0, 1e6)) if gated else 0,
        promotion=draw(st.sampled_from(["auto", "manual"])) if gated else "auto",
        progress_deadline=draw(st.none() | st.floats(1, 1e6)),
    )


def strategy(**given: Any) -> Strategy:
    return Strategy.from_dict(given)


@pytest.mark.parametrize(
    ("given", "total", "expected"),
    [
        (5, 3, 5),
        ("5", 100, 5),
        (0, 100, 0),
        ("10%", 50, 5),
        ("10%", 59, 5),
        ("10%", 9, 0),
        ("100%", 7, 7),
        ("0%", 1000, 0),
        ("33.3333%", 3, 0),
        # In binary fractions these come out one too low.
        ("0.29%", 10_000, 29),
        ("1.1%", 1000, 11),
        ("57%", 100, 57),
        ("99.9999%", 1_000_000, 999_999),
    ],
)
def test_amount__drops_the_fraction(given: int | str, total: int, expected: int) -> None:
    assert Amount.parse(given).of(total) == expected


@given(percents, numbers)
def test_amount__is_exact(given: str, total: int) -> None:
    ten_thousandths = int(Decimal(given.rstrip("%")) * 10_000)
    assert Amount.parse(given).of(total) == ten_thousandths * total // 1_000_000


@given(amounts)
@example("007")
def test_amount__reads_what_it_writes(given: int | str) -> None:
    amount = Amount.parse(given)
    assert Amount.parse(amount.value) == amount


@pytest.mark.parametrize(
    "given",
    [
        *["", " 5", "5 ", "5\n", "-1", "+1", "1e3", "1.5", "12345678", "ten", "\u0661\u0660", "\u0661%"],
        *["100.1%", "101%", "-5%", "5 %", "%", ".5%", "5.%", "0.00001%", "5%%"],
        *[None, True, 1.5, -1, ["5"], {"percent": 5}],
    ],
)
def test_amount__refuses_what_is_no_amount(given: object) -> None:
    with pytest.raises(InvalidOptions, match="neither a number of tenants, such as 5, nor a percentage, such as 10%"):
        Amount.parse(given)


def test_amount__refusal_names_what_was_given_and_no_more_than_its_beginning() -> None:
    with pytest.raises(InvalidOptions, match=r"^'half' is neither"):
        Amount.parse("half")
    with pytest.raises(InvalidOptions, match=r"^'x{20}' is neither"):
        Amount.parse("x" * 10_000)


@pytest.mark.parametrize(("given", "nothing"), [(0, True), ("0%", True), ("0.0%", True), (1, False), ("0.1%", False)])
def test_amount__nothing(given: int | str, nothing: bool) -> None:
    assert Amount.parse(given).is_nothing == nothing


@pytest.mark.parametrize("given", [0, "0", "0%", {}, {"labels": {}}, {"labels": "tier"}, {"label": {"a": "b"}}, None])
def test_group__refuses_an_empty_wave(given: object) -> None:
    with pytest.raises(InvalidOptions):
        Group.parse(given)


def test_group__refuses_more_than_labels() -> None:
    with pytest.raises(InvalidOptions, match="with at least one label"):
        Group.parse({"labels": {"tier": "free"}, "size": 5})


@pytest.mark.parametrize(
    ("labels", "takes"), [({"a": "1", "b": "2"}, True), ({"a": "1"}, False), ({"a": "1", "b": "3"}, False), ({}, False)]
)
def test_group__takes_who_has_all_of_its_labels(labels: Mapping[str, str], takes: bool) -> None:
    assert Group.parse({"labels": {"b": 2, "a": "1"}}).takes(labels) == takes


def test_group__of_a_size_takes_nobody_by_labels() -> None:
    assert not Group.parse(5).takes({})


def test_strategy__without_anything_is_empty() -> None:
    assert Strategy().as_dict() == {}
    assert Strategy.from_dict({}) == Strategy()


def test_strategy__is_written_as_it_was_given() -> None:
    given = {
        "max_concurrency": "25%",
        "max_per_database": 2,
        "max_failures": 0,
        "failure_mode": "strict",
        "on_error": "pause",
        "canary": 1,
        "waves": ["10%", {"labels": {"tier": "free"}}],
        "bake_time": 60.0,
        "promotion": "manual",
        "progress_deadline": 600.0,
    }
    assert Strategy.from_dict(given).as_dict() == given


@given(strategies())
def test_strategy__reads_what_it_writes(given: Strategy) -> None:
    assert Strategy.from_dict(given.as_dict()) == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"waves": [1] * (MAX_WAVES + 1)}, "at most 100 waves"),
        ({"max_concurrency": 0}, "max_concurrency is at least 1"),
        ({"max_concurrency": "0%"}, "max_concurrency is at least 1"),
        ({"max_per_database": 0}, "max_per_database is at least 1"),
        ({"progress_deadline": 0}, "progress_deadline is more than 0"),
        ({"failure_mode": "strict"}, "keeps to a max_failures, and none is given"),
        ({"bake_time": 60}, "come between waves; give a canary or waves"),
        ({"promotion": "manual"}, "come between waves; give a canary or waves"),
    ],
)
def test_strategy__what_does_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptions, match=message):
        Strategy.from_dict(given)


@pytest.mark.parametrize(
    "given",
    [
        {"waves": [1] * MAX_WAVES},
        {"failure_mode": "strict", "max_failures": 0},
        {"failure_mode": "strict", "on_error": "pause"},
        {"failure_mode": "strict", "on_error": "fail"},
        {"bake_time": 60, "waves": [1]},
        {"promotion": "manual", "canary": 1},
    ],
)
def test_strategy__what_goes_together(given: dict[str, Any]) -> None:
    assert Strategy.from_dict(given).as_dict() == given


@pytest.mark.parametrize(
    ("given", "total", "allowed"),
    [
        ({}, 100, None),
        ({"on_error": "continue"}, 100, None),
        ({"on_error": "pause"}, 100, 0),
        ({"on_error": "fail"}, 100, 0),
        ({"on_error": "continue", "max_failures": 3}, 100, 3),
        ({"on_error": "pause", "max_failures": "10%"}, 59, 5),
        ({"max_failures": 0}, 100, 0),
        ({"max_failures": "10%"}, 0, 0),
    ],
)
def test_budget__how_many_may_fail(given: dict[str, Any], total: int, allowed: int | None) -> None:
    assert strategy(**given).allowed_failures(total) == allowed


@pytest.mark.parametrize(
    ("max_failures", "total", "failed", "over"),
    [
        (0, 50, 0, False),
        (0, 50, 1, True),
        ("10%", 50, 5, False),
        ("10%", 50, 6, True),
        ("10%", 59, 5, False),
        ("10%", 59, 6, True),
        ("10%", 9, 1, True),
        (0, 0, 0, False),
        ("100%", 3, 3, False),
    ],
)
def test_budget__is_spent_once_more_have_failed_than_may(
    max_failures: int | str, total: int, failed: int, over: bool
) -> None:
    assert strategy(max_failures=max_failures).is_over_budget(failed=failed, total=total) == over


@given(numbers, st.integers(0, 1000), st.integers(0, 100))
def test_budget__by_its_definition(failed: int, total: int, percent: int) -> None:
    over = strategy(max_failures=f"{percent}%").is_over_budget(failed=failed, total=total)
    assert over == (failed > floor(percent * total / 100))


def test_budget__without_one_is_never_spent() -> None:
    assert not strategy().is_over_budget(failed=10_000, total=10_000)


@pytest.mark.parametrize(
    ("given", "failed", "in_flight", "slots"),
    [
        ({}, 0, 0, 4),
        ({"max_concurrency": 2}, 0, 0, 2),
        ({"max_concurrency": 2}, 0, 1, 1),
        ({"max_concurrency": 2}, 0, 2, 0),
        ({"max_concurrency": 2}, 0, 5, 0),
        ({"max_concurrency": "10%"}, 0, 0, 2),
        # 10% of 20 is 2, 1% of it nothing; nothing would never end.
        ({"max_concurrency": "1%"}, 0, 0, 1),
        ({"max_failures": 1}, 1, 0, 4),
        ({"max_failures": 1, "failure_mode": "strict"}, 0, 0, 2),
        ({"max_failures": 1, "failure_mode": "strict"}, 0, 1, 1),
        ({"max_failures": 1, "failure_mode": "strict"}, 1, 0, 1),
        ({"max_failures": 1, "failure_mode": "strict"}, 1, 1, 0),
        ({"max_failures": 1, "failure_mode": "strict", "max_concurrency": 1}, 0, 0, 1),
        ({"on_error": "pause", "failure_mode": "strict"}, 0, 0, 1),
        ({"max_failures": 5, "failure_mode": "strict"}, -2, 0, 4),
    ],
)
def test_slots__of_four(given: dict[str, Any], failed: int, in_flight: int, slots: int) -> None:
    assert strategy(**given).slots(failed=failed, in_flight=in_flight, total=20, limit=4) == slots


@given(strategies(), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_slots__of_no_tenants_divide_by_nothing(given: Strategy, failed: int, in_flight: int, limit: int) -> None:
    assert 0 <= given.slots(failed=failed, in_flight=in_flight, total=0, limit=limit) <= limit


@st.composite
def failing_fleets(draw: st.DrawFn) -> tuple[Strategy, list[bool], int]:
    fails = draw(st.lists(st.booleans(), max_size=60))
    budget = draw(st.one_of(st.integers(0, 12), st.integers(0, 30).map("{}%".format)))
    cap = draw(st.none() | st.integers(1, 9) | st.integers(1, 40).map("{}%".format))
    given = {"max_failures": budget, **({"max_concurrency": cap} if cap else {})}
    return Strategy.from_dict(given), fails, draw(st.integers(1, 20))


def simulate(given: Strategy, fails: Sequence[bool], limit: int, data: st.DataObject) -> tuple[int, int]:
    """How many tenants have failed and how many were started, when those in flight end in any order."""
    waiting, in_flight, failed, started = list(fails), list[bool](), 0, 0
    while True:
        if not given.is_over_budget(failed=failed, total=len(fails)):
            slots = given.slots(failed=failed, in_flight=len(in_flight), total=len(fails), limit=limit - len(in_flight))
            in_flight += waiting[:slots]
            started += len(waiting[:slots])
            waiting = waiting[slots:]
        if not in_flight:
            return failed, started
        for _ in range(data.draw(st.integers(1, len(in_flight)))):
            failed += in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1)))


@given(failing_fleets(), st.data())
def test_slots__strict_overshoots_by_no_more_than_the_failure_that_ends_it(
    fleet: tuple[Strategy, list[bool], int], data: st.DataObject
) -> None:
    soft, fails, limit = fleet
    given = Strategy.from_dict({**soft.as_dict(), "failure_mode": "strict"})
    allowed = given.allowed_failures(len(fails))
    assert allowed is not None
    failed, started = simulate(given, fails, limit, data)
    assert failed <= allowed + 1
    # And it goes on for as long as it may.
    assert started == len(fails) or failed == allowed + 1


@given(failing_fleets(), st.data())
def test_slots__soft_overshoots_by_no_more_than_what_was_in_flight(
    fleet: tuple[Strategy, list[bool], int], data: st.DataObject
) -> None:
    given, fails, limit = fleet
    allowed = given.allowed_failures(len(fails))
    assert allowed is not None
    failed, started = simulate(given, fails, limit, data)
    assert failed <= allowed + limit
    assert started == len(fails) or failed > allowed


def waves(tenants: Sequence[Any], *given: object) -> list[list[Any]]:
    return split(tenants, [Group.parse(each) for each in given], labels=lambda tenant: LABELS[tenant % len(LABELS)])


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ([], [10]),
        ([1], [1, 9]),
        ([1, "50%"], [1, 5, 4]),
        # Of all of them, not of those that are left.
        (["50%", "50%"], [5, 5]),
        (["1%"], [1, 9]),
        ([10], [10]),
        ([99, 1], [10]),
        ([{"labels": {"tier": "free"}}, 1], [4, 1, 5]),
        ([{"labels": {"tier": "nobody's"}}, 1], [1, 9]),
        ([{"labels": {"region": "eu", "tier": "free"}}], [2, 8]),
    ],
)
def test_split__into_waves(given: list[object], sizes: list[int]) -> None:
    assert [len(wave) for wave in waves(range(10), *given)] == sizes


def test_split__a_tenant_is_in_the_first_wave_that_takes_it() -> None:
    free, paid, rest = waves(range(5), {"labels": {"tier": "free"}}, {"labels": {"tier": "paid"}})
    assert (free, paid, rest) == ([1, 3], [2], [0, 4])


@pytest.mark.parametrize("given", [[], [1], ["10%"], [{"labels": {"tier": "free"}}]])
def test_split__of_no_tenants_is_no_wave(given: list[object]) -> None:
    assert waves([], *given) == []


@given(st.lists(st.integers(0, 1000), unique=True, max_size=60), st.lists(groups, max_size=6))
def test_split__has_every_tenant_once_and_in_order(tenants: list[int], chosen: list[Group]) -> None:
    found = split(tenants, chosen, labels=lambda tenant: LABELS[tenant % len(LABELS)])
    assert sorted(tenant for wave in found for tenant in wave) == sorted(tenants)
    assert all(found)
    assert len(found) <= len(chosen) + 1
    for wave in found:
        assert wave == sorted(wave, key=tenants.index)
