"""The options that say which tenants a rollout is for and how it goes through them, as the API has them."""

import argparse
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandParser

from migrations_api.exceptions import InvalidOptions
from migrations_api.management.base import label, positive, tenant_id
from migrations_api.orchestrator.fleet import TenantStatus
from migrations_api.orchestrator.selection import Selector, Shard
from migrations_api.orchestrator.strategy import Amount, FailureMode, Group, OnError, Promotion, Strategy
from tenants.models import Isolation


def add_selector_arguments(parser: CommandParser) -> None:
    group = parser.add_argument_group("which tenants", "Those that fit everything given; otherwise all.")
    group.add_argument(
        "--tenant-id", action="append", type=tenant_id, metavar="ID", help="Only this tenant; may be repeated."
    )
    group.add_argument(
        "--exclude", action="append", type=tenant_id, metavar="ID", help="Not this tenant; may be repeated."
    )
    group.add_argument(
        "--label",
        action="append",
        type=label,
        metavar="KEY=VALUE",
        help="Only tenants with this label; repeated, with all of them.",
    )
    group.add_argument("--isolation-type", choices=Isolation.values, help="Only tenants of this kind.")
    group.add_argument(
        "--status", action="append", choices=list(TenantStatus), help="Only tenants that stand there; may be repeated."
    )
    group.add_argument("--failed-in", type=positive, metavar="ROLLOUT", help="Only tenants that failed in that one.")
    group.add_argument(
        "--unfinished-in", type=positive, metavar="ROLLOUT", help="Only tenants that that one has not migrated."
    )
    group.add_argument(
        "--shard", type=_parsed(Shard.parse), metavar="K/N", help="The Kth of N parts, the same tenants each time."
    )
    group.add_argument("--sample", type=amount, metavar="N|P%", help="So many of them, chosen by lot.")
    group.add_argument("--seed", type=int, metavar="N", help="Choose the same ones by lot as with this seed before.")


def add_strategy_arguments(parser: CommandParser) -> None:
    group = parser.add_argument_group("how", "Percentages are of all the tenants of the rollout.")
    group.add_argument("--max-concurrency", type=amount, metavar="N|P%", help="At most so many tenants in flight.")
    group.add_argument("--max-per-database", type=positive, metavar="N", help="And so many on one database server.")
    group.add_argument(
        "--max-failures",
        type=amount,
        metavar="N|P%",
        help="Start no more once more than so many have failed; 0 stops after the first.",
    )
    group.add_argument(
        "--failure-mode",
        choices=list(FailureMode),
        default=FailureMode.SOFT,
        help="With strict, never more in flight than may still fail.",
    )
    group.add_argument(
        "--on-error",
        choices=list(OnError),
        default=OnError.CONTINUE,
        help="What too many failures mean for tenants not yet started; with continue there are never too many, unless "
        "--max-failures says so.",
    )
    group.add_argument(
        "--canary", type=wave, metavar="N|P%|KEY=VALUE", help="The first wave: so many, or those with it."
    )
    group.add_argument(
        "--wave",
        action="append",
        type=wave,
        metavar="N|P%|KEY=VALUE",
        help="The next wave; repeatable. The last is the rest.",
    )
    group.add_argument("--bake-time", type=_seconds, default=0.0, metavar="SECONDS", help="Wait so long between waves.")
    group.add_argument(
        "--promotion",
        choices=list(Promotion),
        default=Promotion.AUTO,
        help="With manual, the next wave waits for `rollout promote`.",
    )
    group.add_argument(
        "--progress-deadline",
        type=_deadline,
        metavar="SECONDS",
        help="Start no more when no tenant has ended for so long.",
    )


def selector_of(options: dict[str, Any]) -> Selector:
    """Raises InvalidOptions for what does not go together."""
    labels = set(options["label"] or ())
    if len(dict(labels)) < len(labels):
        raise InvalidOptions("A tenant has one value of a label; two values of one are given.")
    return Selector(
        tenant_ids=tuple(options["tenant_id"]) if options["tenant_id"] else None,
        exclude=tuple(options["exclude"] or ()),
        labels=dict(labels),
        isolation=options["isolation_type"],
        status=tuple(options["status"] or ()),
        failed_in=options["failed_in"],
        unfinished_in=options["unfinished_in"],
        shard=options["shard"],
        sample=options["sample"],
        seed=options["seed"],
    ).seeded()


def strategy_of(options: dict[str, Any]) -> Strategy:
    """Raises InvalidOptions for what does not go together."""
    return Strategy(
        max_concurrency=options["max_concurrency"],
        max_per_database=options["max_per_database"],
        max_failures=options["max_failures"],
        failure_mode=options["failure_mode"],
        on_error=options["on_error"],
        canary=options["canary"],
        waves=tuple(options["wave"] or ()),
        bake_time=options["bake_time"],
        promotion=options["promotion"],
        progress_deadline=options["progress_deadline"],
    )


def _parsed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(value: str) -> Any:
        try:
            return parse(value)
        except InvalidOptions as error:
            raise argparse.ArgumentTypeError(error.message) from error

    return read


amount = _parsed(Amount.parse)


def wave(value: str) -> Group:
    if "=" in value:
        return Group(labels=(label(value),))
    group: Group = _parsed(Group.parse)(value)
    return group


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 31_536_000:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds, from 0 to a year")
    return seconds


def _deadline(value: str) -> float:
    if not (seconds := _seconds(value)):
        raise argparse.ArgumentTypeError("it has to be above 0")
    return seconds
