"""The API: what people, scripts and monitoring see of a fleet, over HTTP.

Klein imports the reactor, and so does this package: it is imported where one runs, by :mod:`novasvc.run.plugin`.
"""
