"""A tool's tenants as each case finds them, and one measurement of the tool on them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers import databases
from benchmarks.peers.databases import Truth
from benchmarks.peers.processes import Command
from benchmarks.peers.tools import FROM_ZERO, Bench, Fleet, Tool

AFTERWARDS = 0.3  # seconds in which the last sessions are counted by the server


@dataclass(frozen=True, kw_only=True)
class Sample:
    """`seconds` of the whole processes, one after the other; `mebibytes` of the largest."""

    seconds: float
    mebibytes: int
    sessions: int
    statements: int


class Stage:
    """`tenants` homes of one kind, in databases that are this tool's alone, but for those that are tenants themselves.

    Once they have been filled, a case from zero is not to follow.
    """

    def __init__(self, bench: Bench, truth: Truth, tool: Tool, *, isolation: str, tenants: int) -> None:
        self.bench, self.truth, self.tool, self.isolation, self.tenants = bench, truth, tool, isolation, tenants
        key = tool.name.replace("-", "_").replace(" ", "_").lower()
        self._start, self._ready, self._run = f"start_{key}", f"ready_{key}", f"run_{key}"
        self._is_ready = self._has_deployed = False
        databases.recreate(bench.server, self._start)
        if isolation == "schema":
            databases.make_empty(bench.server, databases.homes(isolation, self._start, tenants))
        tool.prepare(bench, self.fleet(self._start))

    def fleet(self, database: str) -> Fleet:
        homes = databases.homes(self.isolation, database, self.tenants)
        return Fleet(isolation=self.isolation, database=database, homes=homes[: self.tool.most])

    def measure(self, variant: str, case: str) -> Sample:
        """Raises NotMigrated if the tenants do not stand where they should then."""
        server = self.bench.server
        fleet = self._fleet_for(case)
        self.tool.renew(self.bench, case)
        commands = self.tool.commands(self.bench, fleet, variant, case, self.truth)
        sessions, logged = databases.sessions(server), databases.log_size(server)
        costs = [self.bench.run(command) for command in commands]
        time.sleep(AFTERWARDS)
        sample = Sample(
            seconds=sum(cost.seconds for cost in costs),
            mebibytes=max(cost.mebibytes for cost in costs),
            sessions=databases.sessions(server) - sessions,
            statements=databases.statements(server, logged),
        )
        databases.prove(server, fleet.homes, self.truth, without=self.tool.own_app, whole=case != "large")
        return sample

    def discard(self) -> None:
        for database in (self._start, self._ready, self._run):
            databases.drop(self.bench.server, database)
        if self.isolation == "database":
            for home in databases.homes(self.isolation, "", self.tenants):
                databases.drop(self.bench.server, home.database)

    def _fleet_for(self, case: str) -> Fleet:
        if case in FROM_ZERO:
            databases.recreate(self.bench.server, self._run, template=self._start)
            if self.isolation == "database":
                databases.make_empty(self.bench.server, databases.homes(self.isolation, "", self.tenants))
            return self.fleet(self._run)
        if not self._is_ready:
            self._fill([self.truth.records] if case == "large" else self.truth.batches)
            self._is_ready = True
        fleet = self.fleet(self._ready)
        if case == "pending":
            databases.take_back(self.bench.server, fleet.homes)
            if not self._has_deployed:
                self._meet(self.tool.last_deploy(self.bench, fleet), case)
                self._has_deployed = True
        return fleet

    def _fill(self, batches: Sequence[str]) -> None:
        server = self.bench.server
        databases.recreate(server, self._ready, template=self._start)
        everywhere = databases.homes(self.isolation, self._ready, self.tenants)
        if self.isolation == "database":
            databases.make_empty(server, everywhere)
        databases.fill(server, everywhere, batches)
        if self.tool.remembers:
            # What it adds to a tenant that stock Django has migrated is not to be a part of what is measured.
            variant = self.tool.variants("nothing")[1]
            commands = self.tool.commands(self.bench, self.fleet(self._ready), variant, "nothing", self.truth)
            self._meet(commands, "nothing")

    def _meet(self, commands: Sequence[Command], case: str) -> None:
        """Have the tool know the tenants as an earlier deploy of its own has left them."""
        self.tool.renew(self.bench, "start")
        for command in commands:
            self.bench.run(command)
        self.tool.keep(self.bench, case)
