"""The version: the one place that says it; setup.py, the log and `--version` read it from here."""

__version__ = "0.1.0"
