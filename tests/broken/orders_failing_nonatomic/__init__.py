"""0003 is not atomic and, in globex only, raises ValueError after the first of its two tables."""
