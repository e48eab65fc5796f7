"""Plans that take back what was applied: a run's migrations, or all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from migrations_api.exceptions import CannotReset, CannotRollBack, DependentMigrations
from migrations_api.plan.planner import Applied, Marks, Plan, Target, full_order, is_recorded, make_plan, step_of
from migrations_api.plan.source import Key, MigrationSource, TenantLoader


@dataclass(frozen=True, kw_only=True)
class Undo(Target):
    """Take back just `keys`, in that order: what was applied last comes first.

    Those in `faked` were recorded without being run, and are taken out of the record in the same way. `before` is what
    was applied before the oldest of them: what is applied, unknown to this code and not in it has come since. `marks`
    are those of that time, where they are known.
    """

    keys: tuple[Key, ...]
    faked: frozenset[Key] = frozenset()
    before: Applied = frozenset()
    marks: Marks | None = None

    def __str__(self) -> str:
        return f"Undo: {', '.join(map('.'.join, self.keys))}"


class Reset(Target):
    """Every app to zero."""

    def __str__(self) -> str:
        return "Unapply all migrations"


class Refresh(Target):
    """Every app to zero, and then to its newest migration."""

    def __str__(self) -> str:
        return "Unapply all migrations, then apply them again"


@dataclass(frozen=True, kw_only=True)
class Standing(Target):
    """From nothing to just these, as a tenant that has them applied was brought there."""

    applied: Applied

    def __str__(self) -> str:
        return f"{len(self.applied)} migrations"


def plan_to(source: MigrationSource, applied: Applied, target: Target) -> Plan:
    """The plan from `applied` to any kind of target.

    Raises what make_plan() does; CannotRollBack or DependentMigrations where an Undo is not what it was when it was
    asked for; CannotReset where migrations are applied that this code does not have.
    """
    if isinstance(target, Undo):
        return _undoing(source, applied, target)
    if isinstance(target, Reset | Refresh):
        return _resetting(source, applied, target)
    if isinstance(target, Standing):
        return _standing(source, applied, target)
    return make_plan(source, applied, target)


def replaced_by(source: MigrationSource, key: Key) -> tuple[Key, ...]:
    """What a squashed migration stands for; nothing for any other."""
    migration = source.migrations.get(key)
    return () if migration is None else tuple((app_label, name) for app_label, name in migration.replaces)


def _standing(source: MigrationSource, applied: Applied, target: Standing) -> Plan:
    base = make_plan(source, target.applied, Target())
    loader = source.loader(target.applied)
    keys = [key for key in full_order(loader) if key in loader.applied_migrations and key[0] in source.labels]
    # The graph is that of whoever has them; nothing of it is applied yet.
    loader.start_over()
    return replace(
        base,
        target=target,
        applied=applied,
        nodes=tuple(keys),
        steps=tuple(step_of(loader.graph.nodes[key], source, backwards=False) for key in keys),
        migrations=tuple((loader.graph.nodes[key], False) for key in keys),
        loader=loader,
    )


def _undoing(source: MigrationSource, applied: Applied, undo: Undo) -> Plan:
    base = make_plan(source, applied, Target())
    if gone := [".".join(key) for key in undo.keys if not is_recorded(key, base.applied, source)]:
        raise CannotRollBack(f"Not applied any more, and no run has undone it: {', '.join(gone)}.")
    keys = _in_graph(base.loader, source, undo.keys)
    newer = [name for name in base.unknown if tuple(name.split(".", 1)) not in undo.before]
    if newer:
        raise CannotRollBack(f"Applied since, and unknown to this code: {', '.join(newer)}.")
    _require_no_dependents(base.loader, source, base.applied, keys)
    faked = undo.faked | {key for key in keys if set(replaced_by(source, key)) & undo.faked}
    return _backwards(base, source, undo, keys, faked=faked & set(keys))


def _resetting(source: MigrationSource, applied: Applied, target: Target) -> Plan:
    base = make_plan(source, applied, Target())
    if base.unknown:
        raise CannotReset(
            f"Applied, but unknown to this code: {', '.join(base.unknown)}. What they have made would be left behind."
        )
    keys = [key for key in reversed(full_order(base.loader)) if key in base.loader.applied_migrations]
    own = [key for key in keys if key[0] in source.labels]
    plan = _backwards(base, source, target, own)
    if isinstance(target, Reset):
        return plan
    then = make_plan(source, base.applied - _rows(source, own), Target())
    return replace(plan, steps=(*plan.steps, *then.steps), then=then)


def _backwards(
    base: Plan, source: MigrationSource, target: Target, keys: Sequence[Key], *, faked: frozenset[Key] = frozenset()
) -> Plan:
    migrations = tuple((base.loader.graph.nodes[key], True) for key in keys)
    steps = (step_of(migration, source, backwards=True) for migration, _ in migrations)
    return replace(
        base,
        target=target,
        nodes=tuple(keys),
        steps=tuple(replace(step, fake=(step.app_label, step.name) in faked) for step in steps),
        migrations=migrations,
        left=base.applied - _rows(source, keys),
    )


def _rows(source: MigrationSource, keys: Iterable[Key]) -> Applied:
    """The rows of `django_migrations` that go when these are undone."""
    return frozenset(row for key in keys for row in (key, *replaced_by(source, key)))


def _in_graph(loader: TenantLoader, source: MigrationSource, keys: Sequence[Key]) -> list[Key]:
    """The same migrations as the tenant's graph has them: instead of all that a squashed one replaces, that one."""
    there = loader.graph.nodes.keys()
    if there >= set(keys):
        return list(keys)
    wanted = set(keys)
    squashed = {key for key in there if wanted & set(replaced_by(source, key))}
    for key in sorted(squashed):
        if parts := sorted(set(replaced_by(source, key)) - wanted):
            raise CannotRollBack(
                f"{'.'.join(key)} replaces what is to be undone, and {', '.join(map('.'.join, parts))} as well: it can "
                "only be undone as a whole. Migrate to a target before it instead."
            )
    replaced = {row for key in squashed for row in replaced_by(source, key)}
    if missing := sorted(wanted - there - replaced):
        raise CannotRollBack(f"Unknown to this code: {', '.join(map('.'.join, missing))}.")
    chosen = squashed | (wanted & there)
    # A squashed migration has one place, and the order of its parts says nothing of that.
    return [key for key in reversed(full_order(loader)) if key in chosen]


def _require_no_dependents(
    loader: TenantLoader, source: MigrationSource, applied: Applied, keys: Sequence[Key]
) -> None:
    chosen = set(keys)
    found = {
        other
        for key in keys
        for other in loader.graph.backwards_plan(key)
        if other not in chosen and is_recorded(other, applied, source)
    }
    if found:
        raise DependentMigrations(sorted(found))
