"""0003 creates a table, then waits for as long as somebody holds the advisory lock GATE of the tenant's database."""

GATE = 7201
