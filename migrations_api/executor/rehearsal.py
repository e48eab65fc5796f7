"""What tenants that stand at the same place have in common, worked out once per process.

The first tenant is migrated in Django's own way, and what its operations send to the server is noted. For the others
the states of the models are made once and shared; every statement is held against what was noted before it is sent,
and the first that departs from it has the migration begun again in Django's way. So sharing can cost time, and never
truth. What nothing about a tenant could change is sent as it stands, once two tenants have agreed.
"""

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property, lru_cache
from typing import Any, Final

from django.apps import AppConfig, apps
from django.contrib.contenttypes.management import RenameContentType, inject_rename_contenttypes_operations
from django.db import DEFAULT_DB_ALIAS
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import operations
from django.db.migrations.migration import Migration
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState, StateApps
from django.db.models.signals import post_migrate, pre_migrate

from migrations_api.executor import signals
from migrations_api.executor.chain import Chain
from migrations_api.executor.lending import Imprint, isolated
from migrations_api.executor.model_types import RECEIVERS, ModelTypes, model_types
from migrations_api.executor.script import OF_ONE_MODEL, Script, Statement, script_of
from migrations_api.executor.statements import OwnStatement, text_of
from migrations_api.executor.tape import SHARING
from migrations_api.executor.verification import tables_of
from migrations_api.plan import Key, MigrationSource, Plan, Planner
from tenants.watch import Reader

# Those of them whose statements Django writes.
DJANGOS: Final = SHARING - {operations.RunSQL}
# Of those that concern one model, the ones behind which Django may make content types or permissions.
MAKE_TYPES: Final = frozenset({operations.CreateModel, operations.AlterModelOptions})
# Changing rows may call triggers, which may be each tenant's own.
HARMLESS: Final = re.compile(r"\s*(ALTER|CREATE|DROP|COMMENT|SELECT)\b", re.IGNORECASE)
# What a constraint is called in its own statement that old rows may break.
UNCHECKED: Final = "NOT VALID"
# What would stay in a session, wherever in a text a statement can begin; a transaction's own settings end with it.
OF_SESSION: Final = re.compile(
    r"(?:^|;|\$\w*\$|\b(?:BEGIN|THEN|ELSE|LOOP)\b)(?:\s|--[^\n]*\n|/\*.*?\*/)*"
    r"(?:SET(?!\s+(?:CONSTRAINTS|TRANSACTION)\b)|RESET|DISCARD|LOAD|LISTEN)\b|\bset_config\s*\(",
    re.IGNORECASE | re.DOTALL,
)


@lru_cache(maxsize=256)
def speaks_of_session(statement: str) -> bool:
    return bool(OF_SESSION.search(statement))


class Rehearsal:
    """One plan, for whichever tenant. Belongs to one process, which works on one tenant at a time."""

    def __init__(self, source: MigrationSource, plan: Plan, *, scripts: dict[int, Script] | None = None) -> None:
        self.source = source
        self.plan = plan
        # By the server's version.
        self._whole = {} if scripts is None else scripts
        self.noted: dict[Key, list[Statement]] = {}
        self._agreed: set[tuple[Key, int]] = set()
        self._scripts: dict[Key, str | None] = {}
        self._written = [list(migration.operations) for migration, _ in plan.migrations]
        self._speaks_of_session = False
        self._begins_changed = False

    @property
    def is_over(self) -> bool:
        """Whether a tenant has gone through all of it, so that the next one can follow."""
        return all(_key(migration) in self.noted or not migration.atomic for migration, _ in self.plan.migrations)

    @property
    def may_be_passed_on(self) -> bool:
        """Whether the next tenant may have the session of the last one.

        All that was done so far in carrying it out was heard; nothing of it is known to stay in a session.
        """
        return (
            not self._speaks_of_session
            and not self.plan.backwards
            and self.plan.then is None
            and self.is_over
            and all(migration.atomic for migration, _ in self.plan.migrations)
        )

    def listen(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:  # noqa: FBT001
        """A wrapper for the connection's statements."""
        if not isinstance(sql, OwnStatement) and speaks_of_session(text_of(sql, context)):
            self._speaks_of_session = True
        return execute(sql, params, many, context)

    def knows(self, migration: Migration) -> bool:
        return _key(migration) in self.noted

    def is_harmless(self, migration: Migration) -> bool:
        """Whether what was noted can reach no other tenant: DDL of Django's own making, in names without a schema.

        The first tenant's was looked at before it was committed. What would say the same word for word, in a session
        that nothing else has spoken in, touches the tables of the same names in its own schema.
        """
        noted = self.noted.get(_key(migration))
        return (
            noted is not None
            and all(type(operation) in DJANGOS for operation in self.operations[_key(migration)])
            and all(HARMLESS.match(statement) and '"."' not in statement for statement, _ in noted)
        )

    @property
    def leaves_no_faults(self) -> bool:
        """Whether nobody in it could leave an index half-built or a constraint that is not validated."""
        return (
            self.is_over
            and all(
                self.is_harmless(migration) and not any(UNCHECKED in sql for sql, _ in self.noted[_key(migration)])
                for migration, _ in self.plan.migrations
            )
            and self._tells_nobody
        )

    @property
    def _tells_nobody(self) -> bool:
        """Whether all receivers are Django's own, of which it is known what they would do."""
        return (
            signals.receivers(pre_migrate, self._configs) <= {inject_rename_contenttypes_operations}
            and signals.receivers(post_migrate, self._configs) <= RECEIVERS
        )

    @cached_property
    def keeps_types(self) -> bool:
        """Whether it needs no content types and permissions but those of the models before it."""
        makes_none = all(type(each) in OF_ONE_MODEL - MAKE_TYPES for written in self._written for each in written)
        return makes_none and not self.plan.unmigrated_apps and not self.plan.backwards and self.plan.then is None

    def agreed(self, migration: Migration, server_version: int) -> None:
        """Another tenant has just said the same as the first one."""
        self._agreed.add((_key(migration), server_version))

    def script(self, migration: Migration, server_version: int) -> str | None:
        """All that the migration says to a server of this version; None where each tenant must be asked itself."""
        key = _key(migration)
        if (key, server_version) not in self._agreed:
            return None
        if key not in self._scripts:
            plain = self.is_harmless(migration)
            self._scripts[key] = script_of(migration, self.chain.states(migration), self.noted[key]) if plain else None
        return self._scripts[key]

    def conclude(self, connection: Any) -> None:
        """A tenant has gone through all of it as the first one did: keep it as a script, if it is one."""
        version = server_version(connection)
        if self.plan.then is not None or self.plan.backwards or version in self._whole or not self.leaves_no_faults:
            return
        messages = {_key(each): self.script(each, version) if each.atomic else None for each in self.order}
        said = {key: message for key, message in messages.items() if message is not None}
        if len(said) == len(messages):
            self._whole[version] = Script(messages=said, tables=self.tables(connection), types=self._types)

    def whole_script(self, server_version: int) -> Script | None:
        """None where the tenant must be asked itself, or somebody but Django's own receivers is told of the run."""
        found = self._whole.get(server_version)
        return found if found is not None and self._tells_nobody else None

    @cached_property
    def operations(self) -> dict[Key, list[Operation]]:
        """What each migration consists of, with what Django's own receiver of pre_migrate puts into it.

        For models that get another name, it adds that their content types do.
        """
        alike: list[tuple[Any, bool]] = [(copy(migration), backwards) for migration, backwards in self.plan.migrations]
        for (migration, _), written in zip(alike, self._written, strict=True):
            migration.operations = list(written)
        if inject_rename_contenttypes_operations in signals.receivers(pre_migrate, self._configs):
            inject_rename_contenttypes_operations(plan=alike, apps=self.before.apps, using=DEFAULT_DB_ALIAS)
        return {_key(migration): migration.operations for migration, _ in alike}

    def is_altered(self) -> bool:
        """Whether other receivers of pre_migrate have put operations of their own into the plan."""
        return not all(
            _are_alike(migration.operations, self.operations[_key(migration)]) for migration, _ in self.plan.migrations
        )

    def restore(self) -> None:
        for (migration, _), written in zip(self.plan.migrations, self._written, strict=True):
            restored: Any = migration
            restored.operations = list(written)

    def forget(self) -> None:
        """The next tenant is the first one again."""
        self.noted.clear()
        self._agreed.clear()
        self._scripts.clear()
        self._whole.clear()

    @contextmanager
    def asking(self) -> Iterator[StateApps]:
        """For receivers of pre_migrate: the models before the plan, which a first tenant's operations go on from."""
        apps: Any = self.before.apps
        imprint = None if self.is_over else Imprint([apps])
        yield apps
        self._begins_changed = imprint is not None and not imprint.stands()

    @contextmanager
    def first_time(self) -> Iterator[None]:
        """Around a tenant that goes through all of it in Django's own way."""
        self._drop_chain()
        try:
            yield
        finally:
            if self._begins_changed or not self.chain.is_kept:
                self._drop_chain()
            # Receivers may be any code: what they are given from now on is theirs alone.
            self.before = isolated(self.before)

    def _drop_chain(self) -> None:
        if self.__dict__.pop("chain", None) is not None:
            # Only where the collector looks again, it can be collected.
            gc.unfreeze()

    @cached_property
    def before(self) -> ProjectState:
        return Planner(self.plan.loader).project_state()

    @cached_property
    def chain(self) -> Chain:
        return Chain(self.before, self.order, self.operations)

    @cached_property
    def order(self) -> list[Migration]:
        """In the order of Django's executor, which is that of an empty database."""
        planned = {migration for migration, _ in self.plan.migrations}
        loader = self.plan.loader
        full = Planner(loader).migration_plan(loader.graph.leaf_nodes(), clean_start=True)
        return [migration for migration, _ in full if migration in planned]

    @cached_property
    def final_apps(self) -> StateApps:
        """The models after the last step, as receivers of post_migrate get them."""
        return signals.final_apps(isolated(self.chain.last))

    @cached_property
    def _configs(self) -> list[AppConfig]:
        return [config for config in apps.get_app_configs() if config.label in self.source.labels]

    @cached_property
    def _types(self) -> ModelTypes | None:
        return model_types(self.final_apps, self._configs)

    def see_to_types(self, connection: BaseDatabaseWrapper, reader: Reader, schema: str) -> bool:
        """Whether content types and permissions are there, or have been made.

        They are made here only where nobody else is told in between, who might see the one and not yet the other.
        """
        if self._types is None:
            return False
        if self._types.are_in(reader, schema):
            return True
        if not signals.receivers(post_migrate, self._configs) <= RECEIVERS:
            return False
        self._types.make(connection)
        return True

    def tell_receivers(self, *, has_types: bool) -> None:
        """Send post_migrate; Django's own receivers are spared where they would do nothing."""
        signals.send(
            post_migrate,
            configs=self._configs,
            state_apps=self.final_apps,
            migrations=self.plan.migrations,
            without=RECEIVERS if has_types else (),
        )

    def tables(self, connection: Any) -> frozenset[str]:
        return frozenset(tables_of(self.plan, self.chain.last, connection))


def _key(migration: Migration) -> Key:
    return migration.app_label, migration.name


def _are_alike(some: Sequence[Operation], others: Sequence[Operation]) -> bool:
    """Whether they are the same, but for what Django's own receiver makes anew each time."""
    return len(some) == len(others) and all(
        one is other
        or (isinstance(one, RenameContentType) and type(one) is type(other) and _renamed(one) == _renamed(other))
        for one, other in zip(some, others, strict=True)
    )


def _renamed(operation: Any) -> tuple[str, str, str]:
    return operation.app_label, operation.old_model, operation.new_model


def server_version(connection: Any) -> int:
    return int(getattr(connection, "pg_version", 0))
