"""0003 inserts the same email twice, in globex only: the driver's DETAIL shows the row."""
