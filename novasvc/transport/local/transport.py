"""ITransport between the processes of one user on one host."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.interfaces import IDelivery, IListener, ITransport
from novasvc.rpc.errors import TransportClosedError, TransportFullError, UndeliverableError
from novasvc.rpc.target import Target
from novasvc.transport.buffering import longest_wait
from novasvc.transport.errors import ServiceRestartingError
from novasvc.transport.local.restarts import restarting
from novasvc.transport.local.sockets import HostSockets
from novasvc.transport.memory import MemoryTransport

# Note [Messages between processes]
#
# A request goes to a queue of this process if a server here consumes from it, as it always did in memory, at no further
# cost. Otherwise it goes to a process that has told that it has a server for the target, the one that was used longest
# ago first. Others are connected to in the background then, so a process that hangs holds up only those whose target no
# connected process serves. A fanout goes to all that have a server, and waits once for a process that hangs. The
# connection to that process is kept, so that from the moment it goes on it misses nothing.
#
# A client names its reply addresses to each process that it connects to, and gets its replies over the connection. No
# address of a socket is on the wire, so a process that only calls, such as the command, needs no socket of its own.
#
# The socket's name is never used twice. So a socket that refuses connections belonged to a process that was killed, and
# whoever finds it may remove it.

RESTART = 10.0
"""Seconds that a request waits for a server whose node restarts because its code has changed."""

_INTERVAL = 0.1
"""Seconds between two looks for the server."""


@implementer(ITransport)
@attrs.define(eq=False)
class LocalTransport:
    """ITransport in memory, which also reaches the other processes of this user on this host.

    :param sockets: shared by the transports of this process.
    :param exchange: the control exchange of targets that name none.
    """

    _sockets: HostSockets
    _exchange: str = attrs.field(default="nova", kw_only=True)
    _memory: MemoryTransport = attrs.field(init=False)
    _addresses: set[str] = attrs.field(factory=set, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        sockets = self._sockets
        self._memory = MemoryTransport(sockets.broker, clock=sockets.reactor, exchange=self._exchange)
        sockets.acquire()

    def open(self) -> Deferred[None]:
        """Do nothing: the first server opens the socket; see ITransport."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """Close the transport; the last one of a process closes its sockets. See ITransport."""
        if self._closed:
            return succeed(None)
        self._closed = True
        for address in self._addresses:
            self._sockets.others.close_replies(address)
        self._memory.close()  # at once
        return self._sockets.release()

    def problem(self) -> str | None:
        """Return what keeps messages from moving, or None; see ITransport."""
        return self._memory.problem()

    def listen(self, target: Target, receiver: Callable[[IDelivery], None], prefetch: int) -> Deferred[IListener]:
        """Consume a target's messages, from all processes; see ITransport."""
        if not self._closed:
            self._sockets.listen()
        return self._memory.listen(target, receiver, prefetch)

    def consume(self, queue: str, receiver: Callable[[IDelivery], None], prefetch: int) -> Deferred[IListener]:
        """Consume from one queue of this process only; see ITransport."""
        return self._memory.consume(queue, receiver, prefetch)

    def subscribe(
        self, queue: str, keys: Sequence[str], receiver: Callable[[IDelivery], None], prefetch: int
    ) -> Deferred[IListener]:
        """Consume from a queue that gets a copy of what any process publishes to the keys; see ITransport."""
        if not self._closed:
            self._sockets.listen()
        return self._memory.subscribe(queue, keys, receiver, prefetch)

    def publish(self, key: str, body: bytes) -> Deferred[None]:
        """Send a message to each subscribed queue, in one process that consumes from it; see ITransport."""
        return self._memory.publish(key, body) if self._closed else Deferred.fromCoroutine(self._publish(key, body))

    async def _publish(self, key: str, body: bytes) -> None:
        own = self._sockets.broker.bound_queues(self._exchange, key)
        others = await self._sockets.others.all()
        foreign = [name for connection in others for name in connection.bound_queues(self._exchange, key)]
        names = dict.fromkeys([*own, *foreign])
        if not names:
            raise UndeliverableError(key)
        # A queue of this process whose consumers have stopped keeps its copy here: they may come back.
        sending = [self.send(Target(name), body, None, name not in own) for name in names]
        results: list[tuple[bool, Any]] = await DeferredList(sending, consumeErrors=True)
        for success, failure in results:
            if not success:
                failure.raiseException()

    def post(self, queue: str, body: bytes) -> Deferred[None]:
        """Append a message to a queue of this process; see ITransport."""
        return self._memory.post(queue, body)

    def send(self, target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Deferred[None]:  # noqa: FBT001 - the interface's
        """Send a request to a server of this process, or of another one; see ITransport."""
        if self._closed or (not target.fanout and self._memory.has_consumer(target)):
            return self._memory.send(target, body, ttl, mandatory)
        send = self._send_to_all if target.fanout else self._send_to_one
        return Deferred.fromCoroutine(send(target, body, ttl, mandatory=mandatory))

    async def _send_to_one(self, target: Target, body: bytes, ttl: float | None, *, mandatory: bool) -> None:
        clock: Any = self._sockets.reactor
        began = clock.seconds()
        longest = min(RESTART, longest_wait(ttl, RESTART))
        expires_at = None if ttl is None else began + ttl
        while not await self._sent_to_other(target, body, expires_at):
            node = restarting(self._sockets.directory, target)
            if node is None:
                await self._memory.send(target, body, self._left(expires_at), mandatory)
                return
            waited = clock.seconds() - began
            if node.ended or waited >= longest:
                raise ServiceRestartingError(str(target), node.pid, round(waited, 1), node.ended)
            await deferLater(clock, min(_INTERVAL, longest - waited))
            if self._closed:
                raise TransportClosedError("sending")

    def _left(self, expires_at: float | None) -> float | None:
        return None if expires_at is None else max(0.0, expires_at - self._sockets.reactor.seconds())

    async def _sent_to_other(self, target: Target, body: bytes, expires_at: float | None) -> bool:
        """Send a request to another process that has a server for it; return False if there is none.

        :param expires_at: seconds on the clock. A request that has expired counts as sent: a queue would drop it.
        :raises TransportFullError: none of them takes it.
        """
        others, full = self._sockets.others, None
        for connection in await others.serving(target, self._exchange):
            left = self._left(expires_at)
            if left == 0:
                return True
            try:
                await connection.send(target, self._exchange, body, left)
            except UndeliverableError:
                continue
            except TransportFullError as error:
                full = error
                continue
            others.used(connection)
            return True
        if full is not None:
            raise full
        return False

    async def _send_to_all(self, target: Target, body: bytes, ttl: float | None, *, mandatory: bool) -> None:
        expires_at = None if ttl is None else self._sockets.reactor.seconds() + ttl
        others = await self._sockets.others.serving(target, self._exchange)
        left = self._left(expires_at)
        sending = [self._memory.send(target, body, left, mandatory=True)]
        sending += [connection.send(target, self._exchange, body, left) for connection in others]
        results: list[tuple[bool, Any]] = await DeferredList(sending, consumeErrors=True)
        failures: list[Failure] = [result for success, result in results if not success]
        other = next((failure for failure in failures if not failure.check(UndeliverableError)), None)
        if other is not None:
            other.raiseException()
        if mandatory and len(failures) == len(results):
            raise UndeliverableError(str(target))

    def open_replies(self, receiver: Callable[[bytes], None]) -> Deferred[str]:
        """Create a reply address, for replies of all processes; see ITransport."""
        opening = self._memory.open_replies(receiver)

        def announce(address: str) -> str:
            self._addresses.add(address)
            self._sockets.others.open_replies(address)
            return address

        return opening.addCallback(announce)

    def close_replies(self, address: str) -> Deferred[None]:
        """Delete a reply address; see ITransport."""
        if address in self._addresses:
            self._addresses.discard(address)
            self._sockets.others.close_replies(address)
        return self._memory.close_replies(address)

    def reply(self, address: str, body: bytes, timeout: float | None = None) -> Deferred[None]:
        """Send a reply; see ITransport."""
        return self._memory.reply(address, body, timeout)
