"""Messages held until the broker takes them: within bounds, each with a deadline, in order."""

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

if TYPE_CHECKING:
    from novasvc.transport.amqp.publisher import Message

BACKLOG_MESSAGES = 10_000
BACKLOG_BYTES = 64 * 2**20
"""Bounds on the messages held while the broker is unreachable or applies back-pressure."""
_TTL_FRACTION = 0.95
"""Fraction of a message's TTL for which it is held, so that the sender gets the reason before its own timeout."""


@attrs.define(eq=False)
class HeldMessage:
    """A message that cannot be sent yet.

    :param send: sends it.
    :param timer: gives it up when it has waited too long.
    """

    send: Callable[[], None]
    message: "Message"
    timer: IDelayedCall = attrs.field(init=False)


@attrs.define(eq=False)
class Backlog:
    """The messages of one publisher that wait: for the connection, or for a pause to end.

    :param clock: measures waits and pauses.
    :param max_wait: seconds for which a message without a TTL or a patience of its own is held.
    :param expired: called with a message that was held for too long.
    :ivar held: the messages that wait for the connection, in order.
    """

    _clock: IReactorTime
    _max_wait: float
    _expired: Callable[["Message"], None]
    held: dict[HeldMessage, None] = attrs.field(factory=dict, init=False)
    _delayed: dict["Message", IDelayedCall] = attrs.field(factory=dict, init=False)
    _bytes: int = attrs.field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.held) + len(self._delayed)

    def has_room(self, message: "Message") -> bool:
        """Return whether one more message stays within the bounds."""
        return len(self) < BACKLOG_MESSAGES and self._bytes + len(message.body) <= BACKLOG_BYTES

    def hold(self, message: "Message", send: Callable[[], None]) -> None:
        """Append a message.

        :param send: called by :meth:`send_held`.
        """
        wait = self._max_wait if message.patience is None else message.patience
        if message.expires_at is not None and message.expires_at < inf:
            wait = max(0.0, message.expires_at - self._clock.seconds()) * _TTL_FRACTION
        held = HeldMessage(send, message)
        held.timer = self._clock.callLater(wait, self._expire, held)
        self.held[held] = None
        self._bytes += len(message.body)

    def _expire(self, held: HeldMessage) -> None:
        self.remove(held)
        self._expired(held.message)

    def remove(self, held: HeldMessage) -> None:
        """Remove a message; the caller fails it."""
        del self.held[held]
        self._bytes -= len(held.message.body)
        if held.timer.active():
            held.timer.cancel()

    def delay(self, message: "Message", pause: float, send: Callable[[], None]) -> None:
        """Keep a message for a pause in seconds, and send it then. It counts toward the bounds."""
        self._bytes += len(message.body)
        self._delayed[message] = self._clock.callLater(pause, self._pause_over, message, send)

    def _pause_over(self, message: "Message", send: Callable[[], None]) -> None:
        del self._delayed[message]
        self._bytes -= len(message.body)
        send()

    def send_held(self, can_send: Callable[[], bool]) -> None:
        """Send the held messages in order, as long as possible.

        :param can_send: asked before each of them.
        """
        held, self.held = self.held, {}
        waiting = list(held)
        for number, one in enumerate(waiting):
            if not can_send():
                # Back-pressure again: the rest keeps its place before the messages held meanwhile.
                self.held = {**dict.fromkeys(waiting[number:]), **self.held}
                return
            self._bytes -= len(one.message.body)
            one.timer.cancel()
            if not one.message.done.called:
                one.send()

    def clear(self) -> list["Message"]:
        """Remove all messages and return them; the caller fails them."""
        waiting = [held.message for held in self.held] + list(self._delayed)
        for held in list(self.held):
            self.remove(held)
        for message, pause in self._delayed.items():
            pause.cancel()
            self._bytes -= len(message.body)
        self._delayed = {}
        return waiting
