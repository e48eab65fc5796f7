"""0003 depends on users.0099_missing, which does not exist."""
