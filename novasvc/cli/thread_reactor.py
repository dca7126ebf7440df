"""A reactor without sockets, for commands that only wait for threads and for time."""

from contextlib import suppress
from queue import Empty, SimpleQueue

from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor


class _Waker:
    """Ends the wait of a reactor, from another thread or from a signal's handler."""

    def __init__(self) -> None:
        # SimpleQueue.put() is reentrant, for the handler of a signal; Event.set() is not.
        self._woken: SimpleQueue[None] = SimpleQueue()

    def wakeUp(self) -> None:  # noqa: N802 - see ReactorBase
        """End the wait under way, or the next one."""
        self._woken.put(None)

    def wait(self, seconds: float | None) -> None:
        """Wait until the reactor is woken, or for so many seconds."""
        with suppress(Empty):
            self._woken.get(timeout=seconds)
            while True:
                self._woken.get_nowait()


class ThreadReactor(ReactorBase):
    """Runs delayed calls and calls from threads; it has no sockets.

    A driver of SQLAlchemy talks to its database in a thread, so a command that only reads the registry needs no more.
    The import of Twisted's own reactors takes 0.1 s longer, most of it for TLS. Unlike the process's reactor, each
    command can have several, one after the other.
    """

    waker: _Waker

    def installWaker(self) -> None:  # noqa: N802 - see ReactorBase
        """See ReactorBase."""
        self.waker = _Waker()

    def doIteration(self, delay: float | None) -> None:  # noqa: N802
        """See ReactorBase."""
        self.waker.wait(delay)

    def removeAll(self) -> list[IReadDescriptor | IWriteDescriptor]:  # noqa: N802
        """See ReactorBase: there is nothing to read or to write."""
        return []
