"""0003 runs RESET ALL, then writes the lock_timeout that is left into the ledger."""
