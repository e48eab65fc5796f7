"""Make a template by migrating a home of its own, and copy it into new tenants."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import psycopg2
from django.apps import AppConfig
from django.db import Error as DjangoDatabaseError
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.migrations.state import StateApps
from django.db.models.signals import post_migrate, pre_migrate

from migrations_api.exceptions import NotCopyable, OutcomeUnknown
from migrations_api.executor import signals
from migrations_api.executor.failures import failure_of
from migrations_api.executor.inventory import Inventory, differences, inventory
from migrations_api.executor.migrator import TenantMigrator
from migrations_api.executor.model_types import RECEIVERS, ModelTypes, model_types
from migrations_api.executor.outcome import End, Failure, Nobody, Outcome, StepResult
from migrations_api.executor.rehearsal import Rehearsal
from migrations_api.executor.template import Template, read_template, replay, require_exact
from migrations_api.executor.verification import faults
from migrations_api.plan import Plan, Planner, Target, make_plan
from tenants.app_sets import tenant_apps
from tenants.binding import control_plane, tenant_as_default
from tenants.driver_errors import translated
from tenants.exceptions import ServiceError
from tenants.models import Isolation, Tenant
from tenants.sessions import tenant_session
from tenants.watch import OwnSession


def migrate_original(home: Tenant, rehearsal: Rehearsal) -> tuple[Template, Inventory]:
    """Migrate a home that is nobody's, up to where receivers of post_migrate would be told; each copy sees to that.

    Raises NotCopyable, and whatever a migration raises.
    """
    with _session(home) as connection:
        _migrate(home, connection, make_plan(rehearsal.source, frozenset(), Target()))
        with translated():
            found = _inventory(connection, home)
            template = read_template(connection, home.schema_name, found)
    return replace(template, types=_types(tenant_apps(home.isolation), rehearsal)), found


def _migrate(home: Tenant, connection: DatabaseWrapper, plan: Plan) -> None:
    @contextmanager
    def other_session() -> Iterator[BaseDatabaseWrapper]:
        watch = tenant_session(home, application_name="tenant-migrations watch", writable=False)
        with control_plane(), watch as other:
            yield other

    migrator = TenantMigrator(
        connection,
        plan,
        schema=home.schema_name,
        role=home.role_name,
        observer=Nobody(),
        other_session=other_session,
    )
    migrations = list(plan.migrations)
    signals.register_receivers()
    signals.clear_caches()
    state = migrator.project_state()
    signals.send(pre_migrate, configs=tenant_apps(home.isolation), state_apps=state.apps, migrations=migrations)
    migrator.migrate(list(plan.nodes), plan=migrations, state=state.clone(), fake=False, fake_initial=False)
    signals.clear_caches()


def require_same(home: Tenant, template: Template, original: Inventory) -> None:
    """Copy the template into another home that is nobody's; raises NotCopyable naming what comes out otherwise."""
    with _session(home) as connection, translated():
        with transaction.atomic(using=connection.alias):
            replay(connection, home.schema_name, template)
        if found := differences(original, _inventory(connection, home)):
            raise NotCopyable(f"These would not be the same in a copy: {', '.join(found[:5])}.")


@contextmanager
def _session(home: Tenant) -> Iterator[DatabaseWrapper]:
    name = f"tenant-migrations template {home.tenant_id}"
    with tenant_session(home, application_name=name) as connection, tenant_as_default(home, connection):
        yield connection


def _inventory(connection: DatabaseWrapper, tenant: Tenant) -> Inventory:
    return inventory(connection, tenant.schema_name, whole_database=tenant.isolation == Isolation.DATABASE)


def tells_others(tenant: Tenant) -> bool:
    """Whether anybody but Django's own receivers is told once the tenant is migrated."""
    signals.register_receivers()
    return not signals.receivers(post_migrate, tenant_apps(tenant.isolation)) <= RECEIVERS


def copy_into(
    tenant: Tenant,
    connection: DatabaseWrapper,
    template: Template,
    rehearsal: Rehearsal,
    *,
    before_commit: Callable[[], None],
) -> Outcome:
    """Make what is in the template, in the tenant, which is empty and locked, by one transaction.

    What Django's own receivers of post_migrate would do is done in it, if nobody else is told; otherwise the signal is
    sent afterwards. `before_commit` is called once the copy is known to be exact. Raises NotCopyable, with nothing
    changed and before that, when it is not; and OutcomeUnknown when the session was lost in the COMMIT.
    """
    plan = rehearsal.plan
    types = None if tells_others(tenant) else template.types
    failure, unvalidated = None, template.unvalidated
    with tenant_as_default(tenant, connection):
        _copy(tenant, connection, template, types, before_commit)
        if types is None:
            with signals.own_types(connection):
                failure = _tell_receivers(tenant, connection, rehearsal)
            with translated():
                unvalidated = tuple(sorted(faults(OwnSession(connection), tenant.schema_name).unvalidated))
    return Outcome(
        end=End.FAILED if failure else End.SUCCEEDED,
        before=plan.applied,
        after=frozenset((app, name) for _, app, name in template.record),
        results=tuple(StepResult(step=step, faked=False, seconds=0.0) for step in plan.steps),
        unvalidated=unvalidated,
        failure=failure,
    )


def _copy(
    tenant: Tenant,
    connection: DatabaseWrapper,
    template: Template,
    types: ModelTypes | None,
    before_commit: Callable[[], None],
) -> None:
    is_exact = False
    try:
        with transaction.atomic(using=connection.alias):
            _make_exactly(tenant, connection, template, types)
            before_commit()
            is_exact = True
    except (DjangoDatabaseError, psycopg2.Error) as error:
        if not is_exact:
            raise
        raise OutcomeUnknown("The session was lost in the COMMIT, and what became of it cannot be read yet.") from error


def _make_exactly(tenant: Tenant, connection: DatabaseWrapper, template: Template, types: ModelTypes | None) -> None:
    try:
        with translated():
            replay(connection, tenant.schema_name, template)
            require_exact(template, _inventory(connection, tenant))
            if types is not None and types.content_types:
                types.make(connection)
    except NotCopyable:
        raise
    except ServiceError as error:
        raise NotCopyable(f"The server refused the copy: {error.message}") from error


def _types(configs: Sequence[AppConfig], rehearsal: Rehearsal) -> ModelTypes | None:
    """What Django's own receivers of post_migrate make of all models; None where only they can tell."""
    unmigrated = rehearsal.source.unmigrated_apps
    if any(config.models_module is not None and config.label in unmigrated for config in configs):
        # Those models are no part of what a template is known by.
        return None
    state_apps = _final_apps(rehearsal)
    if "contenttype" not in state_apps.all_models["contenttypes"]:
        return ModelTypes(content_types=(), permissions=(), tables={})
    return model_types(state_apps, configs)


@lru_cache(maxsize=4)
def _final_apps(rehearsal: Rehearsal) -> StateApps:
    """The models after the last step. Those in between, which whoever migrates needs, are never rendered."""
    state = Planner(rehearsal.plan.loader).project_state()
    for migration in rehearsal.order:
        state = migration.mutate_state(state, preserve=False)
    return signals.final_apps(state)


def _tell_receivers(tenant: Tenant, connection: DatabaseWrapper, rehearsal: Rehearsal) -> Failure | None:
    """As for a tenant that was migrated from zero by the plan."""
    state_apps = _final_apps(rehearsal)
    signals.clear_caches(state_apps)
    try:
        signals.send(
            post_migrate,
            configs=tenant_apps(tenant.isolation),
            state_apps=state_apps,
            migrations=rehearsal.plan.migrations,
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001 - receivers are any code
        return failure_of(error)
    finally:
        signals.clear_caches(state_apps)
    return None
