"""Errors on the wire: encoded, rebuilt as their own classes, and with the place where they were raised."""
