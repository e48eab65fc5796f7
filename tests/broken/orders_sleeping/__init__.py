"""0003 takes the strongest lock on the orders, then sleeps in one statement for longer than any test waits."""

SLEEP = "SELECT pg_sleep(600)"
