"""What the execution protocol costs: the same executor with it and without.

On an embedded server of its own, over a fleet of schemas: from zero, with one short migration pending that becomes a
script or changes data as well, and with nothing to do. Of the apps that peers are compared with, which are thirty
migrations of ordinary operations, and of the example shop, of whose seventeen seven are code, SQL or an index that is
built CONCURRENTLY.

Without the protocol there is no preflight, no lock of the tenant, no look at what a step has touched, no verification,
nothing that makes a session new for the next tenant, no lease with its heartbeat and no record of steps. Scripts, and
the session that is passed on for them, are the same for both; so is that a worker is given several tenants at once.
Each is carried out in turn, several times; prints milliseconds per tenant, the smallest of each, and their ratio.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.peers import app_set
from benchmarks.servers import plane_and_shop
from benchmarks.template import APP_SETS

ROOT = Path(__file__).resolve().parent.parent
SETS = ("thirty", "shop")


def measure(*, tenants: int, rounds: int, apps: list[str]) -> None:
    print(f"{tenants} schema tenants, one after the other; the best of {rounds} rounds, milliseconds")
    for name in apps:
        with plane_and_shop(TENANT_APPS=",".join(APP_SETS[name].apps)) as (server, environment, folder):
            app_set.write(folder / "apps")
            around = {
                **environment,
                "PYTHONPATH": f"{ROOT}:{folder / 'apps'}",
                "DJANGO_SETTINGS_MODULE": "service.settings",
            }
            subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=around, check=True)
            print(f"{APP_SETS[name].name}", flush=True)
            command = [sys.executable, "-m", "benchmarks.unprotected", f"--tenants={tenants}", f"--rounds={rounds}"]
            subprocess.run([*command, f"--server={server.pid}", f"--apps={name}"], cwd=ROOT, env=around, check=True)
