"""Tests for novasvc.http.threadpool: how many threads run, and when they start and end."""

import threading
from collections.abc import Callable
from queue import Queue
from unittest.mock import patch

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from novasvc.http.threadpool import ThreadPool


class ThreadPoolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def submit(self, pool: ThreadPool, work: Callable[[], object]) -> bool:
        accepted = pool.submit(work)  # type: ignore[arg-type]
        self.clock.advance(0)  # threads are woken at the end of the reactor's turn
        return accepted

    def pool(self, threads: int, queue: int = 100) -> ThreadPool:
        pool = ThreadPool(self.clock, threads=threads, queue=queue)
        self.addCleanup(pool.close)
        return pool

    def test_one(self) -> None:
        """Work that does not block runs in one thread, in the order in which it was submitted."""
        pool = self.pool(10)
        done: Queue[tuple[int, str]] = Queue()
        for number in range(50):
            self.assertTrue(
                self.submit(pool, lambda number=number: done.put((number, threading.current_thread().name)))
            )
        found = [done.get(timeout=10) for _ in range(50)]
        self.assertEqual([number for number, _ in found], list(range(50)))
        self.assertEqual(len({name for _, name in found}), 1)

    def test_many(self) -> None:
        """Work that blocks gets more threads, up to the maximum; their number is remembered for a while."""
        pool = self.pool(3)
        begun: Queue[None] = Queue()
        go = threading.Event()

        def work() -> None:
            begun.put(None)
            go.wait(10)

        for _ in range(5):
            self.submit(pool, work)
        begun.get(timeout=10)
        self.assertTrue(begun.empty())
        self.clock.pump([0.01] * 2)  # the first poll sees that work has begun since it was submitted
        for _ in range(2):
            begun.get(timeout=10)
        self.clock.pump([0.01] * 3)
        self.assertEqual((pool.busy, begun.qsize()), (3, 0))
        go.set()
        for _ in range(2):
            begun.get(timeout=10)
        self.wait(lambda: pool.busy == 0)
        go.clear()
        self.submit(pool, work)
        self.submit(pool, work)
        for _ in range(2):
            begun.get(timeout=10)  # without a poll
        go.set()

    def test_no_threads(self) -> None:
        """A system that starts no more threads is logged once, and asked again every 0.1 seconds."""
        pool = self.pool(2)
        done: Queue[None] = Queue()
        tries: list[float] = []

        def start(thread: threading.Thread) -> None:
            tries.append(self.clock.seconds())
            raise RuntimeError("can't start new thread")

        with patch.object(threading.Thread, "start", start), capturedLogs() as events:
            self.submit(pool, lambda: done.put(None))
            self.clock.pump([0.001] * 1000)
        self.assertLess(len(tries), 15)
        (event,) = events
        self.assertIn("can't start new thread); 0 are running", formatEvent(event) or "")
        self.clock.pump([0.1])
        done.get(timeout=10)

    def wait(self, condition: Callable[[], bool]) -> None:
        timeout = threading.Event()
        for _ in range(1000):
            if condition():
                return
            timeout.wait(0.01)
        self.fail("the condition did not become true")

    def test_full(self) -> None:
        """Work is rejected when the queue is full."""
        pool = self.pool(1, queue=2)
        go = threading.Event()
        begun = threading.Event()

        def work() -> None:
            begun.set()
            go.wait(10)

        self.submit(pool, work)
        begun.wait(10)
        self.assertEqual([self.submit(pool, work) for _ in range(3)], [True, True, False])
        go.set()

    def test_cancel(self) -> None:
        """Work that no thread has begun can be cancelled, and leaves its place in the queue to other work."""
        pool = self.pool(1, queue=1)
        go = threading.Event()
        begun = threading.Event()
        done: Queue[str] = Queue()

        def work() -> None:
            begun.set()
            go.wait(10)

        def queued() -> None:
            done.put("queued")

        self.submit(pool, work)
        begun.wait(10)
        self.assertTrue(self.submit(pool, queued))
        self.assertEqual([pool.cancel(each) for each in (work, queued, queued)], [False, True, False])
        self.assertTrue(self.submit(pool, lambda: done.put("other")))
        go.set()
        self.assertEqual((done.get(timeout=10), done.empty()), ("other", True))

    def test_close(self) -> None:
        """Idle threads end when the pool is closed."""
        pool = self.pool(1)
        done: Queue[threading.Thread] = Queue()
        self.submit(pool, lambda: done.put(threading.current_thread()))
        thread = done.get(timeout=10)
        pool.close()
        thread.join(10)
        self.assertFalse(thread.is_alive())
        self.assertTrue(thread.daemon)
