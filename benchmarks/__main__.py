"""python -m benchmarks fleet | large | memory | peers | reads | rollouts | protocol | template, each with --help.

Prints speeds and asserts none.
"""

import argparse

from benchmarks import fleet, large, memory, protocol, reads, rollouts, template
from benchmarks.peers import comparison
from benchmarks.peers.tools import TOOLS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    of_fleet = benchmarks.add_parser("fleet", help=fleet.__doc__.splitlines()[0], description=fleet.__doc__)
    of_fleet.add_argument("--tenants", type=int, default=200)
    of_fleet.set_defaults(measure=fleet.measure)
    of_large = benchmarks.add_parser("large", help=large.__doc__.splitlines()[0], description=large.__doc__)
    of_large.add_argument("--tenants", type=int, default=10_000)
    of_large.add_argument("--answers", type=int, default=50, help="How often each question is asked from cache.")
    of_large.add_argument("--rounds", type=int, default=3, help="How often each command is started; the median counts.")
    of_large.set_defaults(measure=large.measure)
    of_memory = benchmarks.add_parser("memory", help=memory.__doc__.splitlines()[0], description=memory.__doc__)
    of_memory.add_argument("--tenants", type=int, default=1000)
    of_memory.set_defaults(measure=memory.measure)
    add_peers(benchmarks.add_parser("peers", help=comparison.__doc__.splitlines()[0], description=comparison.__doc__))
    of_reads = benchmarks.add_parser("reads", help=reads.__doc__.splitlines()[0], description=reads.__doc__)
    of_reads.add_argument("--tenants", type=int, default=10_000)
    of_reads.add_argument("--runs", type=int, default=100_000)
    of_reads.add_argument("--migrated", type=int, default=100, help="Real schemas that migrate-all goes over.")
    of_reads.add_argument("--clients", type=int, default=4)
    of_reads.add_argument("--seconds", type=float, default=20, help="How long to ask while nothing else goes on.")
    of_reads.set_defaults(measure=reads.measure)
    of_protocol = benchmarks.add_parser("protocol", help=protocol.__doc__.splitlines()[0], description=protocol.__doc__)
    of_protocol.add_argument("--tenants", type=int, default=100)
    of_protocol.add_argument("--rounds", type=int, default=3)
    of_protocol.add_argument("--apps", nargs="+", choices=protocol.SETS, default=[*protocol.SETS])
    of_protocol.set_defaults(measure=protocol.measure)
    of_rollouts = benchmarks.add_parser("rollouts", help=rollouts.__doc__.splitlines()[0], description=rollouts.__doc__)
    of_rollouts.add_argument("--tenants", type=int, default=200)
    of_rollouts.add_argument("--rounds", type=int, default=3, help="How often each is measured; the best counts.")
    of_rollouts.set_defaults(measure=rollouts.measure)
    of_template = benchmarks.add_parser("template", help=template.__doc__.splitlines()[0], description=template.__doc__)
    of_template.add_argument("--tenants", type=int, default=30)
    of_template.add_argument("--apps", nargs="+", choices=template.APP_SETS, default=[*template.ORDINARY])
    of_template.set_defaults(measure=template.measure)
    options = vars(parser.parse_args())
    del options["benchmark"]
    options.pop("measure")(**options)


def add_peers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenants", type=numbers, default="50,200,1000", help="Sizes of fleets of schemas.")
    parser.add_argument("--databases", type=numbers, default="50", help="And of databases.", dest="in_databases")
    parser.add_argument("--large", type=int, default=10_000, help="Tenants of the case `large`.")
    parser.add_argument("--cases", nargs="+", choices=comparison.CASES, default=[*comparison.CASES])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=[*TOOLS])
    parser.add_argument("--rounds", type=int, default=3, help="How often each is measured; the median counts.")
    parser.add_argument(
        "--best-only", action="store_true", help="Of each peer, only the executor that is fastest on two processors."
    )
    parser.add_argument("--write", action="store_true", help="Append the tables to benchmarks/RESULTS.md.")
    parser.set_defaults(measure=comparison.measure)


def numbers(value: str) -> list[int]:
    return [int(each) for each in value.split(",") if each]


if __name__ == "__main__":
    main()
