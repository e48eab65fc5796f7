"""0003 is written with the schema builder, and without a transaction."""
