"""`manage.py` of a project that has been built with another tool; STOCK says which, and on which database."""

import json
import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line

given = json.loads(os.environ["STOCK"])
BOTH = ["django.contrib.contenttypes", "django.contrib.auth"]
SHOP = ["examples.shop.users", "examples.shop.products", "examples.shop.orders"]
CLIENT = f"{given['tool']}_customers.Client"
TOOLS = {
    "tenants": {
        "engine": "django_tenants.postgresql_backend",
        "router": "django_tenants.routers.TenantSyncRouter",
        "settings": {
            "SHARED_APPS": ["django_tenants", "tenants_customers", *BOTH],
            "TENANT_APPS": [*BOTH, *SHOP],
            "INSTALLED_APPS": ["django_tenants", "tenants_customers", *BOTH, *SHOP],
            "TENANT_MODEL": CLIENT,
            "TENANT_DOMAIN_MODEL": "tenants_customers.Domain",
        },
    },
    "pgschemas": {
        "engine": "django_pgschemas.postgresql",
        "router": "django_pgschemas.routers.TenantAppsRouter",
        "settings": {
            "INSTALLED_APPS": ["django_pgschemas", "pgschemas_customers", *BOTH, *SHOP],
            "TENANTS": {
                "public": {"APPS": ["django_pgschemas", "pgschemas_customers", *BOTH]},
                "default": {"TENANT_MODEL": CLIENT, "APPS": [*BOTH, *SHOP], "URLCONF": "urls"},
            },
        },
    },
}

if __name__ == "__main__":
    tool = TOOLS[given["tool"]]
    settings.configure(
        DATABASES={"default": {**given["database"], "ENGINE": tool["engine"]}},
        DATABASE_ROUTERS=[tool["router"]],
        MIGRATION_MODULES=given["modules"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        # pgschemas looks for the table of sessions otherwise.
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        USE_TZ=True,
        **tool["settings"],
    )
    execute_from_command_line(["manage.py", *sys.argv[1:]])
