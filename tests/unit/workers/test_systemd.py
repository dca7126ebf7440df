"""What systemd is told, as it would receive it."""

import os
import socket
import sys
import time
from types import ModuleType
from unittest.mock import patch

from twisted.application.service import IService
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from novasvc.workers.systemd import CHILD_VARIABLES, SystemdNotifier, Watchdog
from novasvc.workers.title import set_title


class SystemdTestCase(SynchronousTestCase):
    """Has a socket such as systemd listens on."""

    def setUp(self) -> None:
        self.warnings: list[LogEvent] = []
        globalLogPublisher.addObserver(self._note)
        self.addCleanup(globalLogPublisher.removeObserver, self._note)

    def _note(self, event: LogEvent) -> None:
        if event.get("log_namespace") == "novasvc.workers.systemd":
            self.warnings.append(event)

    def listen(self, name: str) -> None:
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.systemd.setblocking(False)
        self.systemd.bind(name)
        self.addCleanup(self.systemd.close)

    def received(self) -> list[str]:
        """Return all that has come since the last time."""
        messages = []
        while True:
            try:
                messages.append(self.systemd.recv(65536).decode())
            except BlockingIOError:
                return messages


class NotifierTests(SystemdTestCase):
    """Tests for novasvc.workers.systemd.SystemdNotifier."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.mktemp()
        self.listen(self.path)
        self.notifier = SystemdNotifier({"NOTIFY_SOCKET": self.path}, lambda: 12.345678)

    def test_messages(self) -> None:
        """Each thing that is told is one datagram, in the words of sd_notify."""
        self.notifier.status("starting 4 workers")
        self.notifier.ready("4 workers")
        self.notifier.watchdog()
        self.notifier.reloading()
        self.notifier.stopping()
        self.assertEqual(
            self.received(),
            [
                "STATUS=starting 4 workers",
                "READY=1\nSTATUS=4 workers",
                "WATCHDOG=1",
                "RELOADING=1\nMONOTONIC_USEC=12345678",
                "STOPPING=1",
            ],
        )

    def test_name_in_kernel(self) -> None:
        """A name with @ in front is one in the kernel."""
        name = f"novasvc-test-{os.getpid()}"
        self.listen(f"\0{name}")
        SystemdNotifier({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        self.assertEqual(self.received(), ["STOPPING=1"])

    def test_one_line(self) -> None:
        """A status can say nothing but a status, and not too much of it."""
        self.notifier.status("no broker:\nMAINPID=1\r\n" + "x" * 5000)
        (message,) = self.received()
        self.assertTrue(message.startswith("STATUS=no broker: MAINPID=1 xxx"))
        self.assertLess(len(message), 1100)
        self.notifier.status("a name that is no text: \udcff")
        self.assertEqual(self.received(), ["STATUS=a name that is no text: ?"])

    def test_clock(self) -> None:
        """A reload is stamped by the clock that systemd compares with."""
        before = time.clock_gettime(time.CLOCK_MONOTONIC)
        SystemdNotifier({"NOTIFY_SOCKET": self.path}).reloading()
        (message,) = self.received()
        self.assertTrue(before - 1 < int(message.rpartition("=")[2]) / 1e6 < before + 60)

    def test_without_systemd(self) -> None:
        """Without the variable, and with an empty one, nothing happens."""
        for environ in ({}, {"NOTIFY_SOCKET": ""}):
            SystemdNotifier(environ).ready("")
        self.assertEqual(self.warnings, [])

    def test_unreachable(self) -> None:
        """Where systemd cannot be reached, the log says so once, until it can be again."""
        notifier = SystemdNotifier({"NOTIFY_SOCKET": self.path + "-missing"})
        notifier.ready("")
        notifier.watchdog()
        self.assertEqual(len(self.warnings), 1)
        for unusable in ("vsock:2:1234", self.path + "x" * 200, "/with\0nothing"):
            SystemdNotifier({"NOTIFY_SOCKET": unusable}).ready("")
        self.assertEqual(len(self.warnings), 4)

    def test_full(self) -> None:
        """When systemd is too busy to take more, nothing waits; it is told again the next time."""
        for _ in range(10_000):
            self.notifier.watchdog()
            if self.warnings:
                break
        self.assertEqual(len(self.warnings), 1)
        self.received()
        self.notifier.stopping()
        self.assertEqual(self.received(), ["STOPPING=1"])


class WatchdogTests(SystemdTestCase):
    """Tests for novasvc.workers.systemd.Watchdog."""

    def setUp(self) -> None:
        super().setUp()
        path = self.mktemp()
        self.listen(path)
        self.notifier = SystemdNotifier({"NOTIFY_SOCKET": path})
        self.clock = Clock()
        self.well = True

    def make(self, environ: dict[str, str]) -> Watchdog:
        watchdog = Watchdog(self.notifier, environ, self.clock, pid=77)
        watchdog.startService()
        self.addCleanup(watchdog.stopService)
        return watchdog

    def test_service(self) -> None:
        """It is a service."""
        verifyObject(IService, self.make({}))

    def test_beats(self) -> None:
        """Twice in the time that systemd allows it is told that we live, until the stop."""
        watchdog = self.make({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"})
        self.assertEqual(watchdog.interval, 15.0)
        self.clock.pump([15, 15])
        self.assertEqual(self.received(), ["WATCHDOG=1"] * 3)
        watchdog.stopService()
        self.clock.advance(60)
        self.assertEqual((self.received(), self.clock.getDelayedCalls()), ([], []))

    def test_start_again(self) -> None:
        """A watchdog that was stopped can be started again, and one that runs twice beats once."""
        watchdog = self.make({"WATCHDOG_USEC": "2000000"})
        watchdog.stopService()
        watchdog.startService()
        watchdog.startService()
        self.received()
        self.clock.advance(1)
        self.assertEqual(self.received(), ["WATCHDOG=1"])

    def test_not_wanted(self) -> None:
        """Without the variable, with one that is no time, and with one for another process, nothing happens."""
        for environ in (
            {},
            {"WATCHDOG_USEC": "0"},
            {"WATCHDOG_USEC": "soon"},
            {"WATCHDOG_USEC": "-5"},
            {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"},
        ):
            self.assertIsNone(self.make(environ).interval)
        self.clock.advance(60)
        self.assertEqual(self.received(), [])

    def test_own_process(self) -> None:
        """The process is this one, unless somebody says otherwise."""
        environ = {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
        self.assertEqual(Watchdog(self.notifier, environ, self.clock).interval, 1.0)

    def test_children(self) -> None:
        """What systemd says to this process is not for its children."""
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            self.assertIn(name, CHILD_VARIABLES)


class TitleTests(SynchronousTestCase):
    """Tests for novasvc.workers.title."""

    def test_with_setproctitle(self) -> None:
        """Where setproctitle is installed, it is given the title."""
        titles: list[str] = []
        module = ModuleType("setproctitle")
        module.setproctitle = titles.append  # type: ignore[attr-defined]
        with patch.dict(sys.modules, {"setproctitle": module}):
            set_title("novasvc: worker 3")
        self.assertEqual(titles, ["novasvc: worker 3"])

    def test_without_setproctitle(self) -> None:
        """Where it is not, nothing happens."""
        with patch.dict(sys.modules, {"setproctitle": None}):
            set_title("novasvc: worker 3")
