"""Force this process to exit, or to run its program again, whatever its reactor does.

Note [Forced exit]
    A process that must stop now, or whose drain deadline has passed, must exit whatever it is doing. A blocked reactor
    never runs scheduled calls, and a stopped one waits for its threads. So the handlers of signals do two things that
    work without the reactor. For an immediate stop, a process without workers restores the default action of SIGTERM
    and SIGINT: a third signal kills the process. And they set an interval timer (SIGALRM) that ends the process with
    the status that a clean exit would have had: killed by the same signal under twistd, SignalExit's status in a
    script. The stacks of that moment go to standard error, because they show what has to be fixed.

    Standard error may be a pipe that nobody reads, and a write to it may be what blocks the reactor. So the stacks are
    collected in memory, and a second alarm interrupts the write.
"""

import faulthandler
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Literal

import attrs

from novasvc.run.restart import run_again

_WRITE_TIMEOUT = 0.2
"""Seconds to write the stacks; with KILL_DELAY the half second of Note [The deadline of a drain]."""


@attrs.define
class ExitSignals:
    """Counts the signals that ask this process to exit, as they interrupt it: its reactor may never hear of them."""

    count: int = attrs.field(default=0, init=False)

    def note(self, number: int) -> Literal["drain", "stop now"] | None:
        """Count a signal; return what it asks for: SIGTERM a drain, SIGINT or a second signal an immediate stop."""
        if number not in {signal.SIGTERM, signal.SIGINT}:
            return None
        self.count += 1
        return "stop now" if number == signal.SIGINT or self.count > 1 else "drain"


@attrs.frozen
class _ForcedExit:
    """The handler of SIGALRM that ends the process.

    :param number: the signal that is the reason.
    :param status: exit status; None kills the process with the signal.
    :param restarts: returns whether to run the program again instead.
    :param silent: write nothing.
    """

    _number: int
    _status: int | None
    _restarts: Callable[[], bool]
    _silent: bool = False

    def __call__(self, _alarm: int, _frame: object) -> None:
        restarts = self._restarts()
        if not self._silent:
            self._write_stacks("restart" if restarts else signal.Signals(self._number).name, restarts=restarts)
        if restarts:
            run_again()
        if self._status is not None:
            os._exit(self._status)
        signal.signal(self._number, signal.SIG_DFL)
        os.kill(os.getpid(), self._number)
        # The kernel drops a signal with the default action that a container's PID 1 sends itself.
        os._exit(128 + self._number)

    def _write_stacks(self, reason: str, *, restarts: bool) -> None:
        action = "running the program again" if restarts else "killing this process"
        text = f"novasvc: {reason}: did not exit in time; {action}. Stacks:\n"
        with suppress(Exception):  # no descriptor is left, for example: the exit must not fail
            text += read_stacks()
        signal.signal(signal.SIGALRM, attrs.evolve(self, silent=True))
        signal.setitimer(signal.ITIMER_REAL, _WRITE_TIMEOUT)
        with suppress(OSError):  # standard error is closed
            os.write(2, text.encode())
        for stream in (sys.__stdout__, sys.__stderr__):
            with suppress(OSError, ValueError, RuntimeError, AttributeError):  # closed, or in use
                stream.flush()  # type: ignore[union-attr]  # a None is suppressed


def read_stacks() -> str:
    """Return the stacks of all threads.

    :raises OSError: no descriptor, or no memory, is left.
    """
    with _memory_file() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()


def _memory_file() -> IO[str]:
    """Open a file in memory; on disk if this Python was built with a glibc older than 2.27, without memfd_create."""
    if not hasattr(os, "memfd_create"):
        return TemporaryFile("w+", encoding="utf-8", errors="replace")
    return open(os.memfd_create("novasvc-stacks"), "w+", encoding="utf-8", errors="replace")  # noqa: PTH123 - a descriptor


def _seconds_to_forced_exit() -> float:
    """Return the seconds until the process is forced to exit; infinite if it is not."""
    limited = isinstance(signal.getsignal(signal.SIGALRM), _ForcedExit)
    seconds, _ = signal.getitimer(signal.ITIMER_REAL)
    return seconds if limited and seconds else math.inf


def schedule_forced_exit(
    number: int, seconds: float, status: int | None = None, restarts: Callable[[], bool] = lambda: False
) -> None:
    """Force this process to exit within some seconds; an earlier limit stays. May be called from a signal handler.

    Does nothing in other threads than the main one, since only that may set handlers.

    :param number: the signal that is the reason.
    :param status: exit status; None kills the process with the signal.
    :param restarts: called in the handler: whether to run the program again instead.
    """
    if threading.current_thread() is threading.main_thread() and seconds < _seconds_to_forced_exit():
        signal.signal(signal.SIGALRM, _ForcedExit(number, status, restarts))
        signal.setitimer(signal.ITIMER_REAL, seconds)


def cancel_forced_exit() -> None:
    """Cancel the forced exit: the services have stopped in time, and the process goes on."""
    if _seconds_to_forced_exit() < math.inf:
        signal.setitimer(signal.ITIMER_REAL, 0)
