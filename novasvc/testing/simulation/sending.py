"""What a process of a simulation sends: buffered while it has no connection, and confirmed by the broker."""

from collections import deque
from collections.abc import Callable
from functools import partial

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from novasvc.rpc.errors import TransportClosedError, TransportFullError, UnconfirmedError
from novasvc.testing.simulation.clock import ProcessClock
from novasvc.testing.simulation.link import Link
from novasvc.transport.buffering import WITHOUT_TTL, longest_wait
from novasvc.transport.errors import BrokerError, BrokerUnavailableError
from novasvc.transport.memory import QUEUE_BOUND

BROKER = "simulation:"
"""The broker's URL in errors."""

CONFIRM_TIMEOUT = 15.0
"""Seconds for a confirm, as the AMQP transport waits; then the connection is given up."""

_RESOLUTION = 0.001
"""Seconds; the difference of two times may be so small that the clock, a float, does not get past it."""

Put = Callable[[float | None], Deferred[None]]
"""Takes the seconds after which a message is void, or None, and gives the message to the broker."""


@attrs.define(eq=False)
class _Outgoing:
    name: str
    put: Put
    done: Deferred[None]
    expires_at: float | None
    sent_at: float = attrs.field(default=0.0, init=False)
    timer: IDelayedCall | None = attrs.field(default=None, init=False)


@attrs.define(eq=False)
class Sender:
    """Sends messages over a link, as the publisher of the AMQP transport does.

    :param refusal: asked for each message that arrives at the broker; returns why the broker refuses it, or None.
    """

    _link: Link
    _clock: ProcessClock
    _refusal: Callable[[], str | None]
    closed: bool = attrs.field(default=False, init=False)
    _buffer: deque[_Outgoing] = attrs.field(factory=deque, init=False)
    _unconfirmed: dict[_Outgoing, None] = attrs.field(factory=dict, init=False)
    _overdue: IDelayedCall | None = attrs.field(default=None, init=False)

    def send(self, name: str, put: Put, ttl: float | None, wait: float | None = None) -> Deferred[None]:
        """Send a message now, or when there is a connection.

        :param name: of the target, for errors.
        :param ttl: seconds after which the message is void; None is never.
        :param wait: seconds for which it may be buffered without a ttl; None is as the AMQP transport does it.
        :return: as :meth:`novasvc.interfaces.ITransport.send`.
        """
        if self.closed:
            return fail(TransportClosedError("sending"))
        if len(self._buffer) >= QUEUE_BOUND:
            return fail(TransportFullError(name, QUEUE_BOUND, "there is no connection"))
        expires_at = None if ttl is None else self._clock.seconds() + ttl
        message = _Outgoing(name, put, Deferred(lambda _: None), expires_at)
        if self._link.connected and not self._buffer:
            self._transmit(message)
        else:
            message.timer = self._clock.callLater(
                longest_wait(ttl, WITHOUT_TTL if wait is None else wait), self._expire, message
            )
            self._buffer.append(message)
        return message.done

    def _expire(self, message: _Outgoing) -> None:
        self._buffer.remove(message)
        if not message.done.called:
            message.done.errback(BrokerUnavailableError(BROKER, "the connection was lost; the message was not sent"))

    def _transmit(self, message: _Outgoing) -> None:
        now = self._clock.seconds()
        message.sent_at = now
        self._unconfirmed[message] = None
        self._link.to_broker("publish", partial(self._arrive, message))
        if self._overdue is None:
            self._overdue = self._clock.callLater(CONFIRM_TIMEOUT, self._check_confirms)

    def _arrive(self, message: _Outgoing) -> None:
        # From when it was sent, and not from now: see "Time in a queue" in the protocol.
        ttl = None if message.expires_at is None else message.expires_at - self._clock.seconds()
        refusal = self._refusal()
        if refusal is not None:
            outcome: list[object] = [Failure(BrokerError(BROKER, refusal))]
        else:
            outcome = []
            message.put(ttl).addBoth(outcome.append)  # the broker in memory answers at once
        self._link.to_process("confirm", partial(self._confirm, message, outcome[0]))

    def _confirm(self, message: _Outgoing, outcome: object) -> None:
        self._unconfirmed.pop(message, None)
        if message.done.called:
            return  # its sender has cancelled it
        if isinstance(outcome, Failure):
            message.done.errback(outcome)
        else:
            message.done.callback(None)

    def _check_confirms(self) -> None:
        self._overdue = None
        oldest = next(iter(self._unconfirmed), None)
        if oldest is None:
            return
        left = oldest.sent_at + CONFIRM_TIMEOUT - self._clock.seconds()
        if left < _RESOLUTION:
            self._link.cut()
        else:
            self._overdue = self._clock.callLater(left, self._check_confirms)

    def lost(self) -> None:
        """Fail what the broker has not confirmed. Called when the process has noticed that the connection is lost."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for message in unconfirmed:
            if not message.done.called:
                message.done.errback(UnconfirmedError(message.name, "the connection was lost"))

    def flush(self) -> None:
        """Send what is buffered. Called when there is a connection again."""
        buffered, self._buffer = self._buffer, deque()
        for message in buffered:
            if message.timer is not None and message.timer.active():
                message.timer.cancel()
            if not message.done.called:
                self._transmit(message)

    def close(self) -> None:
        """Fail what was not sent, or not confirmed."""
        self.closed = True
        waiting, self._buffer = [*self._buffer, *self._unconfirmed], deque()
        self._unconfirmed = {}
        for message in waiting:
            if message.timer is not None and message.timer.active():
                message.timer.cancel()
            if not message.done.called:
                message.done.errback(TransportClosedError("sending"))
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
