"""Tests for novasvc.workers.diagnostics and .process: what a worker leaves behind, and how its end is seen."""

import errno
import faulthandler
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from novasvc.telemetry.flight import SIZE, Event
from novasvc.workers.diagnostics import DUMP, DiagnosticsFile
from novasvc.workers.exit_status import Exit
from novasvc.workers.forkserver_client import ForkserverClient
from novasvc.workers.pipe import PipeMessage
from novasvc.workers.process import WorkerProcess
from tests.support.supervision_rig import Host, StandInWorker, descriptors, exited


@contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """Let so many more be opened, and no others."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    fillers = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(probe + 64, usual[1]), usual[1]))
    try:
        try:
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            for _ in range(left):
                os.close(fillers.pop())
        yield
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


class DiagnosticsFileTests(SynchronousTestCase):
    """The file in memory."""

    def make(self, descriptor: int | None = None) -> DiagnosticsFile:
        diagnostics = DiagnosticsFile(descriptor)
        self.addCleanup(diagnostics.close)
        return diagnostics

    def test_shared(self) -> None:
        """What one side notes, the other one finds: events, heartbeats, stacks."""
        ours = self.make()
        theirs = self.make(os.dup(ours.descriptor))
        theirs.recorder.note("call", "greet began")
        theirs.recorder.beat(12.5)
        os.write(theirs.descriptor, b"Thread 1\n")
        self.assertEqual([event.text for event in ours.recorder.events()], ["greet began"])
        self.assertEqual((ours.recorder.last_beat, ours.stacks), (12.5, "Thread 1\n"))

    def test_stacks_alone(self) -> None:
        """What faulthandler writes is behind the ring, and harms it not."""
        diagnostics = self.make()
        diagnostics.recorder.note("call", "greet began")
        faulthandler.dump_traceback(diagnostics.descriptor)
        faulthandler.dump_traceback(diagnostics.descriptor)
        self.assertEqual(diagnostics.stacks.count("in test_stacks_alone"), 2)
        self.assertEqual([event.text for event in diagnostics.recorder.events()], ["greet began"])

    def test_forgotten(self) -> None:
        """Stacks can be forgotten; those that come next are found alone, and the ring stays."""
        ours = self.make()
        theirs = self.make(os.dup(ours.descriptor))
        theirs.recorder.note("call", "greet began")
        os.write(theirs.descriptor, b"first\n")
        ours.clear_stacks()
        self.assertEqual(ours.stacks, "")
        os.write(theirs.descriptor, b"second\n")
        self.assertEqual(ours.stacks, "second\n")
        self.assertEqual(len(ours.recorder.events()), 1)

    def test_bounded(self) -> None:
        """However much was written, what is read is bounded; broken characters are replaced."""
        diagnostics = self.make()
        os.write(diagnostics.descriptor, b"\xff" * 1_000_000)
        self.assertEqual(diagnostics.stacks, "\N{REPLACEMENT CHARACTER}" * (256 * 1024))

    def test_too_short(self) -> None:
        """A file that is none is refused, and closed."""
        before = descriptors()
        descriptor = os.memfd_create("short")
        os.ftruncate(descriptor, SIZE - 1)
        self.assertRaises(ValueError, DiagnosticsFile, descriptor)
        self.assertEqual(descriptors(), before)

    def test_close(self) -> None:
        """Nothing is left of one that was closed."""
        before = descriptors()
        DiagnosticsFile().close()
        self.assertEqual(descriptors(), before)


class ExitTests(SynchronousTestCase):
    """How an end is told."""

    def test_texts(self) -> None:
        """An end is told as people say it."""
        for status, code, number, text in (
            (0, 0, None, "exited with status 0"),
            (exited(1), 1, None, "exited with status 1"),
            (exited(255), 255, None, "exited with status 255"),
            (9, None, 9, "was killed by SIGKILL"),
            (11 | 128, None, 11, "was killed by SIGSEGV"),  # and left a core
            (35, None, 35, "was killed by signal 35"),
            (None, None, None, "exited with an unknown status"),
        ):
            how = Exit(status)
            self.assertEqual((how.code, how.signal, str(how)), (code, number, text))


class Listener:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def forked(self) -> None:
        self.told.append("forked")

    def fork_failed(self, problem: str) -> None:
        self.told.append(f"refused: {problem}")

    def received(self, message: PipeMessage) -> None:
        self.told.append(message)

    def ended(self, how: Exit) -> None:
        self.told.append(str(how))


class ProcessCase(SynchronousTestCase):
    """A process of a forkserver that stands in."""

    def setUp(self) -> None:
        self.before = descriptors()
        self.host = Host()
        self.patch(os, "kill", self.host.kill)
        self.listener = Listener()
        self.client = ForkserverClient(self.host, ["os"], None, {}, retry=float)
        self.client.start()
        self.host.settle()

    def tearDown(self) -> None:
        self.client.close()
        self.host.tear_down()

    def begin(self, *sockets: socket.socket) -> WorkerProcess:
        process = WorkerProcess(self.client, self.host, {"number": 1}, sockets, self.listener)
        self.host.settle()
        return process

    @property
    def worker(self) -> StandInWorker:
        return self.host.workers[-1]

    @property
    def forkserver(self) -> Any:
        return self.host.forkservers[-1]

    def pass_time(self, seconds: float) -> None:
        self.host.pass_time(seconds)

    def lose_channel(self) -> None:
        self.worker.pipe.close()
        self.host.settle()


class ForkTests(ProcessCase):
    """From the request to the birth."""

    def test_born(self) -> None:
        """A worker gets its parameters, a pipe, a diagnostics file and its sockets, and has the pid of its process."""
        with socket.socket() as shared:
            process = self.begin(shared)
            self.assertEqual(self.worker.sockets[0].fileno() != shared.fileno(), True)
        self.assertEqual((self.listener.told, process.pid), (["forked"], self.worker.pid))
        self.assertEqual((self.worker.parameters, len(self.worker.sockets)), ({"number": 1}, 1))
        self.worker.diagnostics.recorder.note("call", "greet began")
        self.assertEqual([event.text for event in process.events], ["greet began"])

    def test_refused(self) -> None:
        """That it is not born is told with the reason, and nothing is left open."""
        self.host.answer = lambda worker: worker.fail_fork("no more processes")
        before = descriptors()
        self.begin()
        self.pass_time(0)
        self.assertEqual(self.listener.told, ["refused: no more processes"])
        self.assertEqual(descriptors(), before)

    def test_signal_before_birth(self) -> None:
        """One that gets a signal before its birth is not waited for; if it is born all the same, it is on its own."""
        self.host.answer = lambda _: None
        process = self.begin()
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGKILL)
        self.pass_time(0)
        self.assertEqual(self.listener.told, ["refused: stopped before it was forked"])
        self.worker.be_forked()
        self.host.settle()
        self.assertTrue(self.worker.orphaned)
        self.worker.end(0)
        self.pass_time(10)
        self.assertEqual((self.listener.told, self.worker.signals), (["refused: stopped before it was forked"], []))

    def test_refused_after_a_signal(self) -> None:
        """One that is not born after it was given up, is not told of again."""
        self.host.answer = lambda _: None
        self.begin().signal(signal.SIGTERM)
        self.worker.fail_fork("no more processes")
        self.pass_time(1)
        self.assertEqual(self.listener.told, ["refused: stopped before it was forked"])

    def test_few_descriptors(self) -> None:
        """For want of descriptors none is begun, at whatever step, and nothing is left open."""
        before = descriptors()
        for left in range(6):
            with few_descriptors(left):
                error = self.assertRaises(OSError, WorkerProcess, self.client, self.host, {}, (), self.listener)
            self.assertEqual(error.errno, errno.EMFILE)
            self.host.settle()
            self.assertEqual(descriptors(), before, left)
        self.assertEqual(self.listener.told, [])

    def test_let_go(self) -> None:
        """Of a forkserver that was let go, none is born."""
        self.client.close()
        self.begin()
        self.assertEqual(self.listener.told, ["refused: the forkserver was shut down"])


class LifeTests(ProcessCase):
    """What it says, and what can be known of it."""

    def test_says(self) -> None:
        """What it says is passed on, in order."""
        self.begin()
        self.worker.say("waiting", **{"for": "broker"})
        self.worker.say("ready")
        self.assertEqual(self.listener.told, ["forked", {"is": "waiting", "for": "broker"}, {"is": "ready"}])

    def test_nonsense(self) -> None:
        """What nobody understands is logged, and harms nothing."""
        self.begin()
        self.worker.pipe.send(b'hello\n[]\n{"isnt": 1}\n{"is": "ready"}\n')
        self.host.settle()
        self.assertEqual(self.listener.told, ["forked", {"is": "ready"}])
        self.assertEqual(len(self.flushLoggedErrors()), 3)

    def test_signal(self) -> None:
        """A signal is sent to its process."""
        process = self.begin()
        process.signal(signal.SIGTERM)
        self.assertEqual(self.worker.signals, [signal.SIGTERM])

    def test_silent(self) -> None:
        """It has been silent since its last heartbeat; before its first one it has not."""
        self.host.answer = lambda _: None
        process = self.begin()
        self.assertEqual(process.heartbeat_age, 0.0)
        self.worker.diagnostics.recorder.beat(time.monotonic() - 40)
        self.assertTrue(40 <= process.heartbeat_age < 50)

    def test_memory(self) -> None:
        """Its private memory is what the system says, nothing if it is gone."""
        process = self.begin()
        self.assertIsNone(process.memory)
        process.pid = os.getpid()
        memory = process.memory
        assert memory is not None
        self.assertTrue(1_000_000 < memory < 10_000_000_000)

    def test_calls(self) -> None:
        """It is asked which calls are under way; each answer goes to its question."""
        process = self.begin()
        first, second = process.calls(), process.calls()
        one, two = (message["query"] for message in self.worker.hear())
        self.worker.say("answer", key=two, answer=[{"method": "two"}])
        self.worker.say("answer", key=one, answer=[])
        self.worker.say("answer", key=one, answer=["again"])
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), ([], [{"method": "two"}]))

    def test_no_answer(self) -> None:
        """One that hangs is not waited for; a late answer goes to nobody."""
        process = self.begin()
        calls = process.calls()
        (question,) = self.worker.hear()
        self.pass_time(1)
        self.assertIsNone(self.successResultOf(calls))
        self.worker.say("answer", key=question["query"], answer=[])
        self.assertEqual(self.listener.told, ["forked"])

    def test_asked_at_its_end(self) -> None:
        """One that ends answers nothing any more."""
        process = self.begin()
        calls = process.calls()
        self.worker.end()
        self.assertIsNone(self.successResultOf(calls))
        self.assertIsNone(self.successResultOf(process.calls()))

    def test_dump(self) -> None:
        """It is told to write down its stacks, which are taken when they are complete."""
        process = self.begin()
        os.write(self.worker.diagnostics.descriptor, b"of before\n")
        stacks = Deferred.fromCoroutine(process.dump())
        self.assertEqual(self.worker.signals, [DUMP])
        os.write(self.worker.diagnostics.descriptor, b"Thread 1\n")
        self.host.pass_time(0.02, 0.02)
        os.write(self.worker.diagnostics.descriptor, b"  File x\n")
        self.host.pass_time(0.04, 0.02)
        self.assertEqual(self.successResultOf(stacks), "Thread 1\n  File x\n")

    def test_dump_of_one_that_is_stopped(self) -> None:
        """One that does not run at all writes none, and is waited for a second."""
        stacks = Deferred.fromCoroutine(self.begin().dump())
        self.host.pass_time(0.9, 0.02)
        self.assertNoResult(stacks)
        self.host.pass_time(0.2, 0.02)
        self.assertEqual(self.successResultOf(stacks), "")

    def test_dump_at_its_end(self) -> None:
        """One that ends meanwhile has written what it has written."""
        process = self.begin()
        stacks = Deferred.fromCoroutine(process.dump())
        os.write(self.worker.diagnostics.descriptor, b"Thread 1\n")
        self.host.pass_time(0.02, 0.02)
        self.worker.end()
        self.host.pass_time(0.02, 0.02)
        self.assertEqual(self.successResultOf(stacks), "Thread 1\n")
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(process.dump())), "")

    def test_dump_before_birth(self) -> None:
        """One that is not born yet has no stacks, and is born all the same."""
        self.host.answer = lambda _: None
        process = self.begin()
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(process.dump())), "")
        self.worker.be_forked()
        self.host.settle()
        self.assertEqual(self.listener.told, ["forked"])


class EndTests(ProcessCase):
    """How its end is seen."""

    def setUp(self) -> None:
        super().setUp()
        self.process = self.begin()
        self.listener.told.clear()

    def test_both(self) -> None:
        """Its end is told once, when its channel has ended and its status is known."""
        self.worker.end(exited(3))
        self.assertEqual(self.listener.told, ["exited with status 3"])
        self.pass_time(10)
        self.assertEqual((self.listener.told, self.host.calls), (["exited with status 3"], []))

    def test_last_words(self) -> None:
        """What it said last comes before its end, even if that is known earlier."""
        self.forkserver.say({"ended": self.worker.pid, "status": exited(1)})
        self.forkserver.turn()
        self.worker.pipe.send(b'{"is": "failed", "problem": "x", "final": true}\n')
        self.worker.end()
        self.assertEqual(self.listener.told, [{"is": "failed", "problem": "x", "final": True}, "exited with status 1"])

    def test_left_behind(self) -> None:
        """What it left behind can be read when its end is told, and is gone then."""
        seen: list[Any] = []
        self.listener.ended = lambda how: seen.append(
            (self.process.stacks, self.process.events, self.process.heartbeat_age)
        )
        self.worker.diagnostics.recorder.note("call", "greet began")
        os.write(self.worker.diagnostics.descriptor, b"Fatal\n")
        self.worker.end(signal.SIGSEGV)
        ((stacks, events, stalled),) = seen
        self.assertEqual((stacks, [event.text for event in events]), ("Fatal\n", ["greet began"]))
        self.assertLess(stalled, 30)
        self.assertEqual((self.process.stacks, self.process.events, self.process.heartbeat_age), ("", [], 0.0))

    def test_nothing_open(self) -> None:
        """Nothing of it stays open."""
        self.worker.end()
        self.client.close()
        self.host.tear_down()
        self.pass_time(0)
        self.assertEqual(descriptors(), self.before)

    def test_signal_afterwards(self) -> None:
        """A signal after its end goes nowhere: its number may be another's."""
        self.worker.end()
        self.worker.alive = True
        self.process.signal(signal.SIGKILL)
        self.assertEqual(self.worker.signals, [])

    def test_child_holds_the_channel(self) -> None:
        """That somebody holds its channel puts off the news of its end by a second."""
        self.forkserver.say({"ended": self.worker.pid, "status": 9})
        self.pass_time(0.75)
        self.assertEqual(self.listener.told, [])
        self.pass_time(0.25)
        self.assertEqual(self.listener.told, ["was killed by SIGKILL"])
        self.assertTrue(self.worker.orphaned)

    def test_forkserver_gone(self) -> None:
        """Without its forkserver, the end of its channel is its end, and how is not known."""
        self.forkserver.end()
        self.pass_time(0)
        self.lose_channel()
        self.pass_time(0)
        self.assertEqual(self.listener.told, ["exited with an unknown status"])

    def test_forkserver_gone_afterwards(self) -> None:
        """A forkserver that goes between the two is waited for a second."""
        self.lose_channel()
        self.forkserver.end()
        self.pass_time(0.75)
        self.assertEqual(self.listener.told, [])
        self.pass_time(0.25)
        self.assertEqual(self.listener.told, ["exited with an unknown status"])

    def test_forkserver_stopped(self) -> None:
        """One whose channel has ended is killed a second later, if its forkserver does not say that it has."""
        self.lose_channel()
        self.pass_time(1)
        self.assertEqual(self.listener.told, ["exited with an unknown status"])
        self.assertEqual(self.worker.signals, [signal.SIGKILL])

    def test_reported_while_suspended(self) -> None:
        """If this process is suspended before it reads the status, it reads it first, and kills nobody."""
        self.lose_channel()
        self.forkserver.say({"ended": self.worker.pid, "status": exited(3)})
        self.host.be_suspended(1000)
        self.assertEqual((self.listener.told, self.worker.signals), (["exited with status 3"], []))

    def test_last_words_while_suspended(self) -> None:
        """If this process is suspended after it has read the status, it reads the last message before the end."""
        self.forkserver.say({"ended": self.worker.pid, "status": exited(1)})
        self.host.settle()
        self.worker.pipe.send(b'{"is": "failed"}\n')
        self.host.be_suspended(1000)
        self.assertEqual(self.listener.told, [{"is": "failed"}, "exited with status 1"])

    def test_farewell(self) -> None:
        """One that has said that it is done has a minute for its threads and exit handlers, and is killed then."""
        self.worker.say("done")
        self.lose_channel()
        self.pass_time(59)
        self.assertEqual((self.listener.told, self.worker.signals), ([], []))
        self.pass_time(1)
        self.assertEqual(self.listener.told, ["exited with an unknown status"])
        self.assertEqual(self.worker.signals, [signal.SIGKILL])

    def test_end_of_a_farewell(self) -> None:
        """Its end is seen when it comes."""
        self.worker.say("done")
        self.lose_channel()
        self.pass_time(30)
        self.worker.end(exited(4))
        self.assertEqual(self.listener.told, ["exited with status 4"])

    def test_both_are_missing(self) -> None:
        """Without its forkserver, and with its channel held, its end is seen when the next signal finds nobody."""
        self.forkserver.end()
        self.pass_time(0)
        self.worker.alive = False
        self.pass_time(100)
        self.assertEqual(self.listener.told, [])
        self.process.signal(signal.SIGABRT)
        self.process.signal(signal.SIGKILL)
        self.pass_time(1)
        self.assertEqual(self.listener.told, ["exited with an unknown status"])

    def test_gone_before_the_news(self) -> None:
        """A signal that finds nobody, while there is a forkserver to tell, changes nothing."""
        self.worker.alive = False
        self.process.signal(signal.SIGTERM)
        self.pass_time(1)
        self.assertEqual(self.listener.told, [])
        self.worker.end(exited(2))
        self.assertEqual(self.listener.told, ["exited with status 2"])


class EarlyEndTests(ProcessCase):
    """One that ends as soon as it is born."""

    def test_channel_first(self) -> None:
        """One whose channel has ended before its birth is known has ended; that its forkserver goes hides it not."""
        self.host.answer = lambda _: None
        self.begin()
        self.lose_channel()
        self.worker.be_forked()
        self.host.settle()
        self.forkserver.end()
        self.pass_time(1)
        self.assertEqual(self.listener.told, ["forked", "exited with an unknown status"])

    def test_event_type(self) -> None:
        """What it has noted is found as events."""
        process = self.begin()
        self.worker.diagnostics.recorder.note("node", "up")
        (event,) = process.events
        self.assertIsInstance(event, Event)
