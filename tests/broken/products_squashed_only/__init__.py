"""Fails on a tenant that stands inside the history: the squashed migration is here, the five it replaces are not."""
