"""The service's own, without what would measure something else."""

from service.settings import *  # noqa: F403
from service.settings import REST_FRAMEWORK, TENANT_MIGRATIONS

REST_FRAMEWORK = {
    **REST_FRAMEWORK,
    # A benchmark asks more often than any client may.
    "DEFAULT_THROTTLE_RATES": {"read": None, "write": None, "failed_authentication": None},
}
# Most tenants are rows alone; a look at their databases would find nothing.
TENANT_MIGRATIONS = {**TENANT_MIGRATIONS, "observe_every": 86_400}
