"""python -m benchmarks fleet [--tenants 200] | reads [--tenants 10000 --runs 100000]: prints speeds, asserts none."""

import argparse

from benchmarks import fleet, reads


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    of_fleet = benchmarks.add_parser("fleet", help=fleet.__doc__.splitlines()[0], description=fleet.__doc__)
    of_fleet.add_argument("--tenants", type=int, default=200)
    of_fleet.set_defaults(measure=fleet.measure)
    of_reads = benchmarks.add_parser("reads", help=reads.__doc__.splitlines()[0], description=reads.__doc__)
    of_reads.add_argument("--tenants", type=int, default=10_000)
    of_reads.add_argument("--runs", type=int, default=100_000)
    of_reads.add_argument("--migrated", type=int, default=100, help="Real schemas that migrate-all goes over.")
    of_reads.add_argument("--clients", type=int, default=4)
    of_reads.add_argument("--seconds", type=float, default=20, help="How long to ask while nothing else goes on.")
    of_reads.set_defaults(measure=reads.measure)
    options = vars(parser.parse_args())
    del options["benchmark"]
    options.pop("measure")(**options)


if __name__ == "__main__":
    main()
