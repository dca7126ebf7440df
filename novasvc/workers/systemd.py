"""Notify systemd of readiness, reloads, shutdown and watchdog beats. docs/systemd.md has the unit."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application import service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_log = Logger()

CHILD_VARIABLES = frozenset(
    {
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "LISTEN_PIDFDID",
    }
)
"""Variables meant for the process that systemd started; children must not inherit them."""

_MAX_STATUS_LENGTH = 1024
"""Characters of a status, which ``systemctl status`` shows in one line."""


class SystemdNotifier:
    """Sends notifications to systemd, if it started this process. Never blocks, never raises.

    :param environ: NOTIFY_SOCKET is used: a path, or an abstract socket name with "@" in front.
    :param monotonic: returns seconds by CLOCK_MONOTONIC, which systemd compares with its own.
    Source: sd_notify(3).
    """

    def __init__(self, environ: Mapping[str, str], monotonic: Callable[[], float] = time.monotonic) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._monotonic = monotonic
        self._trouble: str | None = None

    def ready(self, status: str) -> None:
        """Notify that the services run, or run again after a reload.

        :param status: a line for ``systemctl status``.
        """
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """Update the status.

        :param status: a line for ``systemctl status``.
        """
        self._send(_status(status))

    def reloading(self) -> None:
        """Notify that a reload has begun; :meth:`ready` ends it, successful or not."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(self._monotonic() * 1_000_000)}")

    def stopping(self) -> None:
        """Notify that the shutdown has begun."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Send a watchdog beat."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            # A new socket each time: a kept one would have to be hidden from children and survive a change of user.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.setblocking(False)
                end.sendto("\n".join(assignments).encode("utf-8", "replace"), self._address)
        except (OSError, ValueError) as error:
            trouble = getattr(error, "strerror", None) or str(error)
            if trouble != self._trouble:
                _log.warn("cannot notify systemd of {what}: {why}", what=assignments[0], why=trouble)
            self._trouble = trouble
        else:
            self._trouble = None


def _status(text: str) -> str:
    """Return the assignment in one line: systemd parses each line as an assignment."""
    return "STATUS=" + " ".join(text.split())[:_MAX_STATUS_LENGTH]


class Watchdog(service.Service):
    """Sends watchdog beats at half the interval of WatchdogSec= in the unit.

    A blocked reactor sends none: systemd then kills the process, and restarts it if Restart= says so.

    :param notifier: sends the beats.
    :param environ: WATCHDOG_USEC and WATCHDOG_PID are used.
    :param clock: provides IReactorTime.
    :param pid: of this process; None is os.getpid().
    :ivar interval: seconds between two beats; None if systemd expects none.
    Source: sd_watchdog_enabled(3).
    """

    def __init__(
        self,
        notifier: SystemdNotifier,
        environ: Mapping[str, str],
        clock: Any,
        pid: int | None = None,
    ) -> None:
        self._notifier = notifier
        self.interval = _interval(environ, os.getpid() if pid is None else pid)
        self._beats = LoopingCall(notifier.watchdog)
        self._beats.clock = clock

    def startService(self) -> None:
        """Begin to send beats."""
        super().startService()
        if self.interval is not None and not self._beats.running:
            beating = self._beats.start(self.interval)
            beating.addErrback(lambda failure: _log.failure("systemd watchdog notifications stopped", failure))

    def stopService(self) -> None:
        """Send no more: systemd expects none after STOPPING=1."""
        super().stopService()
        if self._beats.running:
            self._beats.stop()


def _interval(environ: Mapping[str, str], pid: int) -> float | None:
    allowed, meant = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not allowed.isdecimal() or int(allowed) == 0 or (meant and meant != str(pid)):
        return None
    return int(allowed) / 2_000_000
