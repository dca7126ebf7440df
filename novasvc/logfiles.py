"""Log files: opened as twistd does, rotated, and shared by several processes."""

import fcntl
import os
import signal
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

from twisted.internet.task import LoopingCall

_LOOK_INTERVAL = 10.0
"""Seconds between two looks at how long a file has become that others write to as well."""


def open_log(filename: str, *, daemon: bool, reactor: Any) -> TextIO:
    """Open what twistd's --logfile names, as twistd itself would; SIGUSR1 rotates a file.

    :param filename: a path; "-" or "" is standard output, and "twistd.log" for a daemon.
    :param daemon: the process is about to leave its terminal.
    :param reactor: in its thread the file is rotated; provides IReactorCore, IReactorFromThreads and IReactorTime.
    :raises SystemExit: the file cannot be written, or a daemon was told to log to standard output.
    """
    if filename == "-" and daemon:
        raise SystemExit("novasvc: a daemon has no standard output to log to: give a file to --logfile, or use -n")
    if filename in {"", "-"} and not daemon:
        return sys.stdout
    from twisted.python.logfile import LogFile  # noqa: PLC0415 - only where a file is written

    class SharedLogFile(LogFile):
        """Appends, for others do so as well; and knows its length from the file, not from what we wrote."""

        def _openFile(self) -> None:
            super()._openFile()
            descriptor = self._file.fileno()
            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)

        def shouldRotate(self) -> bool:
            return bool(self.rotateLength) and os.fstat(self._file.fileno()).st_size >= self.rotateLength

    try:
        log_file = SharedLogFile.fromFullPath(filename or "twistd.log")
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "give --logfile a file that this user can write, in a directory that exists"
        raise SystemExit(f"novasvc: cannot log to {filename or 'twistd.log'!r}: {reason}; {remedy}") from error
    # As in twistd, whoever has a handler keeps it. Without any, the signal would end the process.
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda _number, _frame: reactor.callFromThread(log_file.rotate))
    # Workers write to it, too, maybe when we have nothing to say for days.
    looking = LoopingCall(lambda: log_file.rotate() if log_file.shouldRotate() else None)
    looking.clock = reactor
    reactor.callWhenRunning(looking.start, _LOOK_INTERVAL, now=False)
    return cast(TextIO, log_file)


class ReopenedFile:
    """A log file that another process rotates: it is opened again when its name leads to another file.

    What cannot be opened again is not left: a process may have given up the right to open it.

    :param path: of the file.
    :param descriptor: of the file, opened before; None opens it.
    :raises OSError: it cannot be opened.
    """

    def __init__(self, path: str, descriptor: int | None = None) -> None:
        self._path = path
        self._file = self._open() if descriptor is None else os.fdopen(os.dup(descriptor), "a", encoding="utf-8")

    def _open(self) -> TextIO:
        return open(self._path, "a", encoding="utf-8")  # noqa: PTH123 - as long as the process

    def fileno(self) -> int:
        """Return the descriptor of the file that has the name now."""
        self._follow()
        return self._file.fileno()

    def write(self, text: str) -> None:
        """Append to the file that has the name now."""
        self._follow()
        self._file.write(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.flush()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _follow(self) -> None:
        ours = os.fstat(self._file.fileno())
        with suppress(OSError):
            if not _same(ours, self._path):
                former, self._file = self._file, self._open()
                former.close()


def _same(ours: os.stat_result, path: str) -> bool:
    try:
        theirs = os.stat(path)  # noqa: PTH116 - at every line of the log
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
