"""The service's settings on the server of DATABASE_URL, or on an embedded one that lives as long as the test run.

Whatever a run creates carries its suffix, so that a given server keeps what it had and runs do not meet. The workers of
pytest-xdist are runs on the one server of the process that started them.
"""

import os
from pathlib import Path

from service.embedded_postgres import EmbeddedPostgres, sweep

_var = Path(__file__).resolve().parent.parent / "var"
# Not put into the environment, from which each worker of pytest-xdist would have it.
SUFFIX = os.environ.get("TEST_RUN") or f"t{os.getpid()}"
TEST_SERVER = None
if not os.environ.get("DATABASE_URL"):
    sweep(_var, "test-postgres-")
    TEST_SERVER = EmbeddedPostgres(_var / f"test-postgres-{os.getpid()}", durable=False)
    TEST_SERVER.start()
    os.environ["DATABASE_URL"] = TEST_SERVER.url("postgres")
os.environ["TENANT_DATABASE_URLS"] = ""
os.environ.setdefault("SECRET_KEY", "only-for-tests")
os.environ["HTTPS"] = "false"

from service.settings import *  # noqa: E402, F403
from service.settings import DATABASES, REST_FRAMEWORK  # noqa: E402

SHOP = f"shop_{SUFFIX}"
DATABASES["default"]["TEST"] = {"NAME": f"plane_{SUFFIX}"}
TENANT_DATABASES = {"shop": {**DATABASES["default"], "NAME": SHOP, "TEST": {}}}
TENANT_DATABASE_TEMPLATE = "{tenant_id}_" + SUFFIX + "_db"
# What a tenant's session waits for is what a test waits for.
TENANT_MIGRATIONS = {"lock_wait": 0.5, "backoff": 0.05, "attempts": 2}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Each test client loads the middleware; it is not to look at every static file each time.
WHITENOISE_AUTOREFRESH = True
# The cache outlives a test; one that is about throttles sets its own rates.
REST_FRAMEWORK = {
    **REST_FRAMEWORK,
    "DEFAULT_THROTTLE_RATES": {"read": None, "write": None, "failed_authentication": None},
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
