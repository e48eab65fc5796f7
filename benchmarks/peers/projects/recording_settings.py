"""The project of Django alone, which writes the statements that change something to the file PEERS_RECORDING."""

import os
from typing import Any

from psycopg2.extensions import cursor as Cursor  # noqa: N812
from stock_settings import *  # noqa: F403
from stock_settings import DATABASES

READS = (b"SELECT", b"SAVEPOINT", b"RELEASE", b"SHOW")


class RecordingCursor(Cursor):
    def execute(self, *arguments: Any) -> None:
        super().execute(*arguments)
        if not self.query.lstrip().upper().startswith(READS):
            with open(os.environ["PEERS_RECORDING"], "ab") as recording:  # noqa: PTH123
                recording.write(self.query.rstrip().rstrip(b";") + b";\0")


DATABASES["default"].setdefault("OPTIONS", {})["cursor_factory"] = RecordingCursor
