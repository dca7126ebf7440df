"""The HTTP API of a fleet: for people, scripts and monitoring.

Klein imports the reactor, and so does this package: :mod:`novasvc.run.services` imports it once the reactor is chosen.
"""
