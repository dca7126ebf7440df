"""Run the same program again in place of this process.

Note [How a process restarts]
    A restart must bring the node back whatever started it: systemd, a container, a script, a terminal. An exit status
    that asks to be started again is understood by some of them, if their configuration says so; and each counts such
    exits against a limit of starts. So the process drains as at SIGTERM, closes what it has, and executes its own
    program with its own arguments, in the directory in which it was started. It keeps its pid, so a service manager
    sees one long reload; it imports all code anew, so the new release runs. Descriptors are not inherited (PEP 446):
    locks are free, addresses can be bound.

    Sockets that systemd opened (LISTEN_FDS) are lost by that. Where a process has them, systemd has started it, so
    there it exits with the status of a temporary failure, and ``Restart=on-failure`` starts it again.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from novasvc.run.pidfile import remove_pid_file
from novasvc.run.process_end import end_process, flush_output, stop_reactor

_log = Logger()

TEMPORARY_FAILURE = os.EX_TEMPFAIL
"""The exit status of a process that asks its service manager to be started again."""


def _current_directory() -> Path | None:
    with suppress(OSError):  # it has been removed
        return Path.cwd()
    return None


_START_DIRECTORY = _current_directory()
"""Where this program was started, for relative paths in its arguments. ``twistd --rundir`` changes directory later."""


def has_systemd_sockets(environ: Mapping[str, str], pid: int) -> bool:
    """Return whether systemd has passed listening sockets to this process.

    Source: sd_listen_fds(3).
    """
    return environ.get("LISTEN_PID") == str(pid) and environ.get("LISTEN_FDS", "0") != "0"


def execute_again(execute: Callable[[str, list[str]], object] = os.execv) -> None:
    """Replace this process with the program that it was started as. Returns only if that fails."""
    remove_pid_file()
    with suppress(ValueError):  # not the main thread
        # A timer outlives the program, and its signal would end the new one, which has no handler yet.
        signal.setitimer(signal.ITIMER_REAL, 0)
    if _START_DIRECTORY is not None:
        with suppress(OSError):  # the paths may be absolute
            os.chdir(_START_DIRECTORY)
    try:
        execute(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError as error:
        os.write(2, f"novasvc: cannot run {sys.executable} again: {error.strerror}\n".encode())


def run_again() -> None:
    """Run the program again, or exit with the status at which systemd does so. Does not return."""
    if not has_systemd_sockets(os.environ, os.getpid()):
        execute_again()
    os._exit(TEMPORARY_FAILURE)


def restart_process(reactor: Any, is_wanted: Callable[[], bool]) -> None:
    """Stop the reactor, which drains the services, and then run the program again.

    :param is_wanted: asked at the end: False if a signal has asked meanwhile for an exit.
    """
    if has_systemd_sockets(os.environ, os.getpid()):
        _log.info("exiting with status {status}, so that systemd starts this program again", status=TEMPORARY_FAILURE)
        end_process(reactor, TEMPORARY_FAILURE)
        return

    # At exit, when all threads have ended.
    @atexit.register
    def leave() -> None:
        if is_wanted():
            flush_output()
            run_again()

    reactor.callWhenRunning(stop_reactor, reactor)
