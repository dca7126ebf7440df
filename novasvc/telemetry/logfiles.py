"""Log files that several processes append to, rotated by logrotate or by SIGUSR1."""

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

_CHECK_INTERVAL = 1.0
"""Seconds between two checks of a log file's name, for a process that has nothing to log."""

_MISSING_TIMEOUT = 10.0
"""Seconds for which a log file may be missing before it is created again without a signal."""

_ROTATION_TIMEOUT = 600.0
"""Seconds after a rotation was noticed in which SIGUSR1 is taken as its announcement."""

_STANDARD = (1, 2)
"""The descriptors of standard output and standard error."""

# Note [How a log rotates]
#
# Each process writes to the file that has the log's name. If the name leads to another file, another
# program has rotated the log: the process opens the new file and does not change it, so the mode and
# the owner that logrotate set are kept. SIGUSR1 makes the process check at once. Only if the name still
# leads to the file that the process writes to does the signal mean what it means to twistd: rename the
# file to NAME.1, the previous one to NAME.2, and create a new one. logrotate's signal mostly arrives when
# a log line has made the process notice the new file already, so the first signal after that renames
# nothing.
#
# While the name leads nowhere, logrotate may be between its rename and its create. If the process
# created the file then, logrotate would rename that file. So lines go to the renamed file until the
# signal arrives, or until the name was missing for a while.
#
# The descriptor's number stays the same: dup2 replaces the old file by the new one, atomically for
# threads that are writing, and also for standard output and standard error if they are the old file.


class LogFile:
    """A log file that follows its name. Each ``write`` of a text is one system call.

    :param path: the file's name. A relative one is resolved against the current directory, now.
    :param descriptor: of the file, opened by a process with the right to do so; None opens the file.
    :param clock: returns monotonic seconds.
    :raises OSError: the file cannot be opened.
    """

    def __init__(
        self, path: str, descriptor: int | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = os.path.abspath(path)  # noqa: PTH100 - the log's name, without resolving links
        self._clock = clock
        self._absent_since: float | None = None
        self._followed_at: float | None = None
        self._refusal: str | None = None
        self._is_torn = False
        if descriptor is None:
            self._descriptor = os.open(self._path, _FLAGS | os.O_CREAT, 0o666)
        else:
            self._descriptor = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)

    def fileno(self) -> int:
        """Return the descriptor. It stays the same until the file is closed."""
        return self._descriptor

    def write(self, text: str) -> None:
        """Append to the file that has the log's name now.

        :raises OSError: the text cannot be written.
        """
        self.follow()
        # A line that was written in part, as when the disk was full, must not become one with this line.
        data = (b"\n" if self._is_torn else b"") + text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._descriptor, data) :]
            self._is_torn = bool(data)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def follow(self) -> bool:
        """Open the file that has the log's name now, if it is another one; see Note [How a log rotates].

        :return: whether the descriptor leads to another file now.
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
            if now - self._absent_since < _MISSING_TIMEOUT:
                return False
        if self._reopen(ours):
            self._followed_at = now
            return True
        return False

    def rotate(self) -> bool:
        """Handle SIGUSR1: start a new file, unless another program has done so; see Note [How a log rotates].

        :return: whether the descriptor leads to another file now.
        """
        self._refusal = None  # an operator who sends the signal again is to see the error again
        ours = os.fstat(self._descriptor)
        named = _named(self._path, ours)
        followed_at, self._followed_at = self._followed_at, None
        if named is not None and os.path.samestat(ours, named):
            announced = followed_at is not None and self._clock() - followed_at < _ROTATION_TIMEOUT
            if announced or not stat.S_ISREG(ours.st_mode):
                return False
            try:
                _rename(os.path.realpath(self._path))
            except OSError as error:
                self._refuse("cannot be rotated", error)
                return False
        return self._reopen(ours)

    def watch(self, reactor: Any) -> None:
        """Check the name once a second while the reactor runs.

        :param reactor: provides IReactorCore and IReactorTime.
        """
        looking = LoopingCall(self.follow)
        looking.clock = reactor

        def start() -> None:
            looking.start(_CHECK_INTERVAL, now=False).addErrback(
                lambda failure: _log.failure("the check of the log file {path} failed", failure, path=self._path)
            )

        reactor.callWhenRunning(start)

    def _reopen(self, ours: os.stat_result) -> bool:
        try:
            opened = _open_like(self._path, ours)
        except OSError as error:
            self._refuse("cannot be opened again, and lines still go to the renamed file", error)
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
        self._is_torn = False
        return True

    def _refuse(self, problem: str, error: OSError) -> None:
        """Log an error once until its reason changes: logging it calls :meth:`write`, which calls this again."""
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
    """Return the status of the named file, None if there is none, and ours where this user may not look."""
    try:
        return os.stat(path)  # noqa: PTH116 - called for every line of the log
    except FileNotFoundError:
        return None
    except OSError:
        return ours


def _open_like(path: str, before: os.stat_result) -> int:
    """Open a log file. A new file gets mode, owner and group of the previous one, as far as permitted."""
    path = os.path.realpath(path)  # a dangling link exists, and O_EXCL would fail on it
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
    """Rename a file to NAME.1, and existing numbered files to the next number."""
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
    """Open the file of twistd's --logfile; SIGUSR1 rotates it.

    :param filename: a path. "-" is standard output, and so is "", except for a daemon: "twistd.log".
    :param daemon: the process is about to daemonize.
    :param reactor: the file is rotated in its thread; provides IReactorCore, IReactorFromThreads and IReactorTime.
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
    """Rotate the log on SIGUSR1, unless the signal has a handler: one signal must rotate only once.

    :param rotate: called in the reactor's thread.
    :param reactor: provides IReactorFromThreads.
    """
    # Without a handler the signal would kill the process. An existing handler is twistd's or the application's.
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda _number, _frame: reactor.callFromThread(rotate))
