"""Tests for novasvc.cli.console: how the shell shows exceptions."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.console import described


class DescribedTests(SynchronousTestCase):
    """Tests for novasvc.cli.console.described."""

    def test_controls(self) -> None:
        """Control characters in an exception's text, which a peer may have sent, are escaped; line feeds are kept."""
        self.assertEqual(described(ValueError("no stock\nof \x1b[2Jx")), "ValueError: no stock\nof \\x1b[2Jx\n")
