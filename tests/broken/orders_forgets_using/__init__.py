"""0003 writes three ledger rows, each by a way that names no database alias."""
