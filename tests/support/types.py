"""Where the tests that run mypy keep what it has read."""

from tests.e2e.process import ROOT

MYPY_CACHE = ROOT / ".mypy_cache" / "tests"
"""One directory for all: most of the time mypy reads this package and Twisted."""
