"""Not broken: 0006 asks by run_before to come before orders.0001_initial."""
