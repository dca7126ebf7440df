"""The thread pool of WSGI applications: no more threads than the work needs."""

# Note [How many threads]
#
# Python runs one thread at a time. An application that computes and returns is served best by one thread: a second one
# only makes the two of them and the reactor contend for the interpreter. An application that waits for a database or
# for another server needs a thread per request. Nobody can say beforehand which kind an application is, and many are
# both.
#
# So work goes to a queue, and one thread is woken for it, which takes the next item when it has finished one. While
# work is queued, the reactor looks every few milliseconds whether the queue has moved. If it has not, the running
# threads are waiting for something, and one more is woken for each queued item. The pool remembers how many it needed,
# so that the next requests find them at once, and gradually forgets.
#
# Switching between threads costs as much as a small response. So a thread is woken after the reactor has read all that
# came in its turn, and wakes the reactor when it has nothing more to do: work and results travel in batches.

from collections import deque
from collections.abc import Callable
from contextvars import Context
from threading import Lock, Thread
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from novasvc.http.reactor_queue import ReactorQueue

_log = Logger()

THREADS = 128
"""Requests that are answered at a time; docs/decisions.md says what it was measured with."""
QUEUE = 1024
"""Requests that may wait for a thread."""
_POLL = 0.002
"""Seconds between two looks at the queue."""
_POLL_OUT_OF_THREADS = 0.1
"""Seconds between two looks while the system does not start more threads."""
_MEMORY = 1.0
"""Seconds after which the number of threads that were needed is halved."""


class ThreadPool:
    """Runs work in threads of its own. See Note [How many threads].

    The threads are daemons, for the reasons that :mod:`novasvc.reactor.threads` gives, and the first one is started
    by the first work.

    :param reactor: provides IReactorTime and IReactorFromThreads.
    :param threads: their maximum number.
    :param queue: the number of work items that may wait while all threads are busy.
    :ivar max_threads: may be changed at any time; threads that run already go on.
    """

    def __init__(self, reactor: Any, *, threads: int = THREADS, queue: int = QUEUE) -> None:
        self._reactor = reactor
        self.reactor_queue = ReactorQueue(reactor)
        self.max_threads = threads
        self._queue = queue
        # Guards everything below that both the reactor and the threads change.
        self._lock = Lock()
        self._work: deque[Callable[[], None]] = deque()
        self._idle: list[Lock] = []  # one held lock per idle thread; releasing it wakes the thread
        self._started = 0
        self._busy = 0
        self._begun = self._done = 0
        self._closed = False
        # Used by the reactor only.
        self._needed = 1
        self._begun_before = 0
        self._remembered_at = 0.0
        self._out_of_threads = False
        self._wake_call: IDelayedCall | None = None
        self._poll_call: IDelayedCall | None = None

    def submit(self, work: Callable[[], None]) -> bool:
        """Run work in a thread. Called in the reactor's thread.

        :param work: raises nothing.
        :return: whether it was accepted; False if the queue is full.
        """
        with self._lock:
            # Counts idle threads as capacity, as they are woken within milliseconds.
            if len(self._work) + self._begun - self._done >= self._queue + self.max_threads:
                return False
            self._work.append(work)
            all_busy = self._busy >= self._needed
        if all_busy:
            self._poll_soon()
        elif self._wake_call is None:
            self._wake_call = self._reactor.callLater(0, self._wake_soon)
        return True

    def cancel(self, work: Callable[[], None]) -> bool:
        """Take work out of the queue. Called in the reactor's thread.

        :return: whether it was there; False if a thread runs it, or has run it.
        """
        with self._lock:
            try:
                self._work.remove(work)
            except ValueError:
                return False
            return True

    @property
    def busy(self) -> int:
        """The number of threads that run work."""
        return self._busy

    def close(self) -> None:
        """End the threads, each when it has finished its work. No work may be submitted afterwards."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().release()
        for call in (self._poll_call, self._wake_call):
            if call is not None:
                call.cancel()
        self._poll_call = self._wake_call = None

    def call_in_reactor(self, call: Callable[[], None]) -> None:
        """Have the reactor call this soon. Called in one of the threads.

        It is called at once unless more work is queued; then the next poll of the queue calls it, within milliseconds.
        """
        self.reactor_queue.add(call)
        if not self._work or self._poll_call is None:
            self.reactor_queue.wake()

    def _wake_soon(self) -> None:
        self._wake_call = None
        with self._lock:
            waiting = len(self._work)
            if waiting:
                self._wake_threads(min(waiting, self._needed - self._busy))
        if waiting:
            self._poll_soon()

    def _poll_soon(self) -> None:
        if self._poll_call is None:
            self._begun_before = self._begun
            self._poll_call = self._reactor.callLater(_POLL, self._poll)

    def _poll(self) -> None:
        self._poll_call = None
        self.reactor_queue.run()
        now = self._reactor.seconds()
        with self._lock:
            waiting = len(self._work)
            if waiting and self._begun == self._begun_before:
                # No thread took work since the last look: all of them wait for something.
                self._wake_threads(waiting)
                self._needed = max(1, self._busy)
                self._remembered_at = now
            elif now - self._remembered_at > _MEMORY:
                self._needed = max(1, self._needed // 2)
                self._remembered_at = now
            self._begun_before = self._begun
        if waiting:
            pause = _POLL_OUT_OF_THREADS if self._out_of_threads else _POLL
            self._poll_call = self._reactor.callLater(pause, self._poll)

    def _wake_threads(self, count: int) -> None:
        """Wake or start this many threads, as far as there may be so many. Called with the lock held."""
        for _ in range(count):
            if self._idle:
                self._idle.pop().release()
            elif self._started < self.max_threads:
                try:
                    Thread(target=self._serve, name=f"http-{self._started}", daemon=True).start()
                except RuntimeError as error:
                    if not self._out_of_threads:
                        self._out_of_threads = True
                        _log.warn(
                            "no more threads can be started for requests ({error}); {count} are running",
                            error=error,
                            count=self._started,
                        )
                    return
                self._started += 1
                self._out_of_threads = False
            else:
                return
            self._busy += 1

    def _serve(self) -> None:
        """Run work until the pool is closed. The body of each thread."""
        wakeup = Lock()
        wakeup.acquire()
        work: Callable[[], None] | None = None
        while True:
            with self._lock:
                if work is not None:
                    self._done += 1
                work = self._work.popleft() if self._work else None
                if work is None and self._closed:
                    return
                if work is None:
                    self._busy -= 1
                    self._idle.append(wakeup)
                else:
                    self._begun += 1
            if work is None:
                self.reactor_queue.wake()
                wakeup.acquire()
            else:
                # A fresh context each time: context variables that one request sets must not leak into the next.
                Context().run(work)
