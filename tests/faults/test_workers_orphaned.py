"""Supervisors and forkservers that end without a word, or stand still."""

import os
import signal
import socket

from tests.faults.fleet_rig import ORPHANED, Fleet, FleetCase, until
from tests.servers.process import free_ports

WORKERS = 5


class OrphanCase(FleetCase):
    def setUp(self) -> None:
        super().setUp()
        (self.port,) = free_ports(1)

    def fleet(self) -> Fleet:
        return self.script("obedient:one=3", f"echo:tcp:{self.port}:interface=127.0.0.1=2")

    def assert_gone(self, fleet: Fleet) -> None:
        """See that nothing is left in time, and that the port can be had."""
        until(lambda: not fleet.family, ORPHANED)
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", self.port))
            again.listen()

    def assert_serves(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(b"hello\r\n")
            self.assertRegex(connection.makefile().readline(), r"^\d+ hello$")


class SupervisorTests(OrphanCase):
    def test_killed(self) -> None:
        """When the supervisor is killed, workers and forkserver end within two seconds, and the port is free."""
        fleet = self.fleet()
        fleet.ready(WORKERS)
        self.assert_serves()
        fleet.popen.kill()
        self.assert_gone(fleet)

    def test_killed_while_starting(self) -> None:
        """So does a forkserver that still imports."""
        fleet = self.fleet()
        fleet.says("is starting")
        self.assertIn(fleet.forkserver, fleet.family)
        fleet.popen.kill()
        self.assert_gone(fleet)

    def test_killed_over_hanging_workers(self) -> None:
        """So do workers that are busy, deaf to signals, or stopped."""
        fleet = self.fleet()
        pids = fleet.ready(WORKERS)
        fleet.tell("worker-1", "spin")
        fleet.tell("worker-2", "freeze")
        os.kill(pids[3], signal.SIGSTOP)
        fleet.popen.kill()
        self.assert_gone(fleet)

    def test_killed_with_the_forkserver(self) -> None:
        """So do all workers, one that is busy, too, when the forkserver is killed at the same time."""
        fleet = self.fleet()
        fleet.ready(WORKERS)
        fleet.tell("worker-1", "spin")
        for pid in (fleet.forkserver, fleet.pid):
            os.kill(pid, signal.SIGKILL)
        self.assert_gone(fleet)


class ForkserverTests(OrphanCase):
    def test_killed(self) -> None:
        """A forkserver that is killed takes no worker with it, and is replaced: workers that die come back."""
        fleet = self.fleet()
        before = fleet.ready(WORKERS)
        for _ in range(2):
            forkserver = fleet.forkserver
            os.kill(forkserver, signal.SIGKILL)
            fleet.says(rf"the forkserver \(pid {forkserver}\) is gone; another is started at once")
            fleet.replaced(1, fleet.kill(1))
        after = fleet.ready(WORKERS)
        self.assertEqual({**after, 1: 0}, {**before, 1: 0})
        fleet.says(rf"worker 1 \(pid {before[1]}\) of one ended, how is not known; it is started again at once")
        self.assert_serves()
        self.assertEqual(fleet.stop(), 0)

    def test_stopped(self) -> None:
        """A forkserver that stands still is replaced when it is wanted; and it keeps nobody from ending."""
        fleet = self.fleet()
        fleet.ready(WORKERS)
        forkserver = fleet.forkserver
        os.kill(forkserver, signal.SIGSTOP)
        pid = fleet.kill(1)
        self.assert_serves()
        fleet.says(rf"the forkserver \(pid {forkserver}\) has not answered for 5 s; another takes its place")
        fleet.replaced(1, pid)
        os.kill(fleet.forkserver, signal.SIGSTOP)
        self.assertEqual(fleet.stop(), 0)
