"""How a connection ends (RFC 9112, 9.6): after the last response, after an error, when the client is late or gone."""

from typing import Any

from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IDelayedCall, ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from novasvc.http.deadlines import Deadlines, Overdue
from novasvc.http.peer import has_arrived, is_gone, probe

_log = Logger()

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""An interim response: asks for the body, or finds out whether a half-closed client is still there."""
LAST_REQUEST = 1.0
"""Seconds in which a client may still send a request on a connection that was idle when the server began to drain."""
_HALF_CLOSE_PROBE = 2.0
"""Seconds after which a half-closed client is sent an interim response, to find out whether it is still there."""


class TeardownChannel(HTTPChannel):
    """The part of a channel that ends its connection. Subclasses parse the input, and have requests answered.

    :param site: has the limits, and checks the deadlines of its channels.
    """

    transport: Any
    secure: bool
    _deadlines: Deadlines

    def __init__(self, site: Any) -> None:
        super().__init__()
        self.site = self.factory = site
        self._limits = site.limits
        self.write_blocked = False
        """Whether the client reads more slowly than the response is produced."""
        self._closing = False  # the connection ends, and its input does not matter any more
        self._input_ended = False  # the client has closed its sending side
        self._draining = False
        self._clock = site.reactor.seconds
        self._grace: IDelayedCall | None = None
        self._resetting = False
        self._probe_at: float | None = None

    # -- for subclasses --------------------------------------------------------------------------

    def discard_input(self) -> None:
        """Discard the input that was not parsed, and all that follows."""
        raise NotImplementedError

    def input_overdue(self) -> None:
        """Respond to a client that has not sent in time what the channel waits for."""
        raise NotImplementedError

    def note_end_of_input(self) -> None:
        """Begin to find out whether a half-closed client is still there. See Note [Half-closed clients] in peer.py."""
        self._input_ended = True
        self._probe_at = self._clock() + _HALF_CLOSE_PROBE
        probe(self.transport)

    # -- the connection --------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Have the site check the deadlines."""
        super().connectionMade()
        self.secure = ISSLTransport(self.transport, None) is not None
        self._deadlines = Deadlines(self.transport, self._limits, self._clock, secure=self.secure)
        self.site.add_channel(self)

    def isSecure(self) -> bool:  # noqa: N802 - twisted.web's name
        """Return whether the connection uses TLS."""
        return self.secure

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's default is for tests
        """Cancel the requests in progress."""
        self.site.remove_channel(self)
        if self.secure and not reason.check(ConnectionClosed):
            self.site.tls_failures.add(self.transport.getPeer(), reason)
        self._closing = True
        self._deadlines.clear()
        self.discard_input()
        if self._grace is not None and self._grace.active():
            self._grace.cancel()
        for request in self.requests:
            request.connectionLost(reason)

    def writeConnectionLost(self) -> None:
        """Do nothing: after an error response the client may go on sending, see linger()."""

    def pauseProducing(self) -> None:
        """Pause the response: the transport's buffer is full."""
        self.write_blocked = True
        self._deadlines.expect_reading()
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """Resume the response: the transport's buffer is empty."""
        self.write_blocked = False
        self._deadlines.reading_done()
        super().resumeProducing()

    # -- ways to end it --------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no more requests than the one in progress, or one that arrives within LAST_REQUEST."""
        self._draining = True
        self.persistent = False
        if not self.requests:
            self._grace = self.site.reactor.callLater(LAST_REQUEST, self._close_idle)

    def _close_idle(self) -> None:
        if not self.requests:
            self.loseConnection()

    def loseConnection(self) -> None:
        """Close when all data is sent."""
        self._closing = True
        self.discard_input()
        self._deadlines.expect_close()
        super().loseConnection()

    def linger(self) -> None:
        """Close once the client has seen the response (RFC 9112, 9.6).

        If a socket is closed while it has unread input, the kernel sends a reset, and the client's kernel may drop the
        response. So only our direction is closed, and input is discarded for a while.
        """
        if self.secure or self._input_ended or not hasattr(self.transport, "loseWriteConnection"):
            self.loseConnection()
            return
        self._closing = True
        self.discard_input()
        self._deadlines.expect_linger()
        self.transport.loseWriteConnection()

    def close_incomplete(self, *, delimited: bool) -> None:
        """Close after a response that was cut short, so that the client can tell it from a complete one.

        The request gets connectionLost().

        :param delimited: the response has a Content-Length or is chunked, so that a close before its end shows that it
            is incomplete. Where the close itself is its end, only a reset shows that (RFC 9112, 8).
        """
        if delimited:
            self.loseConnection()
            return
        self.unregisterProducer()
        # A reset discards what the client has not acknowledged: check_deadlines() waits for that first.
        self._closing = self._resetting = True
        self.discard_input()
        self._deadlines.expect_close()

    def abortConnection(self) -> None:
        """Close at once, and discard unsent data."""
        self._closing = True
        self._deadlines.clear()
        self.transport.abortConnection()

    # -- clients that are late or gone -----------------------------------------------------------

    def check_deadlines(self, now: float) -> None:
        """Act on a client that is late, or has gone. Called once a second by the site."""
        if self._resetting and has_arrived(self.transport):
            self.abortConnection()
            return
        if self._input_ended and self.requests and not self._closing:
            self._check_half_closed(now)
        overdue = self._deadlines.check(now)
        if overdue is Overdue.INPUT:
            self.input_overdue()
        elif overdue is not None:
            if overdue is Overdue.READING:
                peer = self.transport.getPeer()
                _log.info("closing the connection from {peer}: it does not read its response", peer=peer)
            self.abortConnection()

    def _check_half_closed(self, now: float) -> None:
        """Find out whether a half-closed client is still there. See Note [Half-closed clients] in peer.py."""
        if is_gone(self.transport):
            self.abortConnection()
        elif self._probe_at is not None and now >= self._probe_at:
            self._probe_at = None
            request = self.requests[0]
            # HTTP/1.0 has no interim responses, and none may follow the begin of the final one (RFC 9110, 15.2).
            if request.head.version == b"HTTP/1.1" and not request.startedWriting:
                self.transport.write(CONTINUE)
