"""Why a plan cannot be made or a run cannot start. A migration that fails is no exception but a run's result."""

from collections.abc import Mapping, Sequence

from tenants.exceptions import ServiceError


class PlanError(ServiceError):
    """No plan can be made."""

    code = "plan_error"


class UnknownApp(PlanError):
    """That app is not one whose migrations the tenant receives."""

    code = "unknown_app"


class AppWithoutMigrations(PlanError):
    """That app has no migrations."""

    code = "app_without_migrations"


class UnknownMigration(PlanError):
    """That migration does not exist."""

    code = "unknown_migration"


class AmbiguousMigration(PlanError):
    """More than one migration matches."""

    code = "ambiguous_migration"


class ConflictingMigrations(PlanError):
    """Conflicting migrations"""

    code = "conflicting_migrations"


class InconsistentHistory(PlanError):
    """A migration is applied before one that it depends on."""

    code = "inconsistent_history"


class UnloadableMigrations(PlanError):
    """The migrations on disk cannot be loaded."""

    code = "unloadable_migrations"


class IrreversibleMigration(PlanError):
    """A migration of the plan cannot be undone."""

    code = "irreversible_migration"


class CannotRollBack(PlanError):
    """What the run applied cannot be undone."""

    code = "cannot_roll_back"


class DependentMigrations(CannotRollBack):
    """Other migrations depend on what is to be undone."""

    code = "dependent_migrations"

    def __init__(self, keys: Sequence[tuple[str, str]], runs: Mapping[tuple[str, str], int] | None = None) -> None:
        self.keys = tuple(keys)
        whose = {key: f" (run {run_id})" for key, run_id in (runs or {}).items()}
        named = ", ".join(f"{'.'.join(key)}{whose.get(key, '')}" for key in keys)
        super().__init__(f"Applied, and dependent on what is to be undone: {named}. Undo that first.")


class NothingToRollBack(ServiceError):
    """No run of the tenant has applied anything that is not undone."""

    code = "nothing_to_roll_back"


class CannotReset(PlanError):
    """Not every migration of the tenant can be undone."""

    code = "cannot_reset"


class CannotPretend(ServiceError):
    """The SQL of the plan cannot be shown."""

    code = "cannot_pretend"


class PretendedTooLong(CannotPretend):
    """The SQL of the plan was not ready in time."""

    code = "pretended_too_long"


class TooManyPretended(ServiceError):
    """The SQL of too many plans is being made; try again when some of it is done."""

    code = "too_many_pretended"


class CannotPrune(PlanError):
    """Migrations cannot be pruned."""

    code = "cannot_prune"


class CannotCreateMigration(ServiceError):
    """The migration cannot be written."""

    code = "cannot_create_migration"


class PlanChanged(ServiceError):
    """The plan is no longer the one that was agreed to."""

    code = "plan_changed"

    def __init__(self, tenant_id: str, digest: str) -> None:
        self.digest = digest
        super().__init__(f"The plan of tenant '{tenant_id}' has changed: its digest is {digest} now.")


class ConfirmationRequired(ServiceError):
    """The plan undoes migrations, which was not confirmed."""

    code = "confirmation_required"


class TooManyRuns(ServiceError):
    """Too many runs are waiting to be carried out; try again when some have ended."""

    code = "too_many_runs"


class MissingRecord(ServiceError):
    """The tenant has tables of its apps, and no migration is recorded."""

    code = "missing_record"

    def __init__(self, tenant_id: str, tables: Sequence[str]) -> None:
        shown = ", ".join(tables[:5])
        super().__init__(
            f"Tenant '{tenant_id}' has tables ({shown}), but no record of its migrations in django_migrations. Restore "
            "that table, or record what is there with --fake-initial (fake_initial)."
        )


class RepairImpossible(ServiceError):
    """What is there does not bear that way out."""

    code = "repair_impossible"


class TenantLocked(ServiceError):
    """Another session is migrating the tenant."""

    code = "locked"


class OutcomeUnknown(ServiceError):
    """The session with the tenant was lost, and what became of the work cannot be read yet."""

    code = "outcome_unknown"


class RunActive(ServiceError):
    """The tenant has a run that is not finished."""

    code = "run_active"

    def __init__(self, tenant_id: str, run_id: int) -> None:
        self.tenant_id = tenant_id
        self.run_id = run_id
        super().__init__(f"Tenant '{tenant_id}' has an unfinished run: {run_id}.")


class UnknownTenants(ServiceError):
    """Tenants that are named do not exist."""

    code = "unknown_tenants"


class UnknownRollout(ServiceError):
    """The rollout that is named does not exist."""

    code = "unknown_rollout"


def held_by(by: str, reason: str) -> str:
    return f"held by {by or 'somebody'} ({reason})"


class TenantHeld(ServiceError):
    """The tenant is held."""

    code = "held"

    def __init__(self, tenant_id: str, by: str, reason: str) -> None:
        self.tenant_id = tenant_id
        super().__init__(f"Tenant '{tenant_id}' is {held_by(by, reason)}. Release it first.")


class TenantPartial(ServiceError):
    """The tenant stands between two migrations."""

    code = "partial"

    def __init__(self, tenant_id: str, how_to_repair: str) -> None:
        super().__init__(f"Tenant '{tenant_id}' stands between two migrations. Repair it first: {how_to_repair}.")


class InvalidTransition(ServiceError):
    """That cannot be done in the present state."""

    code = "invalid_transition"


class InvalidOptions(ServiceError):
    """These options do not go together."""

    code = "invalid_options"


class NotAdoptable(ServiceError):
    """What was found cannot be registered."""

    code = "not_adoptable"


class NotCopyable(ServiceError):
    """The tenant cannot be made from a template."""

    code = "not_copyable"
