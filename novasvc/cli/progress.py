"""A bar for the progress that a called method reports."""

import sys
from types import TracebackType
from typing import Any, Self, TextIO

from novasvc.cli.output import printable


class ProgressBar:
    """Draws a bar on a terminal, from the first report until the block ends; without a terminal nothing.

    :param method: the method's name.
    :param stream: where the bar goes; not where the result goes.
    :ivar shown: whether the stream is a terminal.
    """

    def __init__(self, method: str, stream: TextIO | None = None) -> None:
        self._method = method
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._task: Any = None
        self.shown = self._stream.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()

    def finish(self) -> None:
        """Remove the bar, before text is written where it was drawn."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def update(self, fraction: float, text: str) -> None:
        """Show a report."""
        if self._bar is None:
            self._begin()
        # Shown in one line, whatever the method sends, and not as markup of rich.
        self._bar.update(self._task, completed=fraction, text=printable(text), refresh=True)

    def write(self, text: str) -> bool:
        """Write a line above the bar; return False if no bar is drawn.

        :param text: one line, printable.
        """
        if self._bar is None:
            return False
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        return True

    def _begin(self) -> None:
        # Imported here, because few methods report progress.
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        # Without a thread of its own: the reactor's thread draws it.
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=self._stream),
            auto_refresh=False,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(printable(self._method), total=1.0, text="")
