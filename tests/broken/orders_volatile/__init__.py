"""Steps that may and steps that cannot leave other rows in each tenant."""
