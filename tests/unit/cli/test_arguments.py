"""Tests for novasvc.cli.arguments: NAME=VALUE, and what looks like JSON but is none."""

import sys
from contextlib import redirect_stderr
from io import StringIO

import click
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.arguments import notes_on_types, read_arguments


class DoubtTests(SynchronousTestCase):
    def said(self, *texts: str) -> str:
        with redirect_stderr(StringIO()) as said:
            self.assertEqual(read_arguments(texts), {text.partition("=")[0]: text.partition("=")[2] for text in texts})
        return said.getvalue()

    def test_strings(self) -> None:
        """What is plainly a string is passed without a word."""
        self.assertEqual(self.said("a=disk", "b=2x", "c=", "d=it's", "e=x[1]", "f=Truely"), "")

    def test_doubtful(self) -> None:
        """What was probably meant as JSON is passed as a string, with a warning."""
        for text, reason in (
            ('item="tea', "not valid JSON (Unterminated string"),
            ("sizes=[1, 2", "not valid JSON"),
            ("sizes=[a]", "in single quotes for the shell"),
            ("map={a: 1}", "not valid JSON"),
            ("force=True", "JSON writes true"),
            ("item=None", "JSON writes null"),
            ("item='tea'", "JSON has no single quotes"),
        ):
            said = self.said(text)
            self.assertTrue(said.startswith(f"novasvc: {text} is sent as a string: "), said)
            self.assertIn(reason, said)

    def test_deep(self) -> None:
        """JSON that is nested too deeply to be read is a string as well."""
        problem = "Stack overflow" if sys.version_info >= (3, 14) else "recursion"
        self.assertIn(problem, self.said("a=" + "[" * 100_000)[-300:])

    def test_not_named(self) -> None:
        """An argument without a name, or with an impossible one, is a usage error that says how to write it."""
        for text, shown in (("tea", "by name, such as item=tea"), ("a-b=1", "'a-b' cannot be the name"), ("=1", "''")):
            error = self.assertRaises(click.UsageError, read_arguments, (text,))
            self.assertIn(shown, error.format_message())

    def test_refused(self) -> None:
        """A refused string that begins like a number is explained; any other speaks for itself."""
        arguments = {"amount": "2x", "item": "tea", "other": "3y"}
        self.assertEqual(
            list(notes_on_types(arguments, "amount: expected int, got str; item: bad")),
            ["amount=2x is not a number in JSON, so it was sent as a string"],
        )

    def test_meant_as_string(self) -> None:
        """A refused value that was sent as JSON where a string belongs is shown as a string."""
        arguments = {"item": 5, "force": True, "lines": [1]}
        problem = "item: expected str, got int; force: expected int, got bool; lines: expected str, got array"
        note = "5 is JSON, so it was not sent as a string: write item='\"5\"'"
        self.assertEqual(list(notes_on_types(arguments, problem)), [note])
