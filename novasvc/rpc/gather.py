"""Gather: ask all servers of a topic, and take their answers one by one."""

from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Self

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from novasvc.reactor.coalesce import Waiters
from novasvc.rpc.failures.failure import decode_error
from novasvc.rpc.message import Reply

MAX_REPLIES = 10_000
"""The most answers of one gather; further ones are dropped and counted as unmatched."""
_MAX_HOST = 255

HostsFunction = Callable[[str], Deferred[frozenset[str]]]
"""Return the hosts of the services of a topic that are up, as the registry knows them; see
:class:`novasvc.registry.lookup.UpHosts`. The Deferred fires within a bound of its own, and may fail."""

OnError = Callable[[Exception], object]
"""Called with each error that a server answers; must not raise."""


@attrs.frozen
class HostReply:
    """One server's answer to a gather.

    :param host: the server's host; None if it does not say, as one of oslo.messaging.
    :param result: what the method returned; None if it failed.
    :param error: what it raised, as :meth:`novasvc.rpc.Client.call` raises it; None if it returned.
    """

    host: str | None
    result: Any = None
    error: Exception | None = None

    def get(self) -> Any:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result


@attrs.frozen
class Gathered:
    """All answers to a gather.

    :param replies: in the order in which they arrived; a host has one at most.
    :param missing: hosts that are up according to the registry and have not answered, sorted; None if the client could
        not ask the registry.
    """

    replies: tuple[HostReply, ...]
    missing: tuple[str, ...] | None

    @property
    def results(self) -> dict[str | None, Any]:
        """The results by host, without failures.

        Servers that do not say their host, as those of oslo.messaging, share the key None, which has the last of
        their results; ``replies`` has all.
        """
        return {reply.host: reply.result for reply in self.replies if reply.error is None}

    @property
    def errors(self) -> dict[str | None, Exception]:
        """The errors by host; of servers that do not say it, the last one, as in ``results``."""
        return {reply.host: reply.error for reply in self.replies if reply.error is not None}


class Gathering:
    """The answers to one gather, as they arrive.

    It ends when all hosts that the registry knows to be up have answered, or at the timeout. Without a registry, or if
    that knows no host, only the timeout ends it. Iterate over it once, or wait for :meth:`all`, or both::

        async for reply in gathering:
            print(reply.host, reply.result)
        print("missing:", gathering.missing)

    :param stop: called once, at the end, with the outcome; see :meth:`end`.
    :param failed: called with each error that a server answers.
    """

    def __init__(self, stop: Callable[["Gathering", str], None], failed: OnError | None = None) -> None:
        self._stop = stop
        self._failed = failed
        self._replies: list[HostReply] = []
        self._unread: deque[HostReply] = deque()
        self._answered: set[str] = set()
        self._expected: frozenset[str] | None = None
        self._ended: str = ""
        self._failure: Failure | None = None
        self._arrivals: Waiters[None] = Waiters()
        self._ends: Waiters[None] = Waiters()

    # -- for the caller ------------------------------------------------------------------------

    @property
    def missing(self) -> tuple[str, ...] | None:
        """The hosts that have not answered yet; see :class:`Gathered`."""
        return None if self._expected is None else tuple(sorted(self._expected - self._answered))

    @property
    def expected(self) -> frozenset[str] | None:
        """The hosts that are up according to the registry; None if that was not asked, or has not answered yet."""
        return self._expected

    @property
    def ended(self) -> bool:
        """Whether no further answer will be taken."""
        return bool(self._ended)

    def all(self) -> Deferred[Gathered]:
        """Wait for the end.

        :return: a new Deferred each time. Cancelling it cancels the gather, as :meth:`cancel`. Fails with what
            :meth:`novasvc.rpc.Client.call` fails with, if the message could not be sent.
        """
        return Deferred.fromCoroutine(self._all())

    async def _all(self) -> Gathered:
        try:
            if not self._ended:
                await self._ends.wait()
        except CancelledError:
            self.cancel()
            raise
        self._raise_failure()
        return Gathered(tuple(self._replies), self.missing)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> HostReply:
        while not self._unread:
            if self._ended:
                self._raise_failure()
                raise StopAsyncIteration
            try:
                await self._arrivals.wait()
            except CancelledError:
                self.cancel()
                raise
        return self._unread.popleft()

    def cancel(self) -> None:
        """Take no further answer, and have the servers cancel their methods."""
        self.end("cancelled", Failure(CancelledError("the gather was cancelled")))

    # -- for the client ------------------------------------------------------------------------

    @property
    def answered(self) -> bool:
        """Whether an answer has arrived."""
        return bool(self._replies)

    def expect(self, hosts: Collection[str]) -> None:
        """Take what the registry knows."""
        self._expected = frozenset(hosts)
        self._end_if_complete()

    def receive(self, reply: Reply) -> bool:
        """Take an answer; return whether it is one more."""
        host = (reply.extra or {}).get("host")
        host = host if isinstance(host, str) and len(host) <= _MAX_HOST else None
        if not reply.final or host in self._answered or len(self._replies) >= MAX_REPLIES:
            return not reply.final
        if host is not None:
            self._answered.add(host)
        error = None if reply.failure is None else decode_error(reply.failure)
        if error is not None and self._failed is not None:
            self._failed(error)
        answer = HostReply(host, reply.result if error is None else None, error)
        self._replies.append(answer)
        self._unread.append(answer)
        self._arrivals.fire(None)
        self._end_if_complete()
        return True

    def end(self, outcome: str, failure: Failure | None = None) -> None:
        """End it, once.

        :param outcome: "replied", "timed_out", "cancelled", "unsent" or "unconfirmed".
        :param failure: what its iteration and :meth:`all` raise; None if they return what has arrived.
        """
        if self._ended:
            return
        self._ended, self._failure = outcome, failure
        self._stop(self, outcome)
        self._ends.fire(None)
        self._arrivals.fire(None)

    def _end_if_complete(self) -> None:
        if self._expected and self._expected <= self._answered:
            self.end("replied")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._failure.raiseException()


def failed(error: Exception) -> Gathering:
    """Return a gather that could not begin."""
    gathering = Gathering(lambda *_: None)
    gathering.end("unsent", Failure(error))
    return gathering
