from typing import Any

import pytest

from tenants.conf import Conf, load_conf


def test_conf__without_the_setting_has_the_defaults(settings: Any) -> None:
    del settings.TENANT_MIGRATIONS
    assert load_conf() == Conf()


def test_conf__takes_what_is_given_and_leaves_the_rest(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lock_timeout": 7, "max_concurrency": 9}
    assert load_conf() == Conf(lock_timeout=7, max_concurrency=9)


def test_conf__adds_an_executor_to_those_there_are(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"executors": {"mine": "my.Dispatcher"}, "executor": "mine"}
    assert load_conf().executors == {**Conf().executors, "mine": "my.Dispatcher"}
    assert load_conf().executor == "mine"


def test_conf__leaves_the_setting_as_it_is(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"executors": {"mine": "my.Dispatcher"}}
    load_conf()
    assert settings.TENANT_MIGRATIONS == {"executors": {"mine": "my.Dispatcher"}}


def test_conf__unknown_keys_are_named_beside_the_known(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lock_timout": 1, "Lease": 2}
    with pytest.raises(ValueError, match=r"unknown keys Lease, lock_timout; known are: attempts, .*_worker\.$"):
        load_conf()


@pytest.mark.parametrize(
    "key",
    ["max_concurrency", "tenants_per_worker", "attempts", "read_batch", "read_concurrency", "max_pending_runs"],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "4", None, [1]])
def test_conf__counts_are_whole_numbers_from_1(settings: Any, key: str, value: object) -> None:
    settings.TENANT_MIGRATIONS = {key: value}
    with pytest.raises(ValueError, match=f"^'{key}' is .*; it takes a whole number of at least 1\\.$"):
        load_conf()


@pytest.mark.parametrize(
    "key", ["connect_timeout", "lease", "heartbeat", "backoff", "lock_timeout", "statement_timeout", "lock_wait"]
)
@pytest.mark.parametrize("value", [-1, True, False, "2", None, float("nan"), float("inf")])
def test_conf__times_are_numbers_of_seconds(settings: Any, key: str, value: object) -> None:
    settings.TENANT_MIGRATIONS = {key: value}
    with pytest.raises(ValueError, match=f"^'{key}' is .*; it takes a number of at least 0"):
        load_conf()


@pytest.mark.parametrize("key", ["connect_timeout", "lease", "heartbeat", "backoff", "pretend_timeout"])
def test_conf__some_times_cannot_be_0(settings: Any, key: str) -> None:
    settings.TENANT_MIGRATIONS = {key: 0}
    with pytest.raises(ValueError, match=f"'{key}' is 0"):
        load_conf()


@pytest.mark.parametrize("value", [0, 3599.9, True, "86400", None, float("inf")])
def test_conf__idempotency_keys_are_kept_for_an_hour_or_longer(settings: Any, value: object) -> None:
    settings.TENANT_MIGRATIONS = {"idempotency_ttl": value}
    with pytest.raises(ValueError, match=r"^'idempotency_ttl' is .*; it takes a number of at least 3600\.$"):
        load_conf()


def test_conf__a_timeout_of_0_is_none(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lock_timeout": 0, "statement_timeout": 0, "lock_wait": 0}
    assert load_conf().lock_timeout == 0


def test_conf__two_heartbeats_fit_into_a_lease(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"lease": 4, "heartbeat": 2}
    load_conf()
    settings.TENANT_MIGRATIONS = {"lease": 4, "heartbeat": 2.1}
    with pytest.raises(ValueError, match="'heartbeat' must be at most half of 'lease'"):
        load_conf()


def test_conf__executor_that_there_is_not(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"executor": "threads"}
    with pytest.raises(ValueError, match="'executor' is 'threads'; 'executors' has: celery, parallel, sequential"):
        load_conf()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        # A string would be a search path of its letters.
        ("extra_search_path", "public"),
        ("extra_search_path", [1]),
        ("extra_search_path", [""]),
        ("extra_search_path", None),
        ("executors", "parallel"),
        ("executors", {"mine": None}),
        ("executor", []),
        ("connection_resolver", None),
        ("shadow_server", None),
        ("connection_resolver", len),
    ],
)
def test_conf__value_of_the_wrong_type(settings: Any, key: str, value: object) -> None:
    settings.TENANT_MIGRATIONS = {key: value}
    with pytest.raises(ValueError, match=f"'{key}'"):
        load_conf()


@pytest.mark.parametrize("value", [None, [], ["lease"], "lease", 1])
def test_conf__that_is_no_dictionary(settings: Any, value: object) -> None:
    settings.TENANT_MIGRATIONS = value
    with pytest.raises(ValueError, match="dictionary"):
        load_conf()


def test_conf__a_list_of_schemas_is_as_good_as_a_tuple(settings: Any) -> None:
    settings.TENANT_MIGRATIONS = {"extra_search_path": ["public", "extensions"]}
    assert load_conf().extra_search_path == ("public", "extensions")


@pytest.mark.parametrize("value", ["orders", ["orders", ""], [1], None, {"orders": 1}])
def test_conf__template_data_is_a_list_of_names(settings: Any, value: object) -> None:
    settings.TENANT_MIGRATIONS = {"template_data": value}
    with pytest.raises(ValueError, match=r"^'template_data' is .*; it takes a list of apps and migrations\.$"):
        load_conf()
