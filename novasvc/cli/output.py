"""Format rows as the OpenStack client does: a table for people; JSON, CSV or bare values for programs."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Sequence
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
        self,
        default_columns: Sequence[str],
        rows: Sequence[dict[str, Any]],
        stream: TextIO | None = None,
        *,
        all_columns: Sequence[str] = (),
    ) -> None:
        """Write rows, one line for each.

        :param default_columns: the columns to write without -c.
        :param rows: column -> value; all rows have the same columns.
        :param all_columns: the columns of a row, for a list without rows; empty if these are the default ones.
        """
        columns = self._chosen(default_columns, rows[0] if rows else dict.fromkeys(all_columns or default_columns))
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
        # By columns: that takes half the time for 10,000 rows.
        as_text = _text_of_cell if self.format == "table" else _text
        texts = [_printable_column(column, missing_text, as_text) for column in zip(*rows, strict=True)]
        if self.format == "value":
            out.writelines(f"{' '.join(row)}\n" for row in zip(*texts, strict=True))
        elif self.format == "csv":
            csv.writer(out, lineterminator="\n").writerows([columns, *zip(*texts, strict=True)])
        else:
            _write_table(columns, texts or [[] for _ in columns], out)


def printable(value: object) -> str:
    """Format a value on one line, with control characters escaped."""
    text = _text(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _text_of_cell(value: object) -> str:
    """Format a value of a table; a time as in reasons, logs and errors."""
    if isinstance(value, str):  # most values are, and a table may have 10,000 rows
        return value
    return f"{value:%Y-%m-%d %H:%M:%S} UTC" if isinstance(value, datetime) else _text(value)


def _printable_column(values: Iterable[object], missing_text: str, as_text: Callable[[object], str]) -> list[str]:
    texts = [missing_text if value is None else as_text(value) for value in values]
    return texts if "".join(texts).isprintable() else [printable(text) for text in texts]


def printable_lines(text: str) -> str:
    """Escape the control characters of a text, except for line feeds."""
    return "\n".join(map(printable, text.split("\n")))


def _write_json(value: object, out: TextIO) -> None:
    out.write(json.dumps(value, indent=2, default=printable) + "\n")


def _write_table(columns: Sequence[str], texts: Sequence[Sequence[str]], out: TextIO) -> None:
    """Write a table.

    :param texts: of each column.
    """
    # Imported here, because only a table needs rich, and only a terminal needs its console.
    from rich import box  # noqa: PLC0415

    widths = [_widest([name, *column]) for name, column in zip(columns, texts, strict=True)]
    if not out.isatty():
        # For a program, lines are never wrapped, whatever the terminal of this process is.
        _write_lines(columns, texts, widths, box.ASCII2, out)
        return
    from rich.console import Console  # noqa: PLC0415

    console = Console(file=out, force_terminal=True, highlight=False)
    if sum(widths) + 3 * len(widths) + 1 > console.width:
        _write_wrapped(columns, texts, console, box.ROUNDED)
    else:
        coloured = console.color_system is not None and not console.no_color
        _write_lines(columns, texts, widths, box.ROUNDED, out, coloured=coloured)


def _write_lines(
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    widths: Sequence[int],
    frame: Any,
    out: TextIO,
    *,
    coloured: bool = False,
) -> None:
    """Write a table that is as wide as it needs."""
    # Without rich, which measures and renders each cell: that takes 8 s for 10,000 rows.

    def format_column(column: Sequence[str], width: int) -> list[str]:
        padded = _padded(column, width)
        if not coloured:
            return padded
        colours = map(_COLOURS.get, column)
        return [click.style(cell, fg=colour) if colour else cell for cell, colour in zip(padded, colours, strict=True)]

    def line(cells: Sequence[str], left: str, divider: str, right: str) -> str:
        return f"{left} {f' {divider} '.join(cells)} {right}\n"

    names = [_padded([name], width)[0] for name, width in zip(columns, widths, strict=True)]
    rows = zip(*map(format_column, texts, widths), strict=True)
    frames = [width + 2 for width in widths]
    head = [click.style(name, bold=True) for name in names] if coloured else names
    out.write(frame.get_top(widths=frames) + "\n")
    out.write(line(head, frame.head_left, frame.head_vertical, frame.head_right))
    out.write(frame.get_row(frames, "head") + "\n")
    out.writelines(line(row, frame.mid_left, frame.mid_vertical, frame.mid_right) for row in rows)
    out.write(frame.get_bottom(widths=frames) + "\n")


def _padded(texts: Sequence[str], width: int) -> list[str]:
    if "".join(texts).isascii():
        return [text.ljust(width) for text in texts]
    return [text + " " * (width - _width(text)) for text in texts]


def _widest(texts: Sequence[str]) -> int:
    return max(map(len if "".join(texts).isascii() else _width, texts))


def _width(text: str) -> int:
    """Return the columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - see _write_table

    return cell_len(text)


def _write_wrapped(columns: Sequence[str], texts: Sequence[Sequence[str]], console: Any, frame: Any) -> None:
    """Write a table that is wider than the terminal: long values are folded."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=frame)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in zip(*texts, strict=True):
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
