"""The version: this is the only place that has it. pyproject.toml, the log and `--version` read it from here."""

__version__ = "0.1.0"
