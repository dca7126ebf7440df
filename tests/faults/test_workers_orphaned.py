"""Supervisors and forkservers that end without a word, or stand still."""

import os
import signal
import socket

import pytest
from twisted.internet.threads import deferToThread

from tests.faults.amqp_rig import CONTEXT, AMQPCase
from tests.faults.fleet_rig import ORPHANED, Fleet, FleetCase, Fleets, until
from tests.servers.process import free_ports

WORKERS = 5
GRACE = 1.0
SHORT = {"NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT": f"{GRACE:g}"}


class OrphanCase(FleetCase):
    def setUp(self) -> None:
        super().setUp()
        (self.port,) = free_ports(1)

    def fleet(self, **environment: str) -> Fleet:
        return self.script("obedient:one=3", f"echo:tcp:{self.port}:interface=127.0.0.1=2", **environment)

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
        """When the supervisor is killed, workers that do nothing and the forkserver end, and the port is free."""
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

    @pytest.mark.long
    def test_killed_over_hanging_workers(self) -> None:
        """So do workers that are busy, deaf to signals, or stopped, when their time is over."""
        fleet = self.fleet(**SHORT)
        pids = fleet.ready(WORKERS)
        fleet.tell("worker-1", "spin")
        fleet.tell("worker-2", "freeze")
        os.kill(pids[3], signal.SIGSTOP)
        fleet.popen.kill()
        self.assert_gone(fleet)

    def test_killed_with_the_forkserver(self) -> None:
        """So do all workers, one that is busy, too, when the forkserver is killed at the same time."""
        fleet = self.fleet(**SHORT)
        fleet.ready(WORKERS)
        fleet.tell("worker-1", "spin")
        for pid in (fleet.forkserver, fleet.pid):
            os.kill(pid, signal.SIGKILL)
        self.assert_gone(fleet)


class SuccessorTests(OrphanCase):
    """A supervisor that is started while workers of one that was killed are still there."""

    def orphan(self) -> Fleet:
        """Have a worker, with the port, that stands still, and is without a supervisor."""
        fleet = self.script(f"echo:tcp:{self.port}:interface=127.0.0.1=1")
        os.kill(fleet.ready(1)[1], signal.SIGSTOP)
        fleet.popen.kill()
        fleet.wait_for_exit()
        return fleet

    def end(self, fleet: Fleet) -> None:
        """Have the end of an orphan and its forkserver come."""
        for pid in fleet.family:
            os.kill(pid, signal.SIGKILL)

    def test_waits(self) -> None:
        """It waits until they are gone, the port that they have included, and starts then; the log says both."""
        first = self.orphan()
        second = self.fleet()
        second.says(
            rf"waiting up to 65 s for the workers of the previous supervisor \(pid {first.pid}\) to drain; "
            "list them with `fuser .*control.lock`"
        )
        self.end(first)
        second.says("the workers of the previous supervisor have exited")
        second.ready(WORKERS)
        self.assert_serves()
        self.assertEqual(second.stop(), 0, second.output)

    @pytest.mark.long
    def test_terminated(self) -> None:
        """SIGTERM ends the wait, and SIGINT does."""
        first = self.orphan()
        for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, 1)):
            second = self.fleet()
            second.says("waiting up to")
            self.assertEqual(second.stop(number), status, second.output)
            self.assertNotIn("Traceback", second.output)
        self.assertEqual(len(first.family), 2)
        self.end(first)

    @pytest.mark.long
    def test_rotates(self) -> None:
        """SIGUSR1 does not end the wait: it rotates the log that the workers will have."""
        first = self.orphan()
        log = self.folder / "workers.log"
        second = self.fleet(FLEET_LOG=str(log))
        second.says("waiting up to")
        second.popen.send_signal(signal.SIGUSR1)
        until(lambda: log.with_name("workers.log.1").exists() and log.exists())
        self.assertEqual(second.stop(), 0, second.output)
        self.end(first)

    @pytest.mark.long
    def test_gives_up(self) -> None:
        """It waits for its own grace and five seconds at the most, and says how they can be found."""
        first = self.orphan()
        second = self.fleet(NOVASVC_GRACEFUL_SHUTDOWN_TIMEOUT="0.1")
        self.assertEqual(second.wait(), 1)
        second.says(
            r"did not start: control socket .*workers of the previous .*wait until they exit, .*"
            r"`fuser .*control.lock` lists"
        )
        self.end(first)


class FinishTests(Fleets, AMQPCase):
    """Work that is under way when a supervisor is killed."""

    @pytest.mark.timeout(180)
    async def test_finishes(self) -> None:
        """A call is finished and answered, once; the next supervisor's workers come after that."""
        options = ("--workers", "2", "--transport-url", self.url, "--graceful-shutdown-timeout", "40")
        first = self.twistd(*options)
        await deferToThread(first.ready, 2)
        client = await self.client(topic="agent", patience=60.0)
        call = client.call(CONTEXT, "work", what="precious", seconds=12.0)
        await self.until(lambda: "begun precious" in first.journal)
        first.popen.kill()
        second = self.twistd(*options)
        await deferToThread(second.says, rf"for the workers of the previous supervisor \(pid {first.pid}\) to drain")
        await self.until(lambda: len(first.family) == 2)  # the worker, and the forkserver, which waits for it
        self.assertEqual(await call, "precious")
        await deferToThread(second.ready, 2)
        self.assertEqual(first.journal, ["begun precious", "done precious"])
        self.assertEqual(await client.call(CONTEXT, "work", what="next"), "next")
        await deferToThread(second.stop)

    @pytest.mark.long
    @pytest.mark.timeout(180)
    async def test_bounded(self) -> None:
        """What is not finished within the worker's grace is cut short: one that may run again runs elsewhere."""
        options = ("--transport-url", self.url, "--graceful-shutdown-timeout", f"{GRACE:g}")
        first = self.twistd("--workers", "1", *options)
        await deferToThread(first.ready, 1)
        client = await self.client(topic="agent", patience=60.0)
        call = client.call(CONTEXT, "work_again", what="precious", seconds=60.0, on="h1")
        await self.until(lambda: "begun precious" in first.journal)
        other = self.twistd("--workers", "1", *options, host="h2")
        await deferToThread(other.ready, 1)
        first.popen.kill()
        await deferToThread(until, lambda: not first.family, GRACE + ORPHANED)
        self.assertEqual(await call, "precious")
        self.assertEqual((first.journal, other.journal), (["begun precious"], ["begun precious", "done precious"]))
        await deferToThread(other.stop)


class ForkserverTests(OrphanCase):
    @pytest.mark.long
    def test_killed(self) -> None:
        """A forkserver that is killed takes no worker with it, and is replaced: workers that die come back."""
        fleet = self.fleet()
        before = fleet.ready(WORKERS)
        for _ in range(2):
            forkserver = fleet.forkserver
            os.kill(forkserver, signal.SIGKILL)
            fleet.says(rf"the forkserver \(pid {forkserver}\) died; starting another now")
            fleet.replaced(1, fleet.kill(1))
        after = fleet.ready(WORKERS)
        self.assertEqual({**after, 1: 0}, {**before, 1: 0})
        fleet.says(rf"worker 1 \(pid {before[1]}\) of one exited with an unknown status; restarting it now")
        self.assert_serves()
        self.assertEqual(fleet.stop(), 0)

    @pytest.mark.long
    def test_stopped(self) -> None:
        """A forkserver that stands still is replaced when it is wanted; and it keeps nobody from ending."""
        fleet = self.fleet()
        fleet.ready(WORKERS)
        forkserver = fleet.forkserver
        os.kill(forkserver, signal.SIGSTOP)
        pid = fleet.kill(1)
        self.assert_serves()
        fleet.says(rf"the forkserver \(pid {forkserver}\) did not answer for 5 s; replacing it")
        fleet.replaced(1, pid)
        os.kill(fleet.forkserver, signal.SIGSTOP)
        self.assertEqual(fleet.stop(), 0)
