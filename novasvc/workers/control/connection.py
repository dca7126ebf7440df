"""One connection to a supervisor's control socket: requests come in, answers go out, each a line of JSON."""

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

LONGEST = 64 * 1024
"""Octets in a request."""

IDLE = 60.0
"""Seconds that a connection may take to send its next request."""


@implementer(IHalfCloseableProtocol)
class ControlConnection(LineReceiver, TimeoutMixin):
    """Reads a request, answers it, reads the next.

    While a request is under way, or answers wait to be taken, nothing is read: so a connection
    holds a bounded amount of memory, and it keeps its place while its request runs, even if who asked is gone.

    :param supervisor: does what is asked for.
    :param asker: who is at the other end, for the log.
    :param others: the connections that there are; this one is among them while it is open.
    :param reactor: provides IReactorTime.
    """

    delimiter = b"\n"
    MAX_LENGTH = LONGEST
    transport: Any

    def __init__(self, supervisor: ISupervisor, asker: str, others: "set[ControlConnection]", reactor: Any) -> None:
        self.gone: Deferred[None] = Deferred()
        self._supervisor = supervisor
        self._asker = asker
        self._others = others
        self._reactor = reactor
        self._request: Command | None = None
        self._full = False
        self._open = False

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """Let TimeoutMixin use the reactor that we were given."""
        delayed: IDelayedCall = self._reactor.callLater(period, func)
        return delayed

    def connectionMade(self) -> None:
        """Wait for the first request."""
        self._open = True
        self._others.add(self)
        self.transport.registerProducer(self, True)
        self.setTimeout(IDLE)

    def lineReceived(self, line: bytes) -> None:
        """Begin with a request."""
        try:
            request = self._request = Command.parse(line)
        except RequestError as error:
            self.sendLine(error_line(error))
            self.resetTimeout()
            return
        super().pauseProducing()
        self.setTimeout(None)
        answering = Deferred.fromCoroutine(answer(self._supervisor, request, self._asker))
        answering.addCallback(self._answered, request)
        answering.addErrback(lambda failure: _log.failure("could not answer a control command", failure))

    def lineLengthExceeded(self, line: bytes) -> None:
        """Say so and close: where the next request begins is not known."""
        self.sendLine(error_line(RequestError("the request is too long", f"the maximum is {LONGEST} bytes")))
        self._close()

    def _answered(self, line: bytes, request: Command) -> None:
        self._request = None
        if not self._open:
            return
        self.sendLine(line)
        if not request.drains_all:
            # Who drains all is told by the end of the connection that it is done.
            self.setTimeout(IDLE)
        self._go_on()

    def pauseProducing(self) -> None:
        """Read no further: answers wait to be taken."""
        self._full = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """Read on: the answers are taken."""
        self._full = False
        self._go_on()

    def _go_on(self) -> None:
        if self._open and self._request is None and not self._full:
            super().resumeProducing()

    def readConnectionLost(self) -> None:
        """Close when the last answer is out: who sends no more may still read, as a shell's pipe does."""
        self._close()

    def writeConnectionLost(self) -> None:
        """Close: nobody reads."""
        self.abort()

    def timeoutConnection(self) -> None:
        """Close: nothing was asked for in time, or the answer was not taken."""
        self.abort()

    def finish(self) -> None:
        """Say what is left to say, and close."""
        if self._request is not None:
            self.sendLine(error_line(UnfinishedError(str(self._request))))
        self._close()

    def _close(self) -> None:
        self._open = False
        # The transport would wait for its producer.
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Give up the place; what was asked for goes on."""
        self._open = False
        self.setTimeout(None)
        self._others.discard(self)
        self.gone.callback(None)


async def answer(supervisor: ISupervisor, request: Command, asker: str) -> bytes:
    """Do what is asked for, and return the answer, whatever happens.

    :param asker: for the log.
    """
    if request.changes:
        _log.info("{request} requested by {asker}", request=str(request), asker=asker)
    try:
        return json.dumps({"result": await request.execute(supervisor)}).encode()
    except NovasvcError as error:
        _log.info("{request} rejected: {error}", request=str(request), error=str(error))
        return error_line(error)
    except Exception as error:  # noqa: BLE001 - nothing that an operator asks for may end the supervisor
        _log.failure("{request} failed", request=str(request))
        return error_line(error)


def error_line(error: Exception) -> bytes:
    """Return the answer that says what went wrong."""
    text = str(error) if isinstance(error, NovasvcError) else f"this is a bug, please report it: {describe(error)}"
    return json.dumps({"error": {"type": type(error).__name__, "message": text}}).encode()
