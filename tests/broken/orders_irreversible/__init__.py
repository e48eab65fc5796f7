"""0003, the last one, has a RunPython that cannot be undone."""
