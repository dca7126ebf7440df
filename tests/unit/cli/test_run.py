"""Tests for `novasvc run`."""

from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.command_context import CommandContext
from novasvc.cli.run import _arguments, topic_of


class ArgumentsTests(SynchronousTestCase):
    """Tests for the command line that twistd gets."""

    def test_topic(self) -> None:
        """The topic is the class's name in words, without "Manager"."""
        for target, topic in (
            ("shop.stock:Stock", "stock"),
            ("shop.stock.Stock", "stock"),
            ("shop:TeaShopManager", "tea_shop"),
            ("shop:Manager", "manager"),
            ("shop:HTTPFront2", "httpfront2"),
        ):
            self.assertEqual(topic_of(target), topic)

    def test_defaults(self) -> None:
        """Topic and binary are named after the class; options in front of the command's name reach the node."""
        context = CommandContext((), {"state-dir": "/s", "transport-url": None}, {})
        expected = (
            "--nodaemon --pidfile= novasvc --manager shop:Stock --state-dir /s --topic stock --binary novasvc-stock "
            "--periodic-fuzzy-delay 0 --workers 2"
        )
        self.assertEqual(" ".join(_arguments(context, "shop:Stock", ["--workers", "2"])), expected)

    def test_topic_given(self) -> None:
        """The binary follows the topic: two topics of one class are two services."""
        for options in (["--topic", "black"], ["--topic=black"]):
            arguments = _arguments(CommandContext((), {}, {}), "shop:Stock", options)
            self.assertIn("--binary novasvc-black", " ".join(arguments))

    def test_given(self) -> None:
        """Options of twistd novasvc take the place of what is derived from the class."""
        arguments = _arguments(CommandContext((), {}, {}), "shop:Stock", ["--topic", "t", "--binary=b"])
        self.assertEqual(" ".join(arguments[3:]), "--manager shop:Stock --periodic-fuzzy-delay 0 --topic t --binary=b")
