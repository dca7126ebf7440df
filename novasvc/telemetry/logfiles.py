"""Log files that several processes append to, and that logrotate or SIGUSR1 rotates."""

import fcntl
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO, cast

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_log = Logger()

_LOOK_INTERVAL = 1.0
"""Seconds between two looks at the name of a log file, for a process that has nothing to log."""

_ABSENCE = 10.0
"""Seconds for which a log file's name may lead nowhere before the file is made again without a signal."""

_ANNOUNCEMENT = 600.0
"""Seconds after which SIGUSR1 is not about a rotation any more that was noticed without it."""

_STANDARD = (1, 2)
"""The descriptors of standard output and standard error."""

# Note [How a log rotates]
#
# Each process writes to the file that has the name. If the name leads to another file, another program
# has rotated the log: the process opens the new file, and changes nothing about it, so the mode and the
# owner that logrotate gave it stay. SIGUSR1 makes the process look at once. Only if the name still leads
# to the file that the process writes to does the signal mean what it means to twistd: rename the file to
# NAME.1, the one before to NAME.2, and begin a new one. logrotate's signal mostly comes when the process has
# noticed the new file already, by a line that it logged meanwhile. So the first signal after that renames nothing.
#
# While the name leads nowhere, logrotate may be between its rename and its create. A process that made the
# file then would have logrotate move that file out of its way. So lines go on to the renamed file until the
# signal comes, or until nothing has come for a while.
#
# The descriptor's number stays: dup2 puts the new file in the place of the old one, under threads that write
# as well, and for standard output and standard error where they were the old file.


class LogFile:
    """A log file, by its name. Takes text; each call of ``write`` is one write of the system.

    :param path: of the file. Relative to the present directory, now.
    :param descriptor: of the file, opened before by somebody with the right to do so; None opens the file.
    :param clock: returns seconds that only grow.
    :raises OSError: the file cannot be opened.
    """

    def __init__(
        self, path: str, descriptor: int | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = os.path.abspath(path)  # noqa: PTH100 - the name, whatever links there are
        self._clock = clock
        self._absent_since: float | None = None
        self._followed_at: float | None = None
        self._refusal: str | None = None
        if descriptor is None:
            self._descriptor = os.open(self._path, _FLAGS | os.O_CREAT, 0o666)
        else:
            self._descriptor = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)

    def fileno(self) -> int:
        """Return the descriptor. It stays the same as long as this is open."""
        return self._descriptor

    def write(self, text: str) -> None:
        """Append to the file that has the name now.

        :raises OSError: the text cannot be written.
        """
        self.follow()
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._descriptor, data) :]

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def follow(self) -> bool:
        """Open the file that has the name now, if that is another one; see Note [How a log rotates].

        :return: whether the descriptor is another file from now on.
        """
        ours = os.fstat(self._descriptor)
        named = _named(self._path, ours)
        if named is not None and os.path.samestat(ours, named):
            self._absent_since = None
            return False
        now = self._clock()
        if named is None:
            if self._absent_since is None:
                self._absent_since = now
            if now - self._absent_since < _ABSENCE:
                return False
        if self._reopen(ours):
            self._followed_at = now
            return True
        return False

    def rotate(self) -> bool:
        """Do what SIGUSR1 asks for: begin a new file, unless another program has done so; see Note [How a log rotates].

        :return: whether the descriptor is another file from now on.
        """
        self._refusal = None  # whoever sent the signal is to be told, as often as it fails
        ours = os.fstat(self._descriptor)
        named = _named(self._path, ours)
        followed_at, self._followed_at = self._followed_at, None
        if named is not None and os.path.samestat(ours, named):
            announced = followed_at is not None and self._clock() - followed_at < _ANNOUNCEMENT
            if announced or not stat.S_ISREG(ours.st_mode):
                return False
            try:
                _rename(os.path.realpath(self._path))
            except OSError as error:
                self._refuse("cannot be rotated", error)
                return False
        return self._reopen(ours)

    def watch(self, reactor: Any) -> None:
        """Look at the name once a second from now on, as long as the reactor runs.

        :param reactor: provides IReactorCore and IReactorTime.
        """
        looking = LoopingCall(self.follow)
        looking.clock = reactor

        def start() -> None:
            looking.start(_LOOK_INTERVAL, now=False).addErrback(
                lambda failure: _log.failure("the log file {path} is not watched any more", failure, path=self._path)
            )

        reactor.callWhenRunning(start)

    def _reopen(self, ours: os.stat_result) -> bool:
        try:
            opened = _open_like(self._path, ours)
        except OSError as error:
            self._refuse("cannot be opened again, and lines go on to the file that was renamed", error)
            return False
        try:
            for number in _STANDARD:
                with suppress(OSError):  # closed
                    if number != self._descriptor and os.path.samestat(os.fstat(number), ours):
                        os.dup2(opened, number)
            os.dup2(opened, self._descriptor, inheritable=False)
        finally:
            os.close(opened)
        self._absent_since = self._refusal = None
        return True

    def _refuse(self, problem: str, error: OSError) -> None:
        """Log a failure, once as long as its reason stays the same: what is logged comes by here again."""
        reason = error.strerror or str(error)
        if reason != self._refusal:
            self._refusal = reason
            _log.error(
                "the log file {path} {problem}: {reason}; give uid {uid} the right to write there",
                path=self._path,
                problem=problem,
                reason=reason,
                uid=os.geteuid(),
            )


_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY


def _named(path: str, ours: os.stat_result) -> os.stat_result | None:
    """Return what a name leads to; None if that is nothing. Where this process may not look, it is our file."""
    try:
        return os.stat(path)  # noqa: PTH116 - at every line of the log
    except FileNotFoundError:
        return None
    except OSError:
        return ours


def _open_like(path: str, before: os.stat_result) -> int:
    """Open a log file; one that has to be made gets mode, owner and group of the file before, where it may be given."""
    path = os.path.realpath(path)  # a link whose file was renamed is there, and would pass for the file
    try:
        descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, _FLAGS | os.O_CREAT, 0o600)
    with suppress(OSError):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    with suppress(OSError):
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
    return descriptor


def _rename(path: str) -> None:
    """Rename a file to NAME.1, and those that have such names already to the next number."""
    folder, name = os.path.split(path)
    endings = [entry.removeprefix(f"{name}.") for entry in os.listdir(folder) if entry.startswith(f"{name}.")]  # noqa: PTH208
    numbers = {int(ending) for ending in endings if ending.isascii() and ending.isdecimal() and ending[0] != "0"}
    free = 1
    while free in numbers:
        free += 1
    for number in range(free, 1, -1):
        os.rename(f"{path}.{number - 1}", f"{path}.{number}")  # noqa: PTH104
    os.rename(path, f"{path}.1")  # noqa: PTH104


def open_log(filename: str, *, daemon: bool, reactor: Any) -> TextIO:
    """Open what twistd's --logfile names; SIGUSR1 rotates a file.

    :param filename: a path; "-" or "" is standard output, and "twistd.log" for a daemon.
    :param daemon: the process is about to leave its terminal.
    :param reactor: in its thread the file is rotated; provides IReactorCore, IReactorFromThreads and IReactorTime.
    :raises SystemExit: the file cannot be written, or a daemon was told to log to standard output.
    """
    if filename == "-" and daemon:
        raise SystemExit("novasvc: a daemon has no standard output to log to: give a file to --logfile, or use -n")
    if filename in {"", "-"} and not daemon:
        return sys.stdout
    try:
        log_file = LogFile(filename or "twistd.log")
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "give --logfile a file that this user can write, in a directory that exists"
        raise SystemExit(f"novasvc: cannot log to {filename or 'twistd.log'!r}: {reason}; {remedy}") from error
    rotate_at_signal(log_file.rotate, reactor)
    log_file.watch(reactor)
    return cast(TextIO, log_file)


def rotate_at_signal(rotate: Callable[[], object], reactor: Any) -> None:
    """Have SIGUSR1 rotate the log, unless the signal has a handler already: a signal is to rotate once.

    :param rotate: called in the reactor's thread.
    :param reactor: provides IReactorFromThreads.
    """
    # Without a handler the signal would end the process. Those that there may be: twistd's, or an application's own.
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda _number, _frame: reactor.callFromThread(rotate))
