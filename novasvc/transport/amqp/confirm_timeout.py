"""The timeout of publisher confirms."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.connection import Connection

if TYPE_CHECKING:
    from novasvc.transport.amqp.publisher import ConfirmChannel

_SHORTEST_CHECK = 1.0
"""Shortest interval, in seconds, between two checks for overdue confirms."""


@attrs.define(eq=False)
class ConfirmTimeout:
    """Checks for overdue confirms while there are unconfirmed messages: one timer for all of them.

    A broker that reads and does not confirm within the timeout is taken for dead: the connection is ended. A blocked
    broker keeps its connection, and only the overdue messages fail. When it unblocks it begins to read, so the timeout
    of the others begins again.

    :param timeout: seconds.
    :param channels: returns the publisher's channels.
    :ivar timer: the next check; None if there is nothing to check.
    """

    _clock: IReactorTime
    _timeout: float
    _connection: Connection
    _channels: "Callable[[], Iterable[ConfirmChannel]]"
    timer: IDelayedCall | None = attrs.field(default=None, init=False)

    def start(self) -> None:
        """Schedule a check, unless there is one. Called when a message was published."""
        if self.timer is None:
            self.timer = self._clock.callLater(self._timeout, self._check)

    def stop(self) -> None:
        """Check no more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _check(self) -> None:
        self.timer = None
        channels = [confirming for confirming in self._channels() if confirming]
        oldest = min((sent for confirming in channels if (sent := confirming.oldest()) is not None), default=None)
        if oldest is None:
            return
        now, connection = self._clock.seconds(), self._connection
        blocked = connection.state == "blocked"
        waited = now - (oldest if blocked else max(oldest, connection.unblocked_at))
        if waited >= self._timeout:
            if blocked:
                # A blocked broker reads from no publishing connection, so a new one would not help.
                for confirming in channels:
                    confirming.fail_overdue(now - self._timeout, connection.blocked_by)
            elif connection.protocol is not None:
                connection.protocol.end(AMQPClosedError(f"a message was not confirmed within {waited:.0f} s"))
                return
        self.timer = self._clock.callLater(max(self._timeout - waited, _SHORTEST_CHECK), self._check)
