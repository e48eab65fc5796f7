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
import tempfile
from pathlib import Path

from benchmarks.bytecode import compiled_in
from service.embedded_postgres import EmbeddedPostgres

ROOT = Path(__file__).resolve().parent.parent


def measure(*, tenants: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedPostgres(Path(directory) / "server", durable=False)
        server.start(databases=["plane", "shop"])
        environment = {
            **compiled_in(Path(directory) / "bytecode"),
            "DATABASE_URL": server.url("plane"),
            "TENANT_DATABASE_URLS": f"shop={server.url('shop')}",
        }
        try:
            subprocess.run([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env=environment, check=True)
            command = [sys.executable, "-m", "benchmarks.unprotected", f"--tenants={tenants}", f"--rounds={rounds}"]
            command.append(f"--server={server.pid}")
            subprocess.run(
                command, cwd=ROOT, env={**environment, "DJANGO_SETTINGS_MODULE": "service.settings"}, check=True
            )
        finally:
            server.destroy()
