"""Each step from 0003 on takes a moment between two changes of the schema, and is atomic; 0004 fails in globex."""

NAP = "SELECT pg_sleep(0.05)"
