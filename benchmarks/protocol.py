"""What the execution protocol costs: the same executor with it and without.

On an embedded server of its own, over a fleet of schemas: from zero, with one short migration pending that changes
data as well, with one that becomes a script, and with nothing to do. Without the protocol there is no preflight, no
lock of the tenant, no look at what a step has touched, no verification, nothing that makes a session new for the next
tenant, no lease with its heartbeat and no record of steps. Scripts, and the session that is passed on for them, are the
same for both. Each is carried out in turn, several times; prints milliseconds per tenant, the smallest of each, and
their ratio.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.servers import plane_and_shop

ROOT = Path(__file__).resolve().parent.parent


def measure(*, tenants: int, rounds: int) -> None:
    with plane_and_shop() as (server, environment, _):
        subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=environment, check=True)
        command = [sys.executable, "-m", "benchmarks.unprotected", f"--tenants={tenants}", f"--rounds={rounds}"]
        command.append(f"--server={server.pid}")
        subprocess.run(command, cwd=ROOT, env={**environment, "DJANGO_SETTINGS_MODULE": "service.settings"}, check=True)
