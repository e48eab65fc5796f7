"""TENANT_MIGRATIONS: every key, its default and its unit."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from django.conf import settings


@dataclass(frozen=True, kw_only=True)
class Conf:
    """What settings.TENANT_MIGRATIONS may hold. Times are in seconds."""

    # How "work on that run" reaches a worker; the names that --executor takes.
    executor: str = "sequential"
    executors: dict[str, str] = field(
        default_factory=lambda: {
            "sequential": "migrations_api.dispatch.sequential.SequentialDispatcher",
            "parallel": "migrations_api.dispatch.parallel.ParallelDispatcher",
            "celery": "migrations_api.dispatch.remote.CeleryDispatcher",
        }
    )
    max_concurrency: int = 4
    # Processes of one machine, whatever a rollout's max_concurrency says; each has sessions with two databases.
    max_workers: int = 64
    # A worker process is replaced after so many tenants, so that what migrations leave in memory does not add up.
    tenants_per_worker: int = 100
    # With Celery, a run that no worker has begun after so long is sent once more; then after twice as long, and so on.
    resubmit_after: float = 10
    # Schemas that a tenant's session sees behind its own, for extensions or shared tables that live in `public`.
    extra_search_path: tuple[str, ...] = ()
    # Data migrations that write the same into every tenant, as app_label or app_label.migration_name: what they have
    # written may be copied from a template.
    template_data: tuple[str, ...] = ()
    # Dotted path of `(tenant, settings) -> settings`, for teams that keep connection settings in a store of their own.
    connection_resolver: str = ""
    connect_timeout: float = 10
    lock_timeout: float = 2
    statement_timeout: float = 0
    # How long to wait for another migration of the same tenant.
    lock_wait: float = 10
    # A run whose worker has not renewed its lease for so long is taken to be abandoned.
    lease: float = 30
    heartbeat: float = 10
    attempts: int = 5
    # Between two attempts: doubled each time up to `max_backoff`, and half as much again more or less.
    backoff: float = 0.5
    max_backoff: float = 30
    # Schemas whose applied migrations are read by one statement.
    read_batch: int = 200
    # Databases that are read at the same time.
    read_concurrency: int = 8
    # Where the scratch databases of a pretended run are made, an alias; empty for the tenant's own server.
    shadow_server: str = ""
    # How long the API may take to show the SQL of a plan.
    pretend_timeout: float = 60
    # How old the stored picture of a tenant may be before the coordinator looks again.
    observe_every: float = 60
    # While so many runs that the API asked for have not been started, it takes on no more.
    max_pending_runs: int = 20_000
    # How long the answer to a POST is kept for whoever sends its Idempotency-Key again.
    idempotency_ttl: float = 86_400

    def __post_init__(self) -> None:
        whole = ("max_concurrency", "max_workers", "tenants_per_worker", "attempts", "read_batch", "read_concurrency")
        for name in (*whole, "max_pending_runs"):
            _require(name, getattr(self, name), whole=True, minimum=1)
        # A key is taken for as long as its request may run, which is taken to be an hour.
        _require("idempotency_ttl", self.idempotency_ttl, whole=False, minimum=3600)
        times = ("connect_timeout", "lease", "heartbeat", "backoff", "max_backoff", "observe_every")
        for name in (*times, "resubmit_after", "pretend_timeout"):
            _require(name, getattr(self, name), whole=False, minimum=0.001)
        for name in ("lock_timeout", "statement_timeout", "lock_wait"):
            _require(name, getattr(self, name), whole=False, minimum=0)
        for name in ("executor", "connection_resolver", "shadow_server"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name!r} is {getattr(self, name)!r}; it takes a string.")
        _require_names("extra_search_path", self.extra_search_path, "schema names")
        _require_names("template_data", self.template_data, "apps and migrations")
        if not isinstance(self.executors, dict) or not all(map(_is_name, self.executors.values())):
            raise ValueError(f"'executors' is {self.executors!r}; it takes a dictionary of dotted paths by name.")
        if self.heartbeat * 2 > self.lease:
            raise ValueError("'heartbeat' must be at most half of 'lease', or one late beat would end a run.")
        if self.executor not in self.executors:
            raise ValueError(f"'executor' is {self.executor!r}; 'executors' has: {', '.join(sorted(self.executors))}.")


def _require(name: str, value: object, *, whole: bool, minimum: float) -> None:
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not minimum <= value < math.inf:  # type: ignore[operator]  # both kinds compare
        raise ValueError(
            f"{name!r} is {value!r}; it takes a {'whole ' if whole else ''}number of at least {minimum:g}."
        )


def _require_names(name: str, value: object, items: str) -> None:
    if not isinstance(value, tuple) or not all(map(_is_name, value)):
        raise ValueError(f"{name!r} is {value!r}; it takes a list of {items}.")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


_loaded: dict[str, Conf] = {}


def load_conf() -> Conf:
    """The settings as they stand; raises ValueError with what is wrong and what is allowed."""
    setting = getattr(settings, "TENANT_MIGRATIONS", {})
    # Asked for several times in each run, and checked once.
    key = repr(setting)
    if (conf := _loaded.get(key)) is None:
        conf = _load(setting)
        _loaded.clear()
        _loaded[key] = conf
    return conf


def _load(setting: object) -> Conf:
    if not isinstance(setting, Mapping):
        raise ValueError(f"it is {setting!r}; it takes a dictionary.")
    given: dict[str, Any] = dict(setting)
    known = {item.name for item in fields(Conf)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"unknown keys {', '.join(unknown)}; known are: {', '.join(sorted(known))}.")
    for name in ("extra_search_path", "template_data"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])
    if isinstance(given.get("executors"), dict):
        given["executors"] = {**asdict(Conf())["executors"], **given["executors"]}
    return Conf(**given)
