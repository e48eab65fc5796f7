"""Not broken: a squashed migration beside the five that it replaces."""
