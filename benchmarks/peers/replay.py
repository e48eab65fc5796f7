"""The SQL alone: a process that sends recorded statements to tenants over a few connections, and knows nothing else.

`python -m benchmarks.peers.replay`, with a Work as JSON on its standard input.
"""

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import psycopg2
from psycopg2 import sql

CONNECTIONS = 4


class Home(NamedTuple):
    database: str
    schema: str


def replay(dsn: str, homes: Sequence[Home], batches: Sequence[str]) -> None:
    """Send the batches to each home, each batch in a transaction of its own; `dsn` may name any database."""
    shares = [homes[number::CONNECTIONS] for number in range(CONNECTIONS)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(lambda share: _replay(dsn, share, batches), shares))


def _replay(dsn: str, homes: Sequence[Home], batches: Sequence[str]) -> None:
    connection: Any = None
    for home in homes:
        if connection is None or connection.info.dbname != home.database:
            if connection is not None:
                connection.close()
            connection = psycopg2.connect(dsn, dbname=home.database)
            connection.autocommit = True
        with closing(connection.cursor()) as cursor:
            path = sql.SQL("SET search_path TO {};").format(sql.Identifier(home.schema)).as_string(cursor)
            for batch in batches:
                # Without arguments nothing in it is a placeholder.
                cursor.execute(path + batch)
                if cursor.description:
                    cursor.fetchall()
                path = ""
    if connection is not None:
        connection.close()


if __name__ == "__main__":
    work = json.load(sys.stdin)
    replay(work["dsn"], [Home(*home) for home in work["homes"]], work["batches"])
