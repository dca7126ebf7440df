"""What a client has to do in time: send its requests, and read the responses."""

# Note [Slow clients]
#
# A client that sends a byte now and then never runs into an idle timeout, and a few thousand of those exhaust a server
# (slowloris). So a request's head must be complete within a fixed time, however it arrives, and a body must arrive at a
# minimum rate. A timer per request, started and cancelled each time, would cost more than parsing the request: a
# channel only records its deadline, and its site checks the deadlines of all channels once a second.
#
# The same holds for reading: a client that takes a byte now and then would keep its response in memory, and the thread
# that makes it. So the data waiting to be sent has to shrink at a minimum rate, too. And a client that pipelines
# requests without reading the responses is not read from any more.

from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from novasvc._compat import buffered_octets
from novasvc.http.limits import Limits

_LINGER = 2.0
"""Seconds for which input is discarded after an error response: closed at once, the client might not see it."""
_CLOSE_NOTIFY = 1.0
"""Seconds in which a client has to answer our TLS close_notify."""
_CLOSING = 60.0
"""Seconds in which a client has to read the rest of a response, where the amount of it is unknown."""


class Overdue(Enum):
    """What a client has not done in time."""

    INPUT = auto()
    """It has not sent a head, the next part of a body, or another request."""
    READING = auto()
    """It does not read its response."""
    CLOSE = auto()
    """It has not read the rest of its last response, or has not closed the connection after it."""


class Deadlines:
    """The deadlines of one connection, in seconds on a clock. See Note [Slow clients].

    :param clock: returns seconds.
    :param secure: whether the connection uses TLS.
    :ivar input_due: when the input that the channel waits for has to be there; None if it does not wait for any. The
        channel sets it.
    """

    def __init__(self, transport: Any, limits: Limits, clock: Callable[[], float], *, secure: bool) -> None:
        self.input_due: float | None = None
        self._reading_due: float | None = None
        self._close_due: float | None = None
        self._transport = transport
        self._limits = limits
        self._clock = clock
        self._secure = secure
        self._queue = _SendQueue(transport, limits, clock)

    def expect_reading(self) -> None:
        """Have the client read: data waits to be sent to it."""
        if self._limits.idle_timeout:
            self._reading_due = self._queue.due(self._limits.idle_timeout)

    def reading_done(self) -> None:
        """Wait for the client's reading no more: no data waits to be sent."""
        self._reading_due = None

    def expect_close(self) -> None:
        """Have the client read the rest, and close the connection."""
        self.input_due = None
        self._close_due = self._queue.due(_CLOSING)

    def expect_linger(self) -> None:
        """Have the client read an error response, and stop sending."""
        self.input_due = None
        self._close_due = self._clock() + _LINGER

    def clear(self) -> None:
        """Wait for nothing: the connection is closed."""
        self.input_due = self._reading_due = self._close_due = None

    def check(self, now: float) -> Overdue | None:
        """Return what the client has not done in time, or None. An input deadline is reported once."""
        close_due = self._close_due
        if close_due is not None and self._secure and buffered_octets(self._transport) == 0:
            # All is sent, close_notify included. The TLS layer waits for the client's, which a client may leave out
            # (RFC 5246, 7.2.1; RFC 8446, 6.1).
            self._close_due = close_due = min(close_due, now + _CLOSE_NOTIFY)
        if self._reading_due is not None and now >= self._reading_due:
            if not self._queue.is_shrinking():
                return Overdue.READING
            self._reading_due = self._queue.due(self._limits.idle_timeout)
        elif close_due is not None and now >= close_due:
            if not self._queue.is_shrinking():
                return Overdue.CLOSE
            self._close_due = self._queue.due(_CLOSING)
        elif self.input_due is not None and now >= self.input_due:
            self.input_due = None
            return Overdue.INPUT
        return None


class _SendQueue:
    """The data that waits to be sent to a client, and whether it shrinks."""

    def __init__(self, transport: Any, limits: Limits, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._limits = limits
        self._clock = clock
        self._octets: int | None = None

    def due(self, otherwise: float) -> float:
        """Measure the queue, and return the time at which it is to be measured again.

        :param otherwise: seconds from now, if the transport does not tell the length of the queue.
        """
        self._octets = buffered_octets(self._transport)
        limits = self._limits
        seconds = otherwise if self._octets is None else limits.body_timeout
        return self._clock() + (min(seconds, limits.idle_timeout) if limits.idle_timeout else seconds)

    def is_shrinking(self) -> bool:
        """Return whether the client has read at the minimum rate, that of request bodies, since due() was called."""
        before, now = self._octets, buffered_octets(self._transport)
        if before is None or now is None:
            return False
        limits = self._limits
        seconds = min(limits.body_timeout, limits.idle_timeout) if limits.idle_timeout else limits.body_timeout
        return bool(before - now >= seconds * limits.body_rate)
