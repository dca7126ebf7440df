"""Threads that answer requests: as many as are needed, and no more."""

# Note [As many threads as are needed]
#
# Python runs one thread at a time. Applications that compute and return are served best by one
# thread: a second one only has the two of them, and the reactor, wait for each other at every turn.
# Applications that wait, for a database or for another server, need a thread each. Nobody can say
# beforehand which one an application is, and many are both.
#
# So work goes to a queue, and one thread is woken for it; that takes the next when it has done one.
# While work waits, the reactor looks every few milliseconds whether the queue has moved. If it has
# not, those that run are waiting for something, and a thread is woken for each that waits in the
# queue. The crew remembers how many it took, so that the next request finds them at once; and
# slowly forgets it.
#
# To hand the interpreter from one thread to another costs as much as a small answer. So a thread is
# woken when the reactor has read all that has come in its turn, and it wakes the reactor when there
# is nothing more to do: between them go batches.

from collections import deque
from collections.abc import Callable
from contextvars import Context
from threading import Lock, Thread
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

_log = Logger()

THREADS = 128
"""Requests that are answered at a time; see docs/performance.md for what it was measured with."""
QUEUE = 1024
"""Requests that may wait for a thread."""
_LOOK = 0.002
"""Seconds between two looks at the queue."""
_SCARCE = 0.1
"""Seconds between two looks while the system gives no more threads."""
_MEMORY = 1.0
"""Seconds after which half as many threads as were needed count as needed."""


class Crew:
    """Runs work in threads of its own. See Note [As many threads as are needed].

    The threads are daemons, as those of :mod:`novasvc.reactor.threads` are and for its reasons, and none exists
    before there is work.

    :param reactor: provides IReactorTime.
    :param threads: how many there are at the most.
    :param queue: how much work may wait when all of them are taken.
    """

    def __init__(self, reactor: Any, *, threads: int = THREADS, queue: int = QUEUE) -> None:
        self._reactor = reactor
        self.mailbox = Mailbox(reactor)
        self.most = threads
        self._queue = queue
        self._lock = Lock()
        self._work: deque[Callable[[], None]] = deque()
        self._bells: list[Lock] = []
        self._hired = 0
        self._busy = 0
        self._needed = 1
        self._begun = self._done = self._seen = 0
        self._remembered = 0.0
        self._roused: IDelayedCall | None = None
        self._scarce = False
        self._closed = False
        self._look: IDelayedCall | None = None

    def submit(self, work: Callable[[], None]) -> bool:
        """Have work done in a thread. Called in the reactor's.

        :param work: raises nothing.
        :return: whether it is taken; False if too much waits already.
        """
        with self._lock:
            # Threads that are not roused yet will take theirs within a few milliseconds.
            if len(self._work) + self._begun - self._done >= self._queue + self.most:
                return False
            self._work.append(work)
            late = self._busy >= self._needed
        if late and self._look is None:
            self._seen = self._begun
            self._look = self._reactor.callLater(_LOOK, self._look_again)
        elif not late and self._roused is None:
            self._roused = self._reactor.callLater(0, self._rouse_soon)
        return True

    def _rouse_soon(self) -> None:
        self._roused = None
        with self._lock:
            waiting = len(self._work)
            if waiting:
                self._rouse(min(waiting, self._needed - self._busy))
        if waiting and self._look is None:
            self._seen = self._begun
            self._look = self._reactor.callLater(_LOOK, self._look_again)

    @property
    def busy(self) -> int:
        """Threads that work."""
        return self._busy

    def close(self) -> None:
        """Have the threads end, each when it has done what it does. No work comes any more."""
        with self._lock:
            self._closed = True
            while self._bells:
                self._bells.pop().release()
        for call in (self._look, self._roused):
            if call is not None:
                call.cancel()
        self._look = self._roused = None

    def answer(self, call: Callable[[], None]) -> None:
        """Have the reactor call this soon. Called in one of the threads.

        That is at once; but while more work waits, it comes with what this thread does next, within milliseconds.
        """
        self.mailbox.leave(call)
        if not self._work or self._look is None:
            self.mailbox.wake()

    def _look_again(self) -> None:
        self._look = None
        self.mailbox.deliver()
        now = self._reactor.seconds()
        with self._lock:
            waiting = len(self._work)
            if waiting and self._begun == self._seen:
                self._rouse(waiting)
                self._needed = max(1, self._busy)
                self._remembered = now
            elif now - self._remembered > _MEMORY:
                self._needed = max(1, self._needed // 2)
                self._remembered = now
            self._seen = self._begun
        if waiting:
            self._look = self._reactor.callLater(_SCARCE if self._scarce else _LOOK, self._look_again)

    def _rouse(self, count: int) -> None:
        """Have so many more threads take work, if there are so many."""
        for _ in range(count):
            if self._bells:
                self._bells.pop().release()
            elif self._hired < self.most:
                try:
                    Thread(target=self._serve, name=f"http-{self._hired}", daemon=True).start()
                except RuntimeError as error:
                    if not self._scarce:
                        self._scarce = True
                        _log.warn(
                            "the system gives no more threads to answer requests with: {error}; there are {count}",
                            error=error,
                            count=self._hired,
                        )
                    return
                self._hired += 1
                self._scarce = False
            else:
                return
            self._busy += 1

    def _serve(self) -> None:
        bell = Lock()
        bell.acquire()
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
                    self._bells.append(bell)
                else:
                    self._begun += 1
            if work is None:
                self.mailbox.wake()
                bell.acquire()
            else:
                # What one request sets in its context is not the next one's business.
                Context().run(work)


class Mailbox:
    """Brings calls from threads to the reactor, many of them in one turn.

    :param reactor: provides IReactorFromThreads.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, call: Callable[[], None]) -> None:
        """Have the reactor call this soon. Called in any thread."""
        self._calls.append(call)
        self.wake()

    def leave(self, call: Callable[[], None]) -> None:
        """Have the reactor call this when somebody wakes it, or takes the mail."""
        self._calls.append(call)

    def wake(self) -> None:
        """Have the reactor take the mail, if there is some."""
        if self._calls and not self._woken:
            self._woken = True
            self._reactor.callFromThread(self.deliver)

    def deliver(self) -> None:
        """Take the mail. Called in the reactor's thread."""
        # In this order: who posts from now on sees that it has to wake the reactor again.
        self._woken = False
        calls = self._calls
        for _ in range(len(calls)):
            try:
                calls.popleft()()
            except Exception:  # noqa: BLE001 - the others are to be called as well
                _log.failure("an answer could not be given")
