"""Tests for the output of the operators' command."""

import json
import os
from datetime import datetime
from io import StringIO
from typing import Any
from unittest.mock import patch

import click
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.output import Output, printable

ROWS: list[dict[str, Any]] = [
    {"ID": 1, "Host": "h1", "Updated At": datetime(2026, 1, 2, 3, 4, 5), "Reason": None},  # noqa: DTZ001 - as rows have it
    {"ID": 2, "Host": "a,b", "Updated At": None, "Reason": "two\nlines\x1b[31m"},
]


class Terminal(StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


class OutputTests(SynchronousTestCase):
    """Tests for novasvc.cli.output.Output."""

    def write(self, output_format: str, *columns: str, rows: list[dict[str, Any]] = ROWS) -> str:
        """Write all columns, or the given ones."""
        out = StringIO()
        Output(output_format, columns).write_list(list(ROWS[0]), rows, out)
        return out.getvalue()

    def test_table(self) -> None:
        """Outside a terminal a table is plain ASCII, one line a row."""
        self.assertEqual(
            self.write("table"),
            "+----+------+-------------------------+--------------------+\n"
            "| ID | Host | Updated At              | Reason             |\n"
            "+----+------+-------------------------+--------------------+\n"
            "| 1  | h1   | 2026-01-02 03:04:05 UTC | -                  |\n"
            "| 2  | a,b  | -                       | two\\nlines\\x1b[31m |\n"
            "+----+------+-------------------------+--------------------+\n",
        )

    def test_several(self) -> None:
        """Several values in one are a list in JSON, and joined by commas elsewhere."""
        rows = [{"Tags": ("gpu", "ssd")}, {"Tags": ()}]
        self.assertEqual(json.loads(self.write("json", "Tags", rows=rows)), [{"Tags": ["gpu", "ssd"]}, {"Tags": []}])
        self.assertEqual(self.write("value", "Tags", rows=rows), "gpu, ssd\n\n")
        self.assertEqual(self.write("csv", "Tags", rows=rows), 'Tags\n"gpu, ssd"\n""\n')
        self.assertIn("| gpu, ssd |", self.write("table", "Tags", rows=rows))

    def test_table_of_any_width(self) -> None:
        """Output for programs is never truncated or wrapped."""
        self.assertIn("x" * 2000, self.write("table", "Host", rows=[{"Host": "x" * 2000}]))

    def test_markup(self) -> None:
        """Text that looks like rich's markup is printed as it is."""
        self.assertIn("| [red]x |", self.write("table", "Host", rows=[{"Host": "[red]x"}]))

    def test_json(self) -> None:
        """JSON has an object for each row, with numbers and nulls."""
        self.assertEqual(
            json.loads(self.write("json")),
            [
                {"ID": 1, "Host": "h1", "Updated At": "2026-01-02T03:04:05.000000", "Reason": None},
                {"ID": 2, "Host": "a,b", "Updated At": None, "Reason": "two\nlines\x1b[31m"},
            ],
        )

    def test_json_is_written_at_once(self) -> None:
        """A list is one write: standard output that is not buffered makes a system call of each."""
        writes: list[str] = []

        class Stream(StringIO):
            def write(self, text: str) -> int:
                writes.append(text)
                return len(text)

        Output("json", ()).write_list(list(ROWS[0]), ROWS, Stream())
        self.assertEqual(len(writes), 1)
        self.assertEqual(json.loads(writes[0])[0]["Host"], "h1")

    def test_csv(self) -> None:
        """CSV has a header, and quotes values that need it."""
        self.assertEqual(
            self.write("csv"),
            'ID,Host,Updated At,Reason\n1,h1,2026-01-02T03:04:05.000000,\n2,"a,b",,two\\nlines\\x1b[31m\n',
        )

    def test_value(self) -> None:
        """Values are separated by spaces; a missing one is "None", so that fields can be counted."""
        self.assertEqual(self.write("value", "ID", "Updated At"), "1 2026-01-02T03:04:05.000000\n2 None\n")

    def test_columns(self) -> None:
        """Column names are case-insensitive; the order of columns stays."""
        self.assertEqual(self.write("value", "host", "ID"), "1 h1\n2 a,b\n")

    def test_unknown_column(self) -> None:
        """An unknown column is an error that lists the columns."""
        error = self.assertRaises(click.UsageError, self.write, "value", "Hots")
        self.assertIn("ID, Host, Updated At, Reason", str(error))

    def test_no_rows(self) -> None:
        """Without rows there is a header, an empty list, or nothing."""
        self.assertEqual(self.write("csv", rows=[]), "ID,Host,Updated At,Reason\n")
        self.assertEqual(json.loads(self.write("json", rows=[])), [])
        self.assertEqual(self.write("value", rows=[]), "")
        self.assertIn("| ID | Host |", self.write("table", rows=[]))

    def test_other_column_without_rows(self) -> None:
        """Without rows, too, a column that is not written by default can be chosen, and an unknown one is an error."""
        out = StringIO()
        Output("csv", ("uuid",)).write_list(["ID"], [], out, all_columns=("ID", "UUID"))
        self.assertEqual(out.getvalue(), "UUID\n")
        output = Output("csv", ("uid",))
        self.assertRaises(click.UsageError, output.write_list, ["ID"], [], out, all_columns=("ID", "UUID"))

    def test_one(self) -> None:
        """A single row has one line for each field; in JSON it is an object."""
        written = {}
        for output_format in ("csv", "value", "json"):
            out = StringIO()
            Output(output_format, ("ID", "Host")).write_one(ROWS[0], out)
            written[output_format] = out.getvalue()
        self.assertEqual(written["csv"], "Field,Value\nID,1\nHost,h1\n")
        self.assertEqual(written["value"], "1\nh1\n")
        self.assertEqual(json.loads(written["json"]), {"ID": 1, "Host": "h1"})

    def on_terminal(self, row: dict[str, Any], **environment: str) -> str:
        """Write a table with one row to a terminal of 80 columns."""
        out = Terminal()
        with patch.dict(os.environ, {"TERM": "xterm", "COLUMNS": "80", **environment}, clear=True):
            Output("table", ()).write_list(list(row), [row], out)
        return out.getvalue()

    def test_terminal(self) -> None:
        """On a terminal the state has a colour, unless NO_COLOR says otherwise."""
        self.assertIn("│ \x1b[31mdown ", self.on_terminal({"State": "down"}))
        self.assertIn("│ down  │", self.on_terminal({"State": "down"}, NO_COLOR="1"))

    def test_wide_characters(self) -> None:
        """A character of East Asian scripts takes two columns."""
        lines = self.on_terminal({"Host": "文a"}, NO_COLOR="1").splitlines()
        self.assertEqual(lines[1:4], ["│ Host │", "├──────┤", "│ 文a  │"])

    def test_folded(self) -> None:
        """A table that is wider than the terminal is folded, and nothing is lost."""
        text = self.on_terminal({"Host": "x" * 100, "State": "up"}, NO_COLOR="1")
        self.assertEqual(text.count("x"), 100)
        self.assertEqual({len(line) for line in text.splitlines()[2:]}, {80})

    def test_printable(self) -> None:
        """printable() keeps letters of any alphabet, and escapes control characters."""
        self.assertEqual(printable("é文\x07\u202e"), "é文\\x07\\u202e")
