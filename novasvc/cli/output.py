"""Format rows as the OpenStack client does: a table for people; JSON, CSV or bare values for programs."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, TextIO

import attrs
import click

_COLOURS = {
    "up": "green",
    "down": "red",
    "disabled": "yellow",
    "ready": "green",
    "hung": "red",
    "failed": "red",
    "backing off": "yellow",
}
_UNLIMITED_WIDTH = 100_000
"""Line width in characters if the output is not a terminal."""


@attrs.frozen
class Output:
    """Output format and columns, from the options -f and -c.

    :param format: "table", "json", "csv" or "value".
    :param columns: names of the columns to write, case-insensitive; empty for the default columns.
    """

    format: str
    columns: tuple[str, ...]

    def write_list(
        self, default_columns: Sequence[str], rows: Sequence[dict[str, Any]], stream: TextIO | None = None
    ) -> None:
        """Write rows, one line for each.

        :param default_columns: the columns to write without -c.
        :param rows: column -> value; all rows have the same columns, which may be more than the default ones.
        """
        columns = self._chosen(default_columns, rows[0] if rows else dict.fromkeys(default_columns))
        values = [[row[column] for column in columns] for row in rows]
        out = stream or sys.stdout
        if self.format == "json":
            _write_json([dict(zip(columns, row, strict=True)) for row in values], out)
        else:
            self._write(columns, values, out)

    def write_one(self, row: dict[str, Any], stream: TextIO | None = None) -> None:
        """Write a single row, one line for each value."""
        columns = self._chosen(tuple(row), row)
        out = stream or sys.stdout
        if self.format == "json":
            _write_json({column: row[column] for column in columns}, out)
        elif self.format == "value":
            self._write(["Value"], [[row[column]] for column in columns], out)
        else:
            self._write(["Field", "Value"], [[column, row[column]] for column in columns], out)

    def _chosen(self, default_columns: Sequence[str], row: dict[str, Any]) -> list[str]:
        """Return the columns to write, in the order of the row."""
        if not self.columns:
            return list(default_columns)
        wanted = {name.lower() for name in self.columns}
        unknown = wanted - {name.lower() for name in row}
        if unknown:
            message = f"No such column: {min(unknown)!r}. Columns: {', '.join(row)}."
            raise click.UsageError(message, click.get_current_context(silent=True))
        return [name for name in row if name.lower() in wanted]

    def _write(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], out: TextIO) -> None:
        missing_text = "-" if self.format == "table" else "" if self.format == "csv" else "None"
        texts = [[missing_text if value is None else printable(value) for value in row] for row in rows]
        if self.format == "value":
            out.writelines(f"{' '.join(row)}\n" for row in texts)
        elif self.format == "csv":
            csv.writer(out, lineterminator="\n").writerows([columns, *texts])
        else:
            _write_table(columns, texts, out)


def printable(value: object) -> str:
    """Format a value on one line, with control characters escaped."""
    text = value.isoformat(timespec="microseconds") if isinstance(value, datetime) else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Escape the control characters of a text, except for line feeds."""
    return "\n".join(map(printable, text.split("\n")))


def _write_json(value: object, out: TextIO) -> None:
    json.dump(value, out, indent=2, default=printable)
    out.write("\n")


def _write_table(columns: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO) -> None:
    # Imported here, because only a table needs rich.
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    to_terminal = out.isatty()
    table = Table(box=box.ROUNDED if to_terminal else box.ASCII2)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not to_terminal)
    for row in rows:
        # Text, not str, so that a host named "[red]" is not taken as markup.
        table.add_row(*(Text(text, style=_COLOURS.get(text, "")) for text in row))
    # For a program, lines are never wrapped, whatever the terminal of this process is.
    console = Console(
        file=out, width=None if to_terminal else _UNLIMITED_WIDTH, force_terminal=to_terminal, highlight=False
    )
    console.print(table)


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options -f and -c to a command, which gets them as ``output``."""

    @click.option(
        "-f",
        "--format",
        "output_format",
        type=click.Choice(["table", "json", "csv", "value"]),
        default="table",
        help="Output format.",
    )
    @click.option(
        "-c", "--column", "columns", multiple=True, metavar="COLUMN", help="Print only this column; may be repeated."
    )
    @wraps(function)
    def with_output(*args: Any, output_format: str, columns: tuple[str, ...], **kwargs: Any) -> Any:
        return function(*args, output=Output(output_format, columns), **kwargs)

    return with_output
