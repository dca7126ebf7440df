"""Tests for novasvc.workers.forkserver_client, .forkserver, .pipe and .worker: stand-in hosts, and processes."""

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import MappingProxyType
from typing import Any

import psutil
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from novasvc.workers.forkserver_client import ForkError, ForkserverClient
from novasvc.workers.pipe import Pipe, PipeMessage, adopt
from tests.support.forks_parts import (
    GRACE,
    BlocksInHurry,
    DiesOf,
    Exits,
    Hangs,
    Raises,
    Sleeper,
    TellsDescriptors,
    Touches,
    Witness,
)
from tests.support.supervision_rig import Host, StandInForkserver, descriptors, logged
from tests.support.waiting import PATIENCE, until

PARTS = "tests.support.forks_parts"


def alive(pid: int) -> bool:
    """Return whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def exists(path: str) -> bool:
    """Return whether a file is there."""
    return Path(path).exists()


class ForkserverClientCase(SynchronousTestCase):
    """ForkserverClient whose forkserver stands in."""

    def setUp(self) -> None:
        self.before = descriptors()
        self.host = Host()
        self.patch(os, "kill", self.host.kill)
        self.addCleanup(self.host.tear_down)
        self.forkserver = ForkserverClient(
            self.host, ["wave", "shelve"], ("path", "/srv/run.py"), {"A": "b"}, retry=float, import_timeout=30.0
        )
        self.ended: list[int | None] = []

    def start(self) -> None:
        self.forkserver.start()
        self.host.settle()

    def fork(self) -> Deferred[int]:
        """Ask for a worker."""
        pipe, diagnostics = socket.socket(), self.memory()
        with pipe:
            fork = self.forkserver.fork({"number": 1}, [pipe.fileno(), diagnostics], self.ended.append)
        os.close(diagnostics)
        self.host.settle()
        return fork

    def memory(self) -> int:
        diagnostics = os.memfd_create("record")
        os.ftruncate(diagnostics, 1 << 20)
        return diagnostics

    @property
    def server(self) -> StandInForkserver:
        return self.host.forkservers[-1]


class ForkTests(ForkserverClientCase):
    """What is asked of a forkserver."""

    def test_start(self) -> None:
        """It is executed anew, and told what to import, and what this program is."""
        self.assertIsNone(self.forkserver.pid)
        self.start()
        self.assertEqual((self.forkserver.pid, self.server.environment), (self.server.pid, {"A": "b"}))
        expected = {"preload": ["wave", "shelve"], "path": sys.path, "argv": sys.argv, "main": ["path", "/srv/run.py"]}
        self.assertEqual(self.server.started, expected)
        self.assertEqual(self.server.arguments[-2], "-c")

    def test_born(self) -> None:
        """Who asks for a worker is told its number, and how it ended, once."""
        self.start()
        pid = self.successResultOf(self.fork())
        (worker,) = self.host.workers
        self.assertEqual((pid, worker.parameters, self.forkserver.reports(pid)), (worker.pid, {"number": 1}, True))
        worker.end(9)
        self.server.say({"ended": pid, "status": 9})
        self.host.settle()
        self.assertEqual((self.ended, self.forkserver.reports(pid)), ([9], False))

    def test_refused(self) -> None:
        """Who asks for a worker is told why there is none."""
        self.start()
        self.host.answer = lambda worker: worker.fail_fork("fork failed")
        error = self.failureResultOf(self.fork(), ForkError).value
        self.assertEqual(str(error), "fork failed")

    def test_in_any_order(self) -> None:
        """Each answer goes to who asked."""
        self.start()
        self.host.answer = lambda _: None
        asked = [self.fork() for _ in range(3)]
        for worker in reversed(self.host.workers):
            worker.be_forked()
        self.host.settle()
        self.assertEqual([self.successResultOf(fork) for fork in asked], [worker.pid for worker in self.host.workers])

    def test_before_the_start(self) -> None:
        """What is asked for before there is a forkserver, waits for it."""
        fork = self.fork()
        self.assertNoResult(fork)
        self.start()
        self.successResultOf(fork)

    def test_nothing_stays_open(self) -> None:
        """The copies of descriptors are closed when the answer is here."""
        self.start()
        before = descriptors()
        self.host.answer = lambda worker: worker.fail_fork("no")
        for _ in range(5):
            self.failureResultOf(self.fork(), ForkError)
        self.assertEqual(descriptors(), before)


class GoneTests(ForkserverClientCase):
    """A forkserver that ends."""

    def test_another(self) -> None:
        """Another takes its place at once, and imports the same."""
        self.start()
        first = self.server
        with logged() as log:
            first.end()
            self.host.settle()
        self.assertIn("died; starting another", log.text)
        self.assertIsNone(self.forkserver.pid)
        self.host.pass_time(0)
        self.assertEqual((len(self.host.forkservers), self.server.started), (2, first.started))
        self.successResultOf(self.fork())

    def test_reaped_first(self) -> None:
        """It is named by its number, even if it was reaped before its channel has ended."""
        self.start()
        self.host.answer = lambda _: None
        asked, pid = self.fork(), self.server.pid
        self.server.alive = False
        self.server.reaped()
        self.server.control.close()
        self.host.settle()
        error = self.failureResultOf(asked, ForkError).value
        self.assertEqual(str(error), f"the forkserver (pid {pid}) died")

    def test_in_flight(self) -> None:
        """What was asked of it is refused; what is asked for meanwhile waits for the next."""
        self.start()
        self.host.answer = lambda _: None
        asked = self.fork()
        self.server.end()
        self.host.settle()
        error = self.failureResultOf(asked, ForkError).value
        self.assertIn("died", str(error))
        again = self.fork()
        self.assertNoResult(again)
        self.host.pass_time(0)
        self.host.workers[-1].be_forked()
        self.host.settle()
        self.assertEqual(self.successResultOf(again), self.host.workers[-1].pid)

    def test_workers_live(self) -> None:
        """How its workers end is not told any more."""
        self.start()
        pid = self.successResultOf(self.fork())
        self.server.end()
        self.host.pass_time(0)
        self.assertFalse(self.forkserver.reports(pid))
        self.assertEqual(self.ended, [])

    def test_again_and_again(self) -> None:
        """One that dies before it has answered is followed by another after pauses that grow; an answer forgives."""
        self.start()
        pauses = []
        for _ in range(4):
            self.server.end()
            count, before = len(self.host.forkservers), self.host.seconds()
            self.host.pass_time(0)
            while len(self.host.forkservers) == count:
                self.host.pass_time(0.5)
            pauses.append(self.host.seconds() - before)
        self.assertEqual(pauses, [0, 1, 2, 3])
        self.successResultOf(self.fork())
        self.server.end()
        self.host.pass_time(0)
        self.assertEqual(len(self.host.forkservers), 6)

    def test_cannot_be_started(self) -> None:
        """If the system starts none, that is tried again; requests wait for it, and cancelled ones are dropped."""
        self.start()
        self.server.end()
        self.host.settle()
        before = descriptors()
        cancelled = self.fork()
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.host.spawning = OSError(11, "Resource temporarily unavailable")
        with logged() as log:
            self.host.pass_time(1)
        self.assertIn(
            "cannot start a forkserver: [Errno 11] Resource temporarily unavailable; retrying in 2.0 s", log.text
        )
        self.assertEqual(descriptors(), before)
        fork = self.fork()
        self.host.pass_time(2)
        self.assertNoResult(fork)
        self.host.spawning = None
        self.host.pass_time(3)
        self.successResultOf(fork)
        self.assertEqual(len(self.host.workers), 1)

    def test_cancelled(self) -> None:
        """What is cancelled between two forkservers is not asked of the next, and leaves nothing open."""
        self.start()
        self.server.end()
        self.host.settle()
        before = descriptors()
        cancelled, asked = self.fork(), self.fork()
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.host.pass_time(0)
        self.assertEqual(self.successResultOf(asked), self.host.workers[0].pid)
        self.assertEqual(len(self.host.workers), 1)
        self.server.end()
        self.host.workers[0].let_go()
        self.host.settle()
        self.assertEqual(descriptors(), before)

    def test_what_it_imported(self) -> None:
        """If that was while it imported something, that is told."""
        self.start()
        self.host.answer = lambda _: None
        asked = self.fork()
        self.server.say({"importing": "wave"})
        self.host.settle()
        with logged() as log:
            self.server.end()
            self.host.settle()
        self.assertIn("died while importing wave", str(self.failureResultOf(asked, ForkError).value))
        self.assertIn("died while importing wave; starting another", log.text)


class StoppedTests(ForkserverClientCase):
    """A forkserver that does not answer."""

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_first_answer(self) -> None:
        """It has half a minute for its first answer; then another takes its place."""
        self.server.stopped = True
        asked = self.fork()
        self.host.pass_time(29.5)
        self.assertNoResult(asked)
        with logged() as log:
            self.host.pass_time(0.5)
        self.failureResultOf(asked, ForkError)
        self.assertIn("did not answer for 30 s; replacing it", log.text)
        self.host.pass_time(0)
        self.assertEqual([server.alive for server in self.host.forkservers], [False, True])

    def test_later_answers(self) -> None:
        """When it has answered once, it is expected to be quick."""
        self.successResultOf(self.fork())
        self.server.stopped = True
        asked = self.fork()
        self.host.pass_time(4.5)
        self.assertNoResult(asked)
        self.host.pass_time(0.5)
        self.failureResultOf(asked, ForkError)

    def test_answered_while_suspended(self) -> None:
        """One that has answered while this process was suspended is not replaced."""
        self.host.answer = lambda _: None
        asked = self.fork()
        (worker,) = self.host.workers
        worker.be_forked()
        self.host.be_suspended(1000)
        self.assertEqual(self.successResultOf(asked), worker.pid)
        self.assertEqual([server.alive for server in self.host.forkservers], [True])

    def test_more_and_more(self) -> None:
        """What is asked for later gives it no more time."""
        self.server.stopped = True
        asked = self.fork()
        for _ in range(6):
            self.host.pass_time(5)
            self.fork().addErrback(lambda failure: failure.trap(ForkError))
        self.failureResultOf(asked, ForkError)

    def test_imports(self) -> None:
        """It has half a minute for each module."""
        self.host.answer = lambda _: None
        asked = self.fork()
        for module in ("wave", "shelve", None):
            self.host.pass_time(29)
            self.server.say({"importing": module})
            self.host.settle()
        self.host.pass_time(29)
        self.assertNoResult(asked)
        asked.addErrback(lambda failure: failure.trap(ForkError))

    def test_nothing_asked(self) -> None:
        """Of whom nothing is asked, nothing is expected."""
        self.server.stopped = True
        self.host.pass_time(1000)
        self.assertTrue(self.server.alive)


class CloseTests(ForkserverClientCase):
    """The end."""

    def test_close(self) -> None:
        """It is let go, and it is over when it has ended; none comes after it."""
        self.start()
        self.successResultOf(self.fork())
        closed = self.forkserver.close()
        self.assertNoResult(closed)
        self.host.settle()
        self.successResultOf(closed)
        self.host.pass_time(10)
        self.assertEqual((len(self.host.forkservers), self.host.calls), (1, []))

    def test_idle(self) -> None:
        """One that has no worker is killed: it may be busy importing."""
        self.start()
        self.server.stopped = True
        closed = self.forkserver.close()
        self.host.settle()
        self.successResultOf(closed)

    def test_stopped(self) -> None:
        """One that does not end within two seconds is killed."""
        self.start()
        self.successResultOf(self.fork())
        self.server.stopped = True
        closed = self.forkserver.close()
        self.host.pass_time(1.75)
        self.assertNoResult(closed)
        self.host.pass_time(0.25)
        self.successResultOf(closed)
        self.assertFalse(self.server.alive)

    def test_not_begun(self) -> None:
        """One that was never started is closed at once."""
        self.successResultOf(self.forkserver.close())

    def test_between_two(self) -> None:
        """Between two forkservers it is closed at once, and the next one does not come."""
        self.start()
        self.server.end()
        self.host.settle()
        self.successResultOf(self.forkserver.close())
        self.host.pass_time(10)
        self.assertEqual((len(self.host.forkservers), self.host.calls), (1, []))

    def test_in_flight(self) -> None:
        """Nothing of what was asked for stays open."""
        self.start()
        self.host.answer = lambda _: None
        self.fork()
        self.forkserver.close()
        self.host.tear_down()
        self.host.pass_time(0)
        self.assertEqual(descriptors(), self.before)

    def test_afterwards(self) -> None:
        """Nothing can be asked for afterwards."""
        self.start()
        self.forkserver.close()
        self.failureResultOf(self.fork(), ForkError)


class PipeTests(TestCase):
    """Two ends of a socket pair, on the real reactor."""

    timeout = 30

    def setUp(self) -> None:
        self.heard: list[PipeMessage] = []
        self.lost: Deferred[None] = Deferred()
        ours, self.theirs = socket.socketpair()
        self.addCleanup(self.theirs.close)
        self.pipe = adopt(reactor, ours, Pipe(self.heard.append, lambda: self.lost.callback(None)))

    async def test_both_ways(self) -> None:
        """Messages go both ways, whole, however they are cut."""
        self.pipe.send({"is": "ready", "of": "\N{SNOWMAN}"})
        data = json.dumps({"ask": 1}).encode() + b"\n"
        self.theirs.sendall(data[:3])
        self.theirs.sendall(data[3:] + data + data[:5])
        await until(lambda: len(self.heard) == 2)
        self.assertEqual(self.heard, [{"ask": 1}, {"ask": 1}])
        self.assertEqual(json.loads(self.theirs.recv(1000)), {"is": "ready", "of": "\N{SNOWMAN}"})
        self.pipe.close()
        await self.lost

    async def test_descriptors(self) -> None:
        """Descriptors go with a message."""
        one, two = socket.socketpair()
        with one, two:
            self.pipe.send({"fork": 1}, (one.fileno(), two.fileno()))
            received: list[int] = []
            data = b""
            while not data.endswith(b"\n"):
                await until(lambda: select.select([self.theirs], [], [], 0)[0])
                piece, found, _, _ = socket.recv_fds(self.theirs, 1000, 10)
                data += piece
                received += found
        self.assertEqual((json.loads(data), len(received)), ({"fork": 1}, 2))
        for descriptor in received:
            os.close(descriptor)
        self.pipe.close()
        await self.lost

    async def test_lost(self) -> None:
        """The end of the other side is seen, once; what is said then goes nowhere."""
        self.theirs.close()
        await self.lost
        self.pipe.send({"is": "ready"})
        self.pipe.close()

    async def test_last_words(self) -> None:
        """What was said before the end arrives, and nothing that is cut off."""
        self.theirs.sendall(b'{"is": "failed"}\n{"is": "cut')
        self.theirs.close()
        await self.lost
        self.assertEqual(self.heard, [{"is": "failed"}])

    def test_before_it_is_connected(self) -> None:
        """A channel without a transport says nothing."""
        pipe = Pipe(self.heard.append, lambda: None)
        pipe.send({"is": "ready"})
        pipe.close()
        self.pipe.close()
        return self.lost

    async def test_endless_line(self) -> None:
        """An end that says too much without a break is let go."""
        self.theirs.setblocking(False)
        sent = 0
        while not self.lost.called and sent < 1 << 23:
            try:
                sent += self.theirs.send(b"x" * 65536)
            except BlockingIOError:
                pass
            except ConnectionError:
                break
            await deferLater(reactor, 0)
        await self.lost
        self.assertLess(sent, 1 << 22)


class ProcessCase(TestCase):
    """Real processes."""

    timeout = 60

    def setUp(self) -> None:
        self.forkserver = self.make()

    def make(self, *preload: str, environment: Mapping[str, str] = MappingProxyType({})) -> ForkserverClient:
        forkserver = ForkserverClient(reactor, [PARTS, *preload], None, {**os.environ, **environment})
        forkserver.start()
        self.addCleanup(forkserver.close)
        return forkserver

    def worker(self, server: Any, number: int = 1) -> Witness:
        return Witness(self.forkserver, reactor, server, number)


class WorkerTests(ProcessCase):
    """Workers from their birth to their end."""

    async def test_ends(self) -> None:
        """However a worker ends, it is known how."""
        ends = {
            "exited with status 0": Exits(0),
            "exited with status 1": Exits(1),
            "exited with status 2": Exits(2),
            "exited with status 255": Exits(255),
            "was killed by SIGKILL": DiesOf(signal.SIGKILL),
            "was killed by SIGSEGV": DiesOf(signal.SIGSEGV),
            "was killed by SIGABRT": DiesOf(signal.SIGABRT),
            "was killed by SIGALRM": DiesOf(signal.SIGALRM),
            "was killed by signal 40": DiesOf(40),
        }
        witnesses = [self.worker(server, number) for number, server in enumerate(ends.values())]
        self.assertEqual(await gatherResults([witness.over for witness in witnesses]), list(ends))

    async def test_fails(self) -> None:
        """A worker whose server cannot be made says why, and exits with the status that Nova's would."""
        fails = {
            "of ours": (1, "cannot start the manager: it is broken", True),
            "a mistake": (2, "ZeroDivisionError: a mistake", False),
            "SystemExit(3)": (3, "it raised SystemExit(3)", False),
            "SystemExit()": (0, "it raised SystemExit(None)", False),
            "SystemExit('text')": (1, "it raised SystemExit('text')", False),
        }
        for error, (status, problem, final) in fails.items():
            witness = self.worker(Raises(error))
            self.assertEqual(await witness.over, f"exited with status {status}", error)
            (failed,) = [message for message in witness.heard if message["is"] == "failed"]
            self.assertEqual(failed["final"], final)
            if error != "of ours":
                self.assertIn(problem, failed["problem"])

    async def test_lives(self) -> None:
        """A worker that is ready beats, answers, dumps its stacks, has little memory, and ends when it is told to."""
        witness = self.worker(Sleeper())
        process = await witness.ready
        self.assertLess(process.heartbeat_age, 5)
        self.assertEqual(await process.calls(), [])
        self.assertIn("in run", await process.dump())
        memory = process.memory
        assert memory is not None
        self.assertLess(memory, 60 * 1024 * 1024)
        process.signal(signal.SIGTERM)
        self.assertEqual(await witness.over, "exited with status 0")
        self.assertIn("ready", [event.text for event in witness.events])

    async def test_left_alone(self) -> None:
        """A worker takes no notice of the signals that a terminal sends to all, and of the supervisor's."""
        witness = self.worker(Sleeper())
        process = await witness.ready
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1):
            process.signal(number)
            self.assertEqual(await process.query("calls", PATIENCE), [])
        process.signal(signal.SIGTERM)
        await witness.over

    async def test_hangs(self) -> None:
        """Of a worker that hangs, the stacks can be had; SIGABRT ends it, and leaves them behind."""
        witness = self.worker(Hangs())
        process = await witness.ready
        await deferLater(reactor, 0.2)
        self.assertIsNone(await process.calls())
        self.assertIn("in mainLoop", await process.dump())
        process.diagnostics.clear_stacks()
        seen: list[str] = []
        witness.ended = lambda how: (seen.append(process.stacks), witness.over.callback(str(how)))
        process.signal(signal.SIGABRT)
        self.assertEqual(await witness.over, "was killed by SIGABRT")
        self.assertIn("Fatal Python error: Aborted", seen[0])

    async def test_hurry_blocks(self) -> None:
        """A worker that is interrupted exits in time, although a service's hurry() blocks its reactor."""
        witness = self.worker(BlocksInHurry())
        process = await witness.ready
        process.interrupt(0.2)
        self.assertEqual(await witness.over, "exited with status 1")

    async def test_descriptors(self) -> None:
        """A worker has its own descriptors, no other's, and the programs that it runs have none of them."""
        witnesses = [self.worker(TellsDescriptors(), number) for number in range(3)]
        await gatherResults([witness.ready for witness in witnesses])
        events_of_first: dict[str, str] = {}
        for witness in witnesses:
            events = {event.kind: event.text for event in witness.process.events}
            events_of_first = events_of_first or events
            self.assertEqual(events["inherited"], "")
            self.assertEqual(events["own"], events_of_first["own"])
            self.assertEqual(events["own"].split().count("/memfd:novasvc-record"), 2)  # one is of the memory map
            witness.process.signal(signal.SIGTERM)
        await gatherResults([witness.over for witness in witnesses])

    async def test_abandoned(self) -> None:
        """A worker that nobody waits for any more ends by itself."""
        await self.worker(Exits(0)).over
        forkserver = psutil.Process(self.forkserver.pid)
        witness = self.worker(Sleeper())
        witness.process.signal(signal.SIGTERM)
        self.assertEqual(await witness.over, "refused: stopped before it was forked")
        await until(lambda: not self.forkserver._pending_forks)
        await until(lambda: not forkserver.children())

    async def test_abandoned_before_the_fork(self) -> None:
        """A worker that nobody waits for when it is forked does not construct its server."""
        await self.worker(Exits(0)).over
        forkserver = psutil.Process(self.forkserver.pid)
        forkserver.suspend()
        witness = self.worker(Touches(path := self.mktemp()))
        witness.process.signal(signal.SIGTERM)
        await witness.over
        await until(lambda: not witness.process._pipe_open)
        forkserver.resume()
        await until(lambda: not self.forkserver._pending_forks)
        await until(lambda: not forkserver.children())
        self.assertFalse(exists(path))


class ForkserverTests(ProcessCase):
    """Forkservers that end, stop, or cannot fork."""

    async def test_killed(self) -> None:
        """One that is killed is replaced; its workers live on, and their ends are seen."""
        old = self.worker(Sleeper())
        process = await old.ready
        first = self.forkserver.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        in_flight = self.worker(Sleeper())
        os.kill(first, signal.SIGKILL)
        self.assertEqual(await in_flight.over, f"refused: the forkserver (pid {first}) died")
        new = self.worker(Sleeper())
        await new.ready
        self.assertNotIn(self.forkserver.pid, {first, None})
        self.assertEqual(await process.calls(), [])
        process.signal(signal.SIGTERM)
        self.assertEqual(await old.over, "exited with an unknown status")
        new.process.signal(signal.SIGTERM)
        self.assertEqual(await new.over, "exited with status 0")

    async def test_stopped(self) -> None:
        """One that does not answer is replaced; the end of its worker is seen all the same."""
        old = self.worker(Sleeper())
        process = await old.ready
        self.forkserver._import_timeout = 0.5
        first = self.forkserver.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        fork_failed = self.worker(Sleeper())
        with logged() as log:
            self.assertIn("died", await fork_failed.over)
        self.assertIn("did not answer for 0.5 s", log.text)
        process.signal(signal.SIGKILL)
        self.assertEqual(await old.over, "exited with an unknown status")
        await until(lambda: not alive(first))

    async def test_stopped_at_the_end(self) -> None:
        """How a worker of one that is stopped has ended, is seen all the same; and that one is killed at the end."""
        witness = self.worker(Sleeper())
        await witness.ready
        pid = self.forkserver.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        witness.process.signal(signal.SIGTERM)
        self.assertEqual(await witness.over, "exited with status 0")
        await self.forkserver.close()
        await until(lambda: not alive(pid))

    async def test_full(self) -> None:
        """If the system forks none, that is said, and the forkserver goes on until it can."""
        with NamedTemporaryFile(prefix="novasvc-full-") as full:  # where nobody may look, too
            self.forkserver = self.make("tests.support.forks_full", environment={"NOVASVC_TEST_FULL": full.name})
            for _ in range(2):
                received = await self.worker(Sleeper()).over
                self.assertEqual(received, "refused: fork failed: Resource temporarily unavailable")
            pid = self.forkserver.pid
        self.assertEqual(await self.worker(Exits(0)).over, "exited with status 0")
        self.assertEqual(self.forkserver.pid, pid)

    async def test_does_not_import(self) -> None:
        """What cannot be imported harms no worker that does not need it."""
        self.forkserver = self.make("no.such.module", "this.neither")
        self.assertEqual(await self.worker(Exits(0)).over, "exited with status 0")

    async def test_let_go(self) -> None:
        """One that is let go ends its workers: those that can, by themselves, and by force those that hang."""
        witnesses = [self.worker(Sleeper()), self.worker(Hangs())]
        await gatherResults([witness.ready for witness in witnesses])
        await deferLater(reactor, 0.1)
        began = reactor.seconds()
        await self.forkserver.close()
        self.assertLess(reactor.seconds() - began, 5)
        for witness in witnesses:
            self.assertEqual(await witness.over, "exited with an unknown status")
            pid = witness.process.pid
            assert pid is not None
            await until(lambda: not alive(pid))  # noqa: B023 - its channel ends a moment before


class Supervisor(ProcessProtocol):
    """A process that tells the others."""

    def __init__(self) -> None:
        self.data = b""
        self.told: Deferred[list[int]] = Deferred()
        self.over: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.data += data
        if self.data.endswith(b"\n"):
            self.told.callback(json.loads(self.data))

    def errReceived(self, data: bytes) -> None:
        sys.stderr.write(data.decode())

    def processEnded(self, reason: Failure) -> None:
        self.over.callback(None)


class OrphanTests(TestCase):
    """The end of a supervisor."""

    timeout = 60

    async def test_killed(self) -> None:
        """However it ends, forkserver and workers have ended when their grace is over, one that hangs, too."""
        for number in (signal.SIGKILL, signal.SIGTERM):
            supervisor = Supervisor()
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            process = reactor.spawnProcess(
                supervisor, sys.executable, [sys.executable, "-c", f"from {PARTS} import main; main()"], environment
            )
            pids = await supervisor.told
            self.assertTrue(all(map(alive, pids)))
            process.signalProcess(number)
            await supervisor.over
            ended = reactor.seconds()
            await until(lambda pids=pids: not any(map(alive, pids)))
            self.assertLess(reactor.seconds() - ended, GRACE + 0.5 + 1)  # and a busy machine's
