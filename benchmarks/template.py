"""What a new tenant costs that is copied from a template, and one that is migrated.

On an embedded server of its own, for both kinds of isolation and two sets of apps: the example shop, and with it
Django's auth, content types, sessions and admin. New tenants are created and brought up to date in one process, in turn
by the one and by the other, with their records. Prints the median milliseconds of the whole, of its provisioning and of
its run, the ratio of the wholes, and what the first copy took, which makes the template.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.bytecode import compiled_in
from service.embedded_postgres import EmbeddedPostgres

ROOT = Path(__file__).resolve().parent.parent
SHOP = ["examples.shop.users", "examples.shop.products", "examples.shop.orders"]
CONTRIB = ["contenttypes", "auth", "sessions", "admin"]
APP_SETS = {"shop": SHOP, "shop and contrib": [*[f"django.contrib.{app}" for app in CONTRIB], *SHOP]}


def measure(*, tenants: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedPostgres(Path(directory) / "server", durable=False)
        server.start(databases=[f"{role}_{number}" for role in ("plane", "shop") for number in range(len(APP_SETS))])
        try:
            print(f"{tenants} new tenants of each, {os.cpu_count()} processors; median milliseconds")
            print(f"{'':28}{'migrated':>10}{'copied':>10}{'ratio':>8}{'provision':>11}{'run':>8}{'first copy':>12}")
            for number, (name, apps) in enumerate(APP_SETS.items()):
                environment = {
                    **compiled_in(Path(directory) / "bytecode"),
                    "DATABASE_URL": server.url(f"plane_{number}"),
                    "TENANT_DATABASE_URLS": f"shop={server.url(f'shop_{number}')}",
                    "TENANT_APPS": ",".join(apps),
                    "TENANT_DATABASE_TEMPLATE": f"{{tenant_id}}_{number}",
                    "TENANT_MIGRATIONS": '{"template_data": ["users", "products", "orders"]}',
                    "DJANGO_SETTINGS_MODULE": "service.settings",
                }
                subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=environment, check=True)
                command = [sys.executable, "-m", "benchmarks.new_tenants", f"--tenants={tenants}", f"--name={name}"]
                subprocess.run(command, cwd=ROOT, env=environment, check=True)
        finally:
            server.destroy()
