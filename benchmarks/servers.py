"""Where a benchmark of the service takes place: an embedded server of its own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bytecode import compiled_in
from service.embedded_postgres import EmbeddedPostgres


@contextmanager
def plane_and_shop(**more: str) -> Iterator[tuple[EmbeddedPostgres, dict[str, str], Path]]:
    """A server with a control plane and a database for tenants, and the environment of processes that use them.

    `more` is theirs as well. With a folder, which is gone afterwards.
    """
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        server = EmbeddedPostgres(folder / "server", durable=False)
        server.start(databases=["plane", "shop"])
        environment = {
            **compiled_in(folder / "bytecode"),
            "DATABASE_URL": server.url("plane"),
            "TENANT_DATABASE_URLS": f"shop={server.url('shop')}",
            **more,
        }
        try:
            yield server, environment, folder
        finally:
            server.destroy()
