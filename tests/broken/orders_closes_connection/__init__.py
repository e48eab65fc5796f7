"""0003 is not atomic and closes the connection: Django reconnects in silence, in a new session."""
