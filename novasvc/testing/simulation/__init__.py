"""A fleet in a seed."""
