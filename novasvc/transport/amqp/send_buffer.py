"""Send buffer: messages that wait for the broker, bounded, ordered, each with a deadline."""

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.transport.buffering import longest_wait

if TYPE_CHECKING:
    from novasvc.transport.amqp.publisher import Message

MAX_MESSAGES = 10_000
MAX_BYTES = 64 * 2**20
"""Bounds on the messages buffered while the broker is unreachable or applies back-pressure."""


@attrs.define(eq=False)
class BufferedMessage:
    """A message that cannot be sent yet.

    :param send: sends it.
    :param timer: expires it.
    """

    send: Callable[[], None]
    message: "Message"
    timer: IDelayedCall = attrs.field(init=False)


@attrs.define(eq=False)
class SendBuffer:
    """The messages of one publisher that wait: for the connection, for a declaration, or for a pause to end.

    :param clock: measures waits and pauses.
    :param max_wait: seconds for which a message is buffered that has neither a TTL nor a max_wait of its own.
    :param expired: called with a message that was buffered for too long.
    :ivar buffered: the messages that wait for the connection, in order.
    """

    _clock: IReactorTime
    _max_wait: float
    _expired: Callable[["Message"], None]
    buffered: dict[BufferedMessage, None] = attrs.field(factory=dict, init=False)
    _held: dict["Message", IDelayedCall] = attrs.field(factory=dict, init=False)
    _bytes: int = attrs.field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.buffered) + len(self._held)

    def has_room(self, message: "Message") -> bool:
        """Return whether one more message stays within the bounds."""
        return len(self) < MAX_MESSAGES and self._bytes + len(message.body) <= MAX_BYTES

    def add(self, message: "Message", send: Callable[[], None]) -> None:
        """Append a message.

        :param send: called by :meth:`send_buffered`.
        """
        buffered = BufferedMessage(send, message)
        buffered.timer = self._clock.callLater(self._longest_wait(message), self._expire, buffered)
        self.buffered[buffered] = None
        self._bytes += len(message.body)

    def _longest_wait(self, message: "Message") -> float:
        expires_at = message.expires_at
        ttl = None if expires_at is None or expires_at == inf else expires_at - self._clock.seconds()
        return longest_wait(ttl, self._max_wait if message.max_wait is None else message.max_wait)

    def _expire(self, buffered: BufferedMessage) -> None:
        self.remove(buffered)
        self._expired(buffered.message)

    def remove(self, buffered: BufferedMessage) -> None:
        """Remove a message; the caller fails it."""
        del self.buffered[buffered]
        self._bytes -= len(buffered.message.body)
        if buffered.timer.active():
            buffered.timer.cancel()

    def hold(self, message: "Message", stop_waiting: Callable[[], object]) -> None:
        """Count a message that waits for a declaration toward the bounds until :meth:`release`, and expire it.

        :param stop_waiting: called when it has expired.
        """

        def expire() -> None:
            self._expired(message)
            stop_waiting()

        self._hold(message, self._longest_wait(message), expire)

    def delay(self, message: "Message", pause: float, send: Callable[[], None]) -> None:
        """Keep a message for a pause in seconds, and send it then. It counts toward the bounds."""
        self._hold(message, pause, send)

    def _hold(self, message: "Message", seconds: float, then: Callable[[], None]) -> None:
        self._bytes += len(message.body)
        self._held[message] = self._clock.callLater(seconds, self._over, message, then)

    def _over(self, message: "Message", then: Callable[[], None]) -> None:
        self.release(message)
        then()

    def release(self, message: "Message") -> None:
        """Count a message no longer that was held; it does nothing if the message has expired."""
        timer = self._held.pop(message, None)
        if timer is not None:
            self._bytes -= len(message.body)
            if timer.active():
                timer.cancel()

    def send_buffered(self, can_send: Callable[[], bool]) -> None:
        """Send the buffered messages in order, while can_send() is true.

        :param can_send: asked before each of them.
        """
        waiting, self.buffered = list(self.buffered), {}
        for number, buffered in enumerate(waiting):
            if not can_send():
                # Back-pressure again: the rest keeps its place before the messages buffered meanwhile.
                self.buffered = {**dict.fromkeys(waiting[number:]), **self.buffered}
                return
            self._bytes -= len(buffered.message.body)
            buffered.timer.cancel()
            if not buffered.message.done.called:
                buffered.send()

    def clear(self) -> list["Message"]:
        """Remove all messages and return them; the caller fails them."""
        waiting = [buffered.message for buffered in self.buffered] + list(self._held)
        for buffered in list(self.buffered):
            self.remove(buffered)
        for message in list(self._held):
            self.release(message)
        return waiting
