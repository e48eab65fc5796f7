"""0003 changes two tables in one transaction: it has the first one's lock while it waits for the other's."""
