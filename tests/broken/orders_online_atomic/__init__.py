"""0003 is written with the schema builder, and forgets to say that it has no transaction."""
