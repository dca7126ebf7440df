"""The operators' command, ``novasvc``."""

from novasvc.cli.program import main

__all__ = ["main"]
