from migrations_api.plan.planner import (
    Applied,
    Plan,
    Planner,
    Step,
    Target,
    check_target,
    fingerprint,
    full_order,
    is_recorded,
    make_plan,
    prunable,
    require_reversible,
)
from migrations_api.plan.source import Key, MigrationSource, load_source

__all__ = [
    "Applied",
    "Key",
    "MigrationSource",
    "Plan",
    "Planner",
    "Step",
    "Target",
    "check_target",
    "fingerprint",
    "full_order",
    "is_recorded",
    "load_source",
    "make_plan",
    "prunable",
    "require_reversible",
]
