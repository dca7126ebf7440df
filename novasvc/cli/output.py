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
    if text.isprintable():
        return text
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
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    to_terminal = out.isatty()
    frame = box.ROUNDED if to_terminal else box.ASCII2

    def width_of(text: str) -> int:
        return len(text) if text.isascii() else cell_len(text)

    widths = [max(map(width_of, column)) for column in zip(columns, *rows, strict=True)]
    console = Console(file=out, force_terminal=to_terminal, highlight=False)
    # For a program, lines are never wrapped, whatever the terminal of this process is.
    if to_terminal and sum(widths) + 3 * len(widths) + 1 > console.width:
        _write_wrapped(columns, rows, frame, console)
        return

    coloured = console.color_system is not None and not console.no_color

    def line(cells: Sequence[str], left: str, divider: str, right: str, *, bold: bool = False) -> str:
        padded = [cell + " " * (width - width_of(cell)) for cell, width in zip(cells, widths, strict=True)]
        if coloured:
            padded = [
                click.style(text, fg=_COLOURS.get(cell), bold=bold or None)
                for text, cell in zip(padded, cells, strict=True)
            ]
        return f"{left} {f' {divider} '.join(padded)} {right}\n"

    # By ourselves: rich, which measures and renders each cell, takes 8 s for 10,000 rows.
    out.write(frame.get_top(widths=[width + 2 for width in widths]) + "\n")
    out.write(line(columns, frame.head_left, frame.head_vertical, frame.head_right, bold=True))
    out.write(frame.get_row([width + 2 for width in widths], "head") + "\n")
    out.writelines(line(row, frame.mid_left, frame.mid_vertical, frame.mid_right) for row in rows)
    out.write(frame.get_bottom(widths=[width + 2 for width in widths]) + "\n")


def _write_wrapped(columns: Sequence[str], rows: Sequence[Sequence[str]], frame: Any, console: Any) -> None:
    """Write a table that is wider than the terminal: long values are folded."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=frame)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, not str, so that a host named "[red]" is not taken as markup.
        table.add_row(*(Text(text, style=_COLOURS.get(text, "")) for text in row))
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
