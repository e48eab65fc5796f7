"""0003 raises ValueError in a data step between two schema changes, in globex only."""
