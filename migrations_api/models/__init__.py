from migrations_api.models.access import ApiToken, AuditEntry, Role
from migrations_api.models.coordination import Coordinator
from migrations_api.models.fleet import TenantObservation
from migrations_api.models.idempotency import IdempotencyRecord
from migrations_api.models.runs import Action, AppliedSet, MigrationRun, RepairWay, RequestedVia, Rollout, RunStep
from migrations_api.models.templates import TenantTemplate

__all__ = [
    "Action",
    "ApiToken",
    "AppliedSet",
    "AuditEntry",
    "Coordinator",
    "IdempotencyRecord",
    "MigrationRun",
    "RepairWay",
    "RequestedVia",
    "Role",
    "Rollout",
    "RunStep",
    "TenantObservation",
    "TenantTemplate",
]
