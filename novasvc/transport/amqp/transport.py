"""The transport of ``amqp:`` and ``rabbit:`` URLs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.config.transport_url import BrokerAddress
from novasvc.errors import SettingError, TransportClosedError, UnconfirmedError, UndeliverableError
from novasvc.interfaces import IListener, ITransport
from novasvc.reactor.backoff import RetryPolicy, jittered_backoff
from novasvc.rpc.target import Target
from novasvc.transport.amqp.connection import Connection, quick_backoff
from novasvc.transport.amqp.consumer import Consumers
from novasvc.transport.amqp.listener import Listener, Receiver
from novasvc.transport.amqp.options import BrokerOptions
from novasvc.transport.amqp.publisher import Message, Publisher
from novasvc.transport.amqp.replybox import ReplyBox
from novasvc.transport.amqp.tls import check_files
from novasvc.transport.amqp.topology import request_address

_log = Logger()

_REPLY_ATTEMPTS = 5
"""Attempts to reach a caller whose queue is not there: it may come back with its connection."""
_VANISHED_BOUND = 1000
"""Callers that we know to be gone, and replies that are tried again, at the most."""
_VANISHED_FOR = 60.0
"""Seconds for which a caller who was not there is tried once, and not again."""
_CALLERS_RETURN = 15.0
"""Seconds after our own return in which no caller is taken for gone: its connection may come back after ours."""
_REPLY_PATIENCE = 60.0
"""Seconds for which a reply is held while the broker cannot be reached: what a method did is not done again."""


@implementer(ITransport)
@attrs.define(eq=False)
class AMQPTransport:
    """RabbitMQ, as OpenStack's services use it; see ITransport and ``docs/protocol.md``.

    See Note [Two connections] in :mod:`novasvc.transport.amqp.publisher`.

    :param address: hosts, tried in turn, and who we are.
    :param reactor: connects, and measures time.
    :param exchange: the control exchange of targets that name none.
    :param options: how queues are declared, deadlines, heartbeat, TLS.
    :param name: what the broker's list of connections shows.
    :param retry: seconds to wait after the nth failed round of hosts.
    """

    _address: BrokerAddress
    _reactor: Any = attrs.field(kw_only=True)
    _exchange: str = attrs.field(default="nova", kw_only=True)
    _options: BrokerOptions = attrs.field(factory=BrokerOptions, kw_only=True)
    _name: str = attrs.field(default="novasvc", kw_only=True)
    _retry: RetryPolicy = attrs.field(factory=quick_backoff, kw_only=True)
    _publisher: Publisher = attrs.field(init=False)
    _consumers: Consumers = attrs.field(init=False)
    _connecting: list[Deferred[None]] | None = attrs.field(default=None, init=False)
    _listeners: list[Listener] = attrs.field(factory=list, init=False)
    _boxes: dict[str, ReplyBox] = attrs.field(factory=dict, init=False)
    _vanished: dict[str, float] = attrs.field(factory=dict, init=False)
    _retrying: set[Deferred[None]] = attrs.field(factory=set, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    unclaimed_replies: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._publisher = Publisher(self._exchange, self._options, self._reactor)
        self._publisher.connection = self._connection("publishing", self._publisher)
        self._consumers = Consumers(self._options, self._reactor)
        self._consumers.connection = self._connection("consuming", self._consumers)

    def _connection(self, name: str, user: Any) -> Connection:
        return Connection(
            name,
            self._address,
            self._options,
            self._reactor,
            user,
            client_name=f"{self._name} ({name})",
            retry=self._retry,
        )

    @property
    def connections(self) -> tuple[Connection, Connection]:
        """The connection that publishes and the one that consumes, whatever state they are in."""
        return self._publisher.connection, self._consumers.connection

    def open(self) -> Deferred[None]:
        """Connect for publishing; consuming connects with the first that listens; see ITransport.

        :raises SettingError: a file for TLS cannot be used.
        """
        try:
            check_files(self._address, self._options)
        except SettingError as error:
            return fail(error)
        return self._publisher.connection.open()

    def close(self) -> Deferred[None]:
        """Disconnect; see ITransport."""
        self._closed = True
        self._publisher.close()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        for again in list(self._retrying):
            again.cancel()
        closing = [listener.close() for listener in self._listeners]
        closing += [Deferred.fromCoroutine(box.close()) for box in self._boxes.values()]
        self._listeners, self._boxes = [], {}
        await DeferredList(closing, consumeErrors=True)  # side by side: a silent broker costs the time of one
        await DeferredList([connection.close() for connection in self.connections], consumeErrors=True)

    def problem(self) -> str | None:
        """Say what keeps messages from moving; see ITransport."""
        # The connection that consumes is idle until somebody listens.
        problems = [connection.trouble for connection in self.connections if connection.state != "idle"]
        return next((problem for problem in problems if problem is not None), None)

    # -- in ------------------------------------------------------------------------------------

    def listen(self, target: Target, receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("listening"))
        return self._listen(target, receiver, prefetch, alone=False)

    def consume(self, queue: str, receiver: Receiver, prefetch: int) -> Deferred[IListener]:
        """Consume from one queue; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("listening"))
        return self._listen(Target(queue), receiver, prefetch, alone=True)

    def _listen(self, target: Target, receiver: Receiver, prefetch: int, *, alone: bool) -> Deferred[IListener]:
        exchange = target.exchange or self._exchange
        listener = Listener(self._consumers, target, exchange, receiver, prefetch, self._publisher, alone=alone)
        return Deferred.fromCoroutine(self._begin(listener))

    async def _begin(self, listener: Listener) -> IListener:
        await self._connect()
        await self._consumers.add(listener)
        self._listeners = [*filter(self._consumers.keeps, self._listeners), listener]
        return listener

    def open_replies(self, receiver: Callable[[bytes], None]) -> Deferred[str]:
        """Receive replies; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("receiving replies"))
        return Deferred.fromCoroutine(self._open_replies(ReplyBox(self._consumers, receiver)))

    async def _open_replies(self, box: ReplyBox) -> str:
        await self._connect()
        await self._consumers.add(box)
        self._boxes[box.name] = box
        return box.name

    def close_replies(self, address: str) -> Deferred[None]:
        """Receive replies no longer; see ITransport."""
        box = self._boxes.pop(address, None)
        return succeed(None) if box is None else Deferred.fromCoroutine(box.close())

    def _connect(self) -> Deferred[None]:
        """Connect for consuming, once. Who waits may be cancelled; the connection is everybody's, and goes on."""
        if self._consumers.connection.state == "idle":
            self._connecting = []
            opening = self._consumers.connection.open()
            opening.addCallbacks(lambda _: self._connected(None), self._not_connected)
        if self._connecting is None:
            return succeed(None)
        waiter: Deferred[None] = Deferred(_let_go)
        self._connecting.append(waiter)
        if self._consumers.connection.state == "ready":
            self._connected(None)  # at once
        return waiter

    def _not_connected(self, failure: Failure) -> None:
        # The next that listens tries again, with a new one.
        self._consumers.connection = self._connection("consuming", self._consumers)
        self._connected(failure)

    def _connected(self, failure: Failure | None) -> None:
        waiters, self._connecting = self._connecting or [], None
        for waiter in waiters:
            if not waiter.called:
                # Each waiter gets a Failure of its own: handling one must not clean another's.
                waiter.callback(None if failure is None else Failure(failure.value))

    # -- out -----------------------------------------------------------------------------------

    def send(self, target: Target, body: bytes, ttl: float | None, mandatory: bool) -> Deferred[None]:  # noqa: FBT001 - the interface's signature
        """Send; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("sending"))
        if target.fanout:
            return self._publisher.fanout(target.topic, body, ttl, str(target))
        exchange = target.exchange or self._exchange
        address = request_address(target)
        return self._publisher.publish(Message(exchange, address, body, ttl, mandatory, str(target), request=True))

    def post(self, queue: str, body: bytes) -> Deferred[None]:
        """Put into a queue; see ITransport."""
        if self._closed:
            return fail(TransportClosedError("sending"))
        return Deferred.fromCoroutine(self._post(queue, body))

    async def _post(self, queue: str, body: bytes) -> None:
        def message() -> Message:
            return Message(self._exchange, queue, body, None, mandatory=True, target=queue)

        try:
            await self._publisher.publish(message())
        except UndeliverableError:
            # It is not there yet, or not any more.
            await self._publisher.add_queue(queue)
            await self._publisher.publish(message())

    def reply(self, address: str, body: bytes, patience: float | None = None) -> Deferred[None]:
        """Reply; see ITransport.

        A caller whose queue is not there is tried again a few times, and is then taken for gone: for a while
        its replies are sent once. When our own connection was lost, so was the caller's, and it has more time.
        """
        if self._closed:
            return fail(TransportClosedError("replying"))
        until = self._reactor.seconds() + (_REPLY_PATIENCE if patience is None else patience)
        done = self._reply(address, body, until)
        if address in self._vanished:
            done.addCallback(lambda _: self._vanished.pop(address, None) and None)
        done.addErrback(partial(self._reply_again, address, body, until, 1))
        return done

    def _reply(self, address: str, body: bytes, until: float) -> Deferred[None]:
        patience = max(0.0, until - self._reactor.seconds())
        message = Message("", address, body, None, mandatory=True, target=address, patience=patience)
        return self._publisher.publish(message)

    def _reply_again(self, address: str, body: bytes, until: float, attempt: int, failure: Failure) -> Any:
        if self._closed:
            return Failure(TransportClosedError("replying")) if failure.check(CancelledError) else failure
        failure.trap(UndeliverableError, UnconfirmedError)
        known = failure.check(UndeliverableError) and self._is_gone(address)
        pause = _reply_backoff(attempt)
        late = self._reactor.seconds() + pause >= until  # its caller waits no longer by then
        returning = failure.check(UndeliverableError) and self._publisher.is_back_for < _CALLERS_RETURN
        given_up = late or (not returning and (known or attempt >= _REPLY_ATTEMPTS))
        if given_up or len(self._retrying) >= _VANISHED_BOUND:
            if failure.check(UnconfirmedError):
                return failure
            self.unclaimed_replies += 1
            if not late and not self._is_gone(address):
                self._mark_gone(address)
                _log.info("a caller is gone, replies to {address} are dropped", address=address)
            return None
        again: Deferred[None] = deferLater(self._reactor, pause)
        again.addCallback(lambda _: self._reply(address, body, until))
        again.addErrback(partial(self._reply_again, address, body, until, attempt + 1))
        self._retrying.add(again)
        again.addBoth(self._retried, again)
        return again

    def _retried(self, result: Any, again: Deferred[None]) -> Any:
        self._retrying.discard(again)
        return result

    def _is_gone(self, address: str) -> bool:
        since = self._vanished.get(address)
        return since is not None and self._reactor.seconds() - since < _VANISHED_FOR

    def _mark_gone(self, address: str) -> None:
        self._vanished.pop(address, None)
        self._vanished[address] = self._reactor.seconds()
        if len(self._vanished) > _VANISHED_BOUND:
            del self._vanished[next(iter(self._vanished))]


_reply_backoff = jittered_backoff(first=0.25, longest=2.0)


def _let_go(waiter: Deferred[None]) -> None:
    """Let a cancelled Deferred fail by itself; what it waited for still comes, and is passed over."""
