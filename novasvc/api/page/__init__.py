"""The page: a fleet as people see it in a browser."""
