"""A connection to the control socket: commands in, answers out, one line of JSON each."""

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from novasvc.errors import NovasvcError, describe
from novasvc.interfaces import ISupervisor
from novasvc.workers.control.commands import Command, RequestError, UnfinishedError

_log = Logger()

MAX_REQUEST_LENGTH = 64 * 1024
"""Bytes per request."""

IDLE_TIMEOUT = 60.0
"""Seconds without a request after which a connection is closed."""


@implementer(IHalfCloseableProtocol)
class ControlConnection(LineReceiver, TimeoutMixin):
    """Runs one command at a time.

    Reading is paused while a command runs or answers are unread: so memory per connection is bounded,
    and a running command occupies its connection even if the client has gone.

    :param supervisor: executes the commands.
    :param peer: the client's uid and pid, for the log.
    :param connections: the set of open connections, to which this one belongs while it is open.
    :param reactor: provides IReactorTime.
    """

    delimiter = b"\n"
    MAX_LENGTH = MAX_REQUEST_LENGTH
    transport: Any

    def __init__(self, supervisor: ISupervisor, peer: str, connections: "set[ControlConnection]", reactor: Any) -> None:
        self.closed: Deferred[None] = Deferred()
        self._supervisor = supervisor
        self._peer = peer
        self._connections = connections
        self._reactor = reactor
        self._running: Command | None = None
        self._write_paused = False
        self._open = False

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """Schedule TimeoutMixin's timeout on the reactor of the constructor."""
        delayed: IDelayedCall = self._reactor.callLater(period, func)
        return delayed

    def connectionMade(self) -> None:
        """Wait for the first request."""
        self._open = True
        self._connections.add(self)
        self.transport.registerProducer(self, True)
        self.setTimeout(IDLE_TIMEOUT)

    def lineReceived(self, line: bytes) -> None:
        """Parse and run a command."""
        try:
            request = self._running = Command.parse(line)
        except RequestError as error:
            self.sendLine(error_line(error))
            self.resetTimeout()
            return
        super().pauseProducing()
        self.setTimeout(None)
        answering = Deferred.fromCoroutine(answer(self._supervisor, request, self._peer))
        answering.addCallback(self._answered, request)
        answering.addErrback(lambda failure: _log.failure("could not answer a control command", failure))

    def lineLengthExceeded(self, line: bytes) -> None:
        """Reject and close: the start of the next request cannot be found."""
        self.sendLine(error_line(RequestError("the request is too long", f"the maximum is {MAX_REQUEST_LENGTH} bytes")))
        self._close()

    def _answered(self, line: bytes, request: Command) -> None:
        self._running = None
        if not self._open:
            return
        self.sendLine(line)
        if not request.drains_all:
            # After a drain of everything, the close of the connection tells the client that it is done: no timeout.
            self.setTimeout(IDLE_TIMEOUT)
        self._resume_reading()

    def pauseProducing(self) -> None:
        """Stop reading: the client does not read its answers."""
        self._write_paused = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """Resume reading: the answers have been written."""
        self._write_paused = False
        self._resume_reading()

    def _resume_reading(self) -> None:
        if self._open and self._running is None and not self._write_paused:
            super().resumeProducing()

    def readConnectionLost(self) -> None:
        """Close after the last answer: a half-closed client, such as a shell pipe, still reads."""
        self._close()

    def writeConnectionLost(self) -> None:
        """Abort: the client does not read any more."""
        self.abort()

    def timeoutConnection(self) -> None:
        """Abort: no command in time, or an answer that was not read."""
        self.abort()

    def finish(self) -> None:
        """Answer a running command as unfinished, and close."""
        if self._running is not None:
            self.sendLine(error_line(UnfinishedError(str(self._running))))
        self._close()

    def _close(self) -> None:
        self._open = False
        # loseConnection waits for a registered producer.
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close now, and drop unsent answers."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Leave the set of connections; a running command continues."""
        self._open = False
        self.setTimeout(None)
        self._connections.discard(self)
        self.closed.callback(None)


async def answer(supervisor: ISupervisor, request: Command, peer: str) -> bytes:
    """Execute a command, and return the answer line; never raises.

    :param peer: the client, for the log.
    """
    if request.changes:
        _log.info("{request} requested by {peer}", request=str(request), peer=peer)
    try:
        return json.dumps({"result": await request.execute(supervisor)}).encode()
    except NovasvcError as error:
        _log.info("{request} rejected: {error}", request=str(request), error=str(error))
        return error_line(error)
    except Exception as error:  # noqa: BLE001 - a failing command must not end the supervisor
        _log.failure("{request} failed", request=str(request))
        return error_line(error)


def error_line(error: Exception) -> bytes:
    """Return the answer line for an error."""
    text = str(error) if isinstance(error, NovasvcError) else f"this is a bug, please report it: {describe(error)}"
    return json.dumps({"error": {"type": type(error).__name__, "message": text}}).encode()
