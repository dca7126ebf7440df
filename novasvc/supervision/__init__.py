"""Processes that are looked after: born, watched, drained, replaced."""
