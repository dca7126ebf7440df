"""Crews of threads: how many there are, and when."""

import threading
from collections.abc import Callable
from queue import Queue
from unittest.mock import patch

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.http.crew import Crew, Mailbox


class CrewTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def submit(self, crew: Crew, work: Callable[[], object]) -> bool:
        taken = crew.submit(work)  # type: ignore[arg-type]
        self.clock.advance(0)  # a thread is woken when the reactor has done its turn
        return taken

    def crew(self, threads: int, queue: int = 100) -> Crew:
        crew = Crew(self.clock, threads=threads, queue=queue)
        self.addCleanup(crew.close)
        return crew

    def test_one(self) -> None:
        """Work that does not wait is done by one thread, in its order."""
        crew = self.crew(10)
        done: Queue[tuple[int, str]] = Queue()
        for number in range(50):
            self.assertTrue(
                self.submit(crew, lambda number=number: done.put((number, threading.current_thread().name)))
            )
        found = [done.get(timeout=10) for _ in range(50)]
        self.assertEqual([number for number, _ in found], list(range(50)))
        self.assertEqual(len({name for _, name in found}), 1)

    def test_many(self) -> None:
        """Work that waits gets threads, up to the most; what they needed is remembered for a while."""
        crew = self.crew(3)
        begun: Queue[None] = Queue()
        go = threading.Event()

        def work() -> None:
            begun.put(None)
            go.wait(10)

        for _ in range(5):
            self.submit(crew, work)
        begun.get(timeout=10)
        self.assertTrue(begun.empty())
        self.clock.pump([0.01] * 2)  # the first look sees that work was begun since it was given
        for _ in range(2):
            begun.get(timeout=10)
        self.clock.pump([0.01] * 3)
        self.assertEqual((crew.busy, begun.qsize()), (3, 0))
        go.set()
        for _ in range(2):
            begun.get(timeout=10)
        self.wait(lambda: crew.busy == 0)
        go.clear()
        self.submit(crew, work)
        self.submit(crew, work)
        for _ in range(2):
            begun.get(timeout=10)  # nobody had to look
        go.set()

    def test_no_threads(self) -> None:
        """While the system gives no thread that is said once, and tried again now and then."""
        crew = self.crew(2)
        done: Queue[None] = Queue()
        tries: list[float] = []

        def start(thread: threading.Thread) -> None:
            tries.append(self.clock.seconds())
            raise RuntimeError("can't start new thread")

        with patch.object(threading.Thread, "start", start), capturedLogs() as events:
            self.submit(crew, lambda: done.put(None))
            self.clock.pump([0.001] * 1000)
        self.assertLess(len(tries), 15)
        (event,) = events
        self.assertIn("can't start new thread; there are 0", formatEvent(event) or "")
        self.clock.pump([0.1])
        done.get(timeout=10)

    def wait(self, condition: Callable[[], bool]) -> None:
        timeout = threading.Event()
        for _ in range(1000):
            if condition():
                return
            timeout.wait(0.01)
        self.fail("it did not come to be")

    def test_full(self) -> None:
        """Work that too much waits before is not taken."""
        crew = self.crew(1, queue=2)
        go = threading.Event()
        begun = threading.Event()

        def work() -> None:
            begun.set()
            go.wait(10)

        self.submit(crew, work)
        begun.wait(10)
        self.assertEqual([self.submit(crew, work) for _ in range(3)], [True, True, False])
        go.set()

    def test_close(self) -> None:
        """Threads that are not needed any more end."""
        crew = self.crew(1)
        done: Queue[threading.Thread] = Queue()
        self.submit(crew, lambda: done.put(threading.current_thread()))
        thread = done.get(timeout=10)
        crew.close()
        thread.join(10)
        self.assertFalse(thread.is_alive())
        self.assertTrue(thread.daemon)


class MailboxTests(SynchronousTestCase):
    def test_once(self) -> None:
        """Many calls wake the reactor once, and are made in their order; one that fails does not stop the others."""
        woken: list[Callable[[], None]] = []

        class Reactor:
            def callFromThread(self, function: Callable[[], None]) -> None:
                woken.append(function)

        mailbox = Mailbox(Reactor())
        heard: list[int] = []
        mailbox.post(lambda: heard.append(1))
        mailbox.post(lambda: heard.append(1 // 0))
        mailbox.post(lambda: mailbox.post(lambda: heard.append(3)))
        (deliver,) = woken
        deliver()
        self.assertEqual((heard, len(woken)), ([1], 2))
        woken[1]()
        self.assertEqual(heard, [1, 3])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
