"""The web page: a fleet in a browser."""
