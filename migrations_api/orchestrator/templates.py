"""Make new tenants by copying what their migrations leave; the templates are made once for each version of the code."""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from typing import Final, TypeVar

import django
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.migrations.operations import CreateModel
from django.db.models.functions import Now
from django.utils import timezone

from migrations_api.exceptions import NotCopyable, PlanChanged
from migrations_api.executor import Options, Outcome, execute
from migrations_api.executor.applied import TenantRecorder
from migrations_api.executor.copying import copy_into, migrate_original, require_same, tells_others
from migrations_api.executor.lock import tenant_lock
from migrations_api.executor.rehearsal import Rehearsal
from migrations_api.executor.repertoire import rehearsal_of
from migrations_api.executor.template import Template
from migrations_api.executor.verification import is_unoccupied
from migrations_api.models import MigrationRun, TenantTemplate
from migrations_api.orchestrator.recorder import Recorder, session_name
from migrations_api.orchestrator.sources import source_for
from migrations_api.plan import MigrationSource, Plan, Target
from migrations_api.plan.determinism import unnamed_code
from tenants.app_sets import tenant_apps
from tenants.backends import backend_for
from tenants.conf import load_conf
from tenants.driver_errors import describe, translated
from tenants.exceptions import ServiceError
from tenants.models import Isolation, Tenant
from tenants.relay import Relay, relay_of
from tenants.sessions import tenant_session
from tenants.watch import watch_of

logger = logging.getLogger(__name__)
Made = TypeVar("Made")

# A maker that is gone is taken for gone after this; until then its kind of tenant is migrated.
MADE_WITHIN: Final = timedelta(hours=1)
# Of each kind and server: more than one version of the code may be at work.
KEPT: Final = 3
# Of what is kept: one that was made for another is made again.
FORMAT: Final = 2
# The servers on which this process has made a copy.
_copied_to: Final[set[str]] = set()


def carry_out(run: MigrationRun, recorder: Recorder) -> Outcome:
    """Copy a template into a tenant that has nothing yet, if the copy is exact, and otherwise migrate it.

    Raises what execute() raises.
    """
    why = ""
    try:
        if outcome := _copied(run, recorder):
            return outcome
    except NotCopyable as error:
        why = error.message
        logger.warning("tenant %s is migrated, not copied from a template: %s", run.tenant_id, why)
    outcome = execute(
        run.tenant,
        source_for(run.tenant.isolation),
        Target(),
        replace(Options(**run.options), template=False),
        observer=recorder,
        application_name=session_name(run),
        plan_digest="" if run.applied_before_id else run.expected_digest,
    )
    return replace(outcome, not_copied=why)


def _copied(run: MigrationRun, recorder: Recorder) -> Outcome | None:
    """None for a tenant that is not new, or that is not to be begun."""
    tenant, source = run.tenant, source_for(run.tenant.isolation)
    relay = _relay(tenant)
    with (
        _session(run, relay) as connection,
        tenant_lock(
            connection,
            database=connection.settings_dict["NAME"],
            schema=tenant.schema_name,
            wait=load_conf().lock_wait,
        ),
    ):
        with translated():
            unoccupied = is_unoccupied(connection, tenant.schema_name)
            is_new = unoccupied or not TenantRecorder(connection, tenant.schema_name).applied_keys()
        if not is_new or recorder.should_stop():
            return None
        rehearsal = rehearsal_of(source, frozenset(), Target())
        plan = rehearsal.plan
        if run.expected_digest and not run.applied_before_id and plan.digest != run.expected_digest:
            raise PlanChanged(tenant.tenant_id, plan.digest)
        _require_copyable(tenant, plan, source, unoccupied=unoccupied)
        template = template_for(tenant, rehearsal, connection)
        outcome = copy_into(tenant, connection, template, rehearsal, before_commit=lambda: recorder.planned(plan))
        recorder.copied()
        _copied_to.add(tenant.database)
        if relay is not None:
            relay.wear(steps=len(plan.steps))
        return outcome


def _relay(tenant: Tenant) -> Relay | None:
    """The session that is passed on between tenants, if the server does all of the work and no code of anybody's."""
    # A process that copies once, such as a command, would open two for nothing.
    if tenant.database not in _copied_to or tells_others(tenant):
        return None
    return relay_of(tenant)


def _session(run: MigrationRun, relay: Relay | None) -> AbstractContextManager[DatabaseWrapper]:
    if relay is None:
        return tenant_session(run.tenant, application_name=session_name(run))
    return relay.session(run.tenant, application_name=session_name(run), watch=watch_of(run.tenant))


def _require_copyable(tenant: Tenant, plan: Plan, source: MigrationSource, *, unoccupied: bool) -> None:
    if tenant.isolation == Isolation.SHARED:
        raise NotCopyable("A shared schema is always migrated.")
    if not unoccupied:
        raise NotCopyable("Something is in it already.")
    if not plan.steps:
        raise NotCopyable("Its apps have no migrations.")
    if code := unnamed_code(plan, source, load_conf().template_data):
        raise NotCopyable(
            f"Code of your own may leave other rows in each tenant: {', '.join(code[:5])}. Name what writes the same "
            "into every tenant in TENANT_MIGRATIONS['template_data']."
        )


def template_for(tenant: Tenant, rehearsal: Rehearsal, connection: BaseDatabaseWrapper) -> Template:
    """The template for tenants of this kind, on this server, by this code; made first if there is none.

    Raises NotCopyable where there can be none, or not yet.
    """
    digest = _digest(tenant, rehearsal, connection.connection.info.server_version)
    stored = TenantTemplate.objects.filter(pk=digest).first()
    if stored is None or _is_abandoned(stored):
        return _make(tenant, digest, rehearsal)
    if stored.content is None:
        raise NotCopyable(stored.reason or "Its template is just being made.")
    return Template.from_dict(stored.content)


def _digest(tenant: Tenant, rehearsal: Rehearsal, server_version: int) -> str:
    """Of all that decides what the migrations leave, as far as can be told without running them."""
    swappable = {
        operation.options["swappable"]
        for migration in rehearsal.source.migrations.values()
        for operation in migration.operations
        if isinstance(operation, CreateModel) and "swappable" in operation.options
    }
    content = [
        [FORMAT, tenant.database, tenant.isolation, bool(tenant.role_name), server_version, django.VERSION],
        [rehearsal.plan.digest, load_conf().extra_search_path],
        [config.label for config in tenant_apps(tenant.isolation)],
        [settings.AUTH_USER_MODEL, settings.DEFAULT_AUTO_FIELD, settings.DEFAULT_TABLESPACE],
        [[name, getattr(settings, name, None)] for name in sorted(swappable)],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_abandoned(stored: TenantTemplate) -> bool:
    expires = stored.lease_expires_at
    return stored.content is None and not stored.reason and expires is not None and expires < timezone.now()


def _make(tenant: Tenant, digest: str, rehearsal: Rehearsal) -> Template:
    _sweep()
    try:
        home = Tenant.at_home(
            tenant_id=f"template-{secrets.token_hex(6)}", isolation=tenant.isolation, database=tenant.database
        )
    except ServiceError as error:
        raise NotCopyable(f"There is no name for a template's home: {error.message}") from error
    mine = _claim(tenant, digest, home)
    try:
        template, original = _in(home, lambda: migrate_original(home, rehearsal))
        _in(home, lambda: require_same(home, template, original))
    except NotCopyable as error:
        mine.update(reason=error.message[:500], lease_expires_at=None)
        raise
    except BaseException as error:
        mine.delete()
        if not isinstance(error, Exception | SystemExit):
            raise
        why = error.message if isinstance(error, ServiceError) else describe(error)
        raise NotCopyable(f"Its template could not be made: {why}") from error
    mine.update(content=template.as_dict(), lease_expires_at=None)
    _forget_old(tenant)
    logger.info("made the template %s for %s tenants on %s", digest[:12], tenant.isolation, tenant.database)
    return template


def _claim(tenant: Tenant, digest: str, home: Tenant):  # type: ignore[no-untyped-def]
    try:
        with transaction.atomic():
            TenantTemplate.objects.create(
                digest=digest,
                database=tenant.database,
                isolation=tenant.isolation,
                home=home.tenant_id,
                lease_expires_at=timezone.now() + MADE_WITHIN,
            )
    except IntegrityError as error:
        raise NotCopyable("Its template is just being made.") from error
    return TenantTemplate.objects.filter(pk=digest, home=home.tenant_id)


def _in(home: Tenant, act: Callable[[], Made]) -> Made:
    """Do it in the home, which is there for as long as that takes."""
    backend = backend_for(home)
    backend.provision(home)
    try:
        return act()
    finally:
        backend.drop(home)


def _sweep() -> None:
    """Drop what makers that were killed have left."""
    for stored in TenantTemplate.objects.filter(content__isnull=True, reason="", lease_expires_at__lt=Now()):
        home = Tenant.at_home(tenant_id=stored.home, isolation=stored.isolation, database=stored.database)
        try:
            backend_for(home).drop(home)
        except ServiceError as error:
            logger.warning("the home of template %s could not be dropped: %s", stored.home, error.message)
            continue
        stored.delete()


def _forget_old(tenant: Tenant) -> None:
    made = TenantTemplate.objects.filter(database=tenant.database, isolation=tenant.isolation, lease_expires_at=None)
    old = list(made.order_by("-created_at").values_list("pk", flat=True)[KEPT:])
    TenantTemplate.objects.filter(pk__in=old).delete()
