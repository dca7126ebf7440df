"""Tests for novasvc.cli.remote, call and ping, without a broker."""

import click
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.arguments import read_arguments
from novasvc.cli.call import readable
from novasvc.cli.program import program
from novasvc.cli.remote import read_target
from novasvc.rpc.target import Target


class TargetTests(SynchronousTestCase):
    def test_dots(self) -> None:
        """The host starts after the first dot, unless --server names it."""
        self.assertEqual(read_target("compute"), Target("compute"))
        self.assertEqual(read_target("compute.h1.example.org"), Target("compute", "h1.example.org"))
        self.assertEqual(read_target("a.b", "h1"), Target("a.b", "h1"))

    def test_refused(self) -> None:
        """An invalid topic or host is a usage error."""
        for text in ("", ".h1", "compute.", "com*pute", "a b"):
            self.assertRaises(click.UsageError, read_target, text)


class ArgumentTests(SynchronousTestCase):
    def test_values(self) -> None:
        """A value that is valid JSON is passed as JSON, any other as a string."""
        texts = ("a=3", "b=disk", 'c="3"', "d=[1, 2]", "e=null", "f=", "g=x=y", "h=h\u00e9", "i=1.5.2")
        expected = {
            "a": 3, "b": "disk", "c": "3", "d": [1, 2], "e": None, "f": "", "g": "x=y", "h": "h\u00e9", "i": "1.5.2",
        }  # fmt: skip
        self.assertEqual(read_arguments(texts), expected)

    def test_refused(self) -> None:
        """An argument that is not NAME=VALUE, or is repeated, is a usage error that shows it."""
        for texts, shown in ((("3",), "'3'"), (("a-b=1",), "'a-b=1'"), (("a=1", "a=2"), "given twice")):
            error = self.assertRaises(click.UsageError, read_arguments, texts)
            self.assertIn(shown, error.format_message())


class AnswerTests(SynchronousTestCase):
    def test_readable(self) -> None:
        """A string is printed as it is, anything else as JSON, with control characters escaped."""
        self.assertEqual(readable("two\nlines\x1b[2J"), "two\nlines\\x1b[2J")
        self.assertEqual(readable({"name": "h\u00e9\x9b"}), '{\n  "name": "h\u00e9\\x9b"\n}')
        self.assertEqual(readable(None), "null")


class CommandTests(SynchronousTestCase):
    def run_command(self, *arguments: str) -> click.testing.Result:
        # Not the state directory of the user who runs the tests: services may run there.
        return CliRunner().invoke(program, ("--state-dir", self.mktemp(), *arguments), catch_exceptions=True)

    def test_no_broker(self) -> None:
        """Without a broker each command fails, and says how to name one."""
        for command in (("call", "agent", "x"), ("cast", "agent", "x"), ("ping", "agent")):
            error = self.run_command(*command).exception
            self.assertIn("no service of this user runs on this host with state_dir", str(error))
            for place in ("--transport-url", "NOVASVC_TRANSPORT_URL", "configuration file"):
                self.assertIn(place, str(error))

    def test_usage(self) -> None:
        """Invalid arguments are usage errors, before a broker is contacted."""
        for arguments, shown in (
            (("call", "agent", "x", "--timeout", "inf"), "inf is not a number of seconds"),
            (("call", "agent", "x", "--timeout", "nan"), "nan is not a number of seconds"),
            (("call", "agent", "x", "--timeout", "0"), "0.001"),
            (("call", "agent", "x", "--call-monitor", "1"), "x>=2"),
            (("call", "agent", "x", "--version", "two"), "'two' is not a version"),
            (("call", "agent.h1", "x", "--fanout"), "agent.h1 names one"),
            (("call", "agent.h1", "x", "--gather"), "--gather calls every service of a topic; give no host"),
            (("call", "agent", "x", "--gather", "--fanout"), "neither --fanout nor --call-monitor"),
            (("cast", "agent", "x", "--fanout", "--server", "h1"), "agent.h1 names one"),
            (("ping", "agent", "--interval", "inf"), "inf is not a number of seconds"),
        ):
            ran = self.run_command(*arguments)
            self.assertEqual(ran.exit_code, 2, ran.output)
            self.assertIn(shown, " ".join(ran.output.split()))

    def test_help(self) -> None:
        """The help says how to write arguments."""
        for command in ("call", "cast", "ping"):
            self.assertIn("TOPIC[.HOST]", self.run_command(command, "--help").output)
        self.assertIn("count=3 is a number", self.run_command("call", "--help").output)
