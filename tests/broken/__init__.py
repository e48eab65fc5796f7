"""Migration packages for the shop's apps, chosen by MIGRATION_MODULES; each docstring says what is wrong."""
