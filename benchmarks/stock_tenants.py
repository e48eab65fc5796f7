"""New tenants by Django's own `migrate`, in one process without the service; for `template`, as JSON what they took.

With `--once`, a single one, for whoever measures the process from outside.
"""

import argparse
import json
import os
import sys
import time
from contextlib import closing
from functools import partial

import dj_database_url
import django
import psycopg2
from django.conf import settings

settings.configure(
    DATABASES={"default": dj_database_url.parse(os.environ["SHOP_URL"])},
    INSTALLED_APPS=os.environ["TENANT_APPS"].split(","),
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    **json.loads(os.environ["PEERS"])["settings"],
)
django.setup()

from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from psycopg2 import sql

from benchmarks.first_and_further import Cost, costs
from benchmarks.processor import processor_time

KINDS = ("empty", "stock")


def new_tenant(name: str, kind: str, *, isolation: str, server: int) -> Cost:
    """A schema or database of its own, migrated by a session that goes there."""
    began, used = time.perf_counter(), processor_time(server)
    with closing(psycopg2.connect(os.environ["SHOP_URL"])) as creating, creating.cursor() as cursor:
        creating.autocommit = True
        cursor.execute(sql.SQL(f"CREATE {isolation} {{}}").format(sql.Identifier(name)))
    if kind == "stock":
        migrate(name, isolation)
    return (time.perf_counter() - began) * 1000, (processor_time(server) - used) * 1000


def migrate(name: str, isolation: str) -> None:
    if isolation == "schema":
        connection.settings_dict["OPTIONS"]["options"] = f'-c search_path="{name}"'
    else:
        connection.settings_dict["NAME"] = name
    if apps.is_installed("django.contrib.contenttypes"):
        # Django takes those of the last tenant for this one's.
        apps.get_model("contenttypes", "ContentType").objects.clear_cache()
    with closing(connection):
        call_command("migrate", verbosity=0, skip_checks=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", metavar="NAME")
    parser.add_argument("--tenants", type=int)
    parser.add_argument("--server", type=int, help="The pid of the PostgreSQL server.")
    parser.add_argument("isolation", choices=["schema", "database"])
    options = parser.parse_args()
    if options.once:
        new_tenant(options.once, "stock", isolation=options.isolation, server=os.getpid())
        return
    # A worker has read the migrations before it meets a tenant.
    MigrationLoader(None)
    prefix = f"{connection.settings_dict['NAME']}-{options.isolation}"
    make = partial(new_tenant, isolation=options.isolation, server=options.server)
    json.dump(costs(make, KINDS, prefix=prefix, times=options.tenants), sys.stdout)


if __name__ == "__main__":
    main()
