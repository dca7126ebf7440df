"""Calls that wait for their replies, and the one address at which the replies arrive."""

from collections.abc import Callable
from math import inf
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.errors import (
    MessageFormatError,
    RPCError,
    RPCTimeoutError,
    TooManyCallsError,
    TransportClosedError,
    UnconfirmedError,
    UndeliverableError,
)
from novasvc.interfaces import ITransport
from novasvc.rpc.deadline import Deadlines
from novasvc.rpc.failure import read_failure
from novasvc.rpc.ids import new_id
from novasvc.rpc.message import WayBack, read_reply, unwrap
from novasvc.rpc.target import Target
from novasvc.telemetry import metrics
from novasvc.telemetry.instruments import MOST, Counter
from novasvc.telemetry.metrics import CallMetrics

_log = Logger()

PENDING_BOUND = 10_000
"""Calls that may wait for their replies at a time."""

EXPLAIN_PATIENCE = 0.5
"""Seconds that an error waits for what the registry knows, at the most."""
RESENDS = 10
"""Times that an idempotent message is sent again, at the most: one that costs its connection each time must end."""
_REPLY_GRACE = 0.25
"""Seconds that a call waits for a reply that is on its way when the connection for publishing is lost."""


class MakeBody(Protocol):
    """Makes the message of a call; raises RPCError if there can be none."""

    def __call__(self, *, back: WayBack) -> bytes:
        """Return the message whose reply takes this way back."""


@attrs.define(eq=False)
class _Pending:
    """A call whose end has not come.

    :param timeout: seconds that it waits in all; None is "as long as there are signs of life".
    :param keepalive: seconds that it waits for a sign of life; None if it wants none.
    :param deadline: seconds on the clock; infinite without a timeout.
    :param began: seconds on the clock.
    :param figures: those of its method.
    :param idempotent: its message may be sent again.
    :param request_id: of its context.
    :param result: what came without being the last; old senders end with an empty reply.
    :param sending: what is awaited before the reply: the broker's confirm, or the registry's answer. It may have
        fired; see :attr:`is_sending`.
    :param body: the message, if it may have to be sent again.
    :param resent: how often it was.
    :param unconfirmed: the connection was lost before the broker confirmed the message, or its first copy.
    :param begun: the server has shown life, so it has the message.
    :param asked: the registry was asked about its target.
    :param known: what the registry has answered.
    """

    waiter: Deferred[Any]
    target: Target
    method: str
    make_body: MakeBody
    timeout: float | None
    keepalive: int | None
    deadline: float
    began: float
    figures: CallMetrics
    idempotent: bool
    request_id: str = ""
    result: Any = None
    sending: Deferred[Any] | None = None
    body: bytes | None = None
    resent: int = 0
    unconfirmed: UnconfirmedError | None = None
    begun: bool = False
    asked: bool = False
    known: UndeliverableError | None = None

    @property
    def is_sending(self) -> bool:
        """Whether the broker's confirm, or the registry's answer, is still awaited."""
        return self.sending is not None and not self.sending.called

    @property
    def questionable(self) -> bool:
        """Whether the registry is to be asked before it times out: no server has shown life, and there is time."""
        return not (self.asked or self.begun) and self.timeout is not None and self.timeout >= 2 * EXPLAIN_PATIENCE


class Explain(Protocol):
    """Finds out more about a target that no queue is bound for; see :class:`novasvc.registry.lookup.ServiceLookup`."""

    def __call__(self, target: Target) -> Deferred[UndeliverableError]:
        """Return a Deferred of the error, which fires soon and may fail."""


class PendingCalls:
    """The calls of a client and of all those prepared from it.

    :param transport: gives the address for replies when the first call is made.
    :param clock: measures the timeouts.
    :param explain: words the error of a call that nobody can be reached for, or that nobody has answered; None words
        it without the registry.
    """

    # Note [A message that was not confirmed]
    #
    # The broker confirms each message. A connection that is lost leaves some of them unconfirmed:
    # they are with the broker, or they are not. An idempotent call is then sent again as it was,
    # with the same _msg_id and _unique_id, and the transport holds it until there is a connection.
    # If the first copy arrived, too, a server that has seen it drops the second; two servers may
    # both run it, which is what idempotent allows, and the first reply ends the call.
    #
    # Any other call must not be sent again, and waiting for its timeout would tell no more. It
    # fails at once, but for a moment in which a reply that is in our own buffers is read.

    def __init__(self, transport: ITransport, clock: IReactorTime, explain: Explain | None = None) -> None:
        self.unmatched = 0
        self._transport = transport
        self._clock = clock
        self._explain = explain
        self._pending: dict[str, _Pending] = {}
        self._deadlines = Deadlines[str](clock, self._expire)
        self._address: str | None = None
        self._opening: Deferred[Any] | None = None
        self._closed = False
        self._figures: dict[tuple[str, str], CallMetrics] = {}
        self._called_now = metrics.called_now.at()

    def __len__(self) -> int:
        return len(self._pending)

    def check_open(self) -> None:
        """See that it was not closed.

        :raises TransportClosedError: it was.
        """
        if self._closed:
            raise TransportClosedError("sending")

    def request_ids(self) -> set[str]:
        """Return the request ids of the calls that wait."""
        return {pending.request_id for pending in self._pending.values()}

    def call(
        self,
        target: Target,
        method: str,
        make_body: MakeBody,
        timeout: float | None,
        keepalive: int | None = None,
        request_id: str = "",
        *,
        idempotent: bool = False,
    ) -> Deferred[Any]:
        """Send a call and wait for the end of it.

        :param timeout: seconds; with none left, nothing is sent. None is no limit.
        :param keepalive: seconds to wait for each sign of life; None if there is a timeout only.
        :param idempotent: its message may be sent again; see Note [A message that was not confirmed].
        :param request_id: of the call's context.
        :return: Deferred of the result; see :meth:`novasvc.rpc.Client.call`.
        """
        if self._closed:
            return fail(TransportClosedError("sending"))
        if timeout is not None and timeout <= 0:
            return fail(RPCTimeoutError(str(target), method, 0.0))
        if len(self._pending) >= PENDING_BOUND:
            return fail(TooManyCallsError(PENDING_BOUND))
        msg_id = new_id()
        now = self._clock.seconds()
        deadline = inf if timeout is None else now + timeout
        figures = self._figures.get((target.topic, method)) or self._figures_of(target.topic, method)

        def cancelled(_: object) -> None:
            self._drop(msg_id, figures.cancelled)

        waiter: Deferred[Any] = Deferred(cancelled)
        pending = _Pending(
            waiter, target, method, make_body, timeout, keepalive, deadline, now, figures, idempotent, request_id
        )
        self._pending[msg_id] = pending
        self._called_now.value += 1
        self._be_patient(msg_id, pending)
        if self._address is not None:
            self._send(msg_id, pending, self._address)
        elif self._opening is None:
            self._open()
        return waiter

    def _figures_of(self, topic: str, method: str) -> CallMetrics:
        """Return the figures of a method, and remember them; their number is bounded, that of names is not."""
        figures = CallMetrics.of(topic, method)
        if len(self._figures) < MOST:
            self._figures[topic, method] = figures
        return figures

    def _be_patient(self, msg_id: str, pending: _Pending) -> None:
        """Wait for a call's reply, or for its next sign of life."""
        when = pending.deadline
        if self._explain is not None and pending.questionable:
            # A queue may outlive those who serve it. The registry answers within EXPLAIN_PATIENCE, or not in time.
            when -= EXPLAIN_PATIENCE
        if pending.keepalive is not None:
            when = min(when, self._clock.seconds() + pending.keepalive)
        self._deadlines.add(msg_id, when)

    def close(self) -> Deferred[None]:
        """Fail what waits, take no more, and give up the address; one that is being opened, when it is."""
        self._closed = True
        self._deadlines.close()
        self._fail_all(lambda: TransportClosedError("waiting for a reply"))
        address, self._address = self._address, None
        closed: Deferred[None] = succeed(None) if address is None else self._transport.close_replies(address)
        return closed

    # -- sending -------------------------------------------------------------------------------

    def _open(self) -> None:
        """Get the address for replies; the calls that came meanwhile are sent then."""
        opening = self._opening = self._transport.open_replies(self._receive)
        opening.addCallback(self._opened).addErrback(self._not_opened)

    def _opened(self, address: str) -> Deferred[None] | None:
        self._opening = None
        if self._closed:
            closed: Deferred[None] = self._transport.close_replies(address)
            return closed
        self._address = address
        for msg_id, pending in list(self._pending.items()):
            self._send(msg_id, pending, address)
        return None

    def _not_opened(self, failure: Failure) -> None:
        self._opening = None
        # Each waiter gets a Failure of its own: handling one must not clean another's.
        self._fail_all(lambda: Failure(failure.value))

    def _send(self, msg_id: str, pending: _Pending, address: str) -> None:
        body = pending.body
        try:
            if body is None:
                body = pending.make_body(back=WayBack(msg_id, address))
        except RPCError as error:
            self._end(msg_id, error, pending.figures.unsent)
            return
        ttl = pending.deadline - self._clock.seconds()
        if pending.keepalive is not None:
            ttl = min(ttl, pending.keepalive)  # Whoever has not begun by then shows no life in time.
        sending: Deferred[None] = self._transport.send(pending.target, body, ttl, True)
        if sending.called and sending.result is None:
            return  # At once and well, as in memory: spare every call the cost of a callback.
        pending.sending = sending
        if pending.idempotent:
            pending.body = body
            sending.addCallback(_confirmed, pending)
        sending.addErrback(self._not_sent, msg_id)

    def _not_sent(self, failure: Failure, msg_id: str) -> None:
        pending = self._pending.get(msg_id)
        if pending is None:
            return  # The reply was faster, or nobody waits any more.
        pending.sending = None
        error = failure.value
        if isinstance(error, UnconfirmedError):
            self._lost(msg_id, pending, error)
        elif pending.unconfirmed is not None:
            # Of the first copy nobody knows, and the error of the second is not all that is to be said.
            problem = f"{pending.unconfirmed.problem}; it could not be sent again: {error}"
            self._end(msg_id, UnconfirmedError(str(pending.target), problem), pending.figures.unconfirmed)
        elif isinstance(error, UndeliverableError) and self._explain is not None:
            self._deadlines.live.pop(msg_id, None)  # The error is known, and the question has a bound of its own.
            explaining = pending.sending = self._explain(pending.target)
            explaining.addBoth(self._explained, failure, msg_id)
        else:
            self._end(msg_id, failure, pending.figures.unsent)

    def _explained(self, result: UndeliverableError | Failure, failure: Failure, msg_id: str) -> None:
        pending = self._pending.get(msg_id)
        if pending is not None:
            self._end(msg_id, failure if isinstance(result, Failure) else result, pending.figures.unsent)

    def _lost(self, msg_id: str, pending: _Pending, error: UnconfirmedError) -> None:
        """Send again what may be sent again, and end the rest; see Note [A message that was not confirmed]."""
        if pending.begun:
            return
        pending.unconfirmed = pending.unconfirmed or error
        if pending.idempotent and pending.resent < RESENDS and self._address is not None:
            pending.resent += 1
            metrics.resent.at().value += 1
            self._be_patient(msg_id, pending)
            self._send(msg_id, pending, self._address)
        else:
            self._deadlines.add(msg_id, min(pending.deadline, self._clock.seconds() + _REPLY_GRACE))

    # -- the end of a call ---------------------------------------------------------------------

    def _receive(self, message: bytes) -> None:
        """Take a reply; the transport's receiver."""
        try:
            reply = read_reply(unwrap(message))
        except MessageFormatError as error:
            self.unmatched += 1
            _log.warn("a reply was dropped: {error}", error=error)
            return
        msg_id, pending = reply.msg_id, self._pending.get(reply.msg_id)
        if pending is None:
            self.unmatched += 1
            _log.debug("a reply was dropped: no call waits for it")
            return
        if reply.failure is not None:
            self._end(msg_id, read_failure(reply.failure), pending.figures.failed)
            return
        if reply.result is not None:
            pending.result = reply.result
        if reply.ending:
            self._forget(msg_id, pending.figures.replied)
            pending.waiter.callback(pending.result)
        else:
            pending.begun, pending.unconfirmed = True, None
            self._be_patient(msg_id, pending)

    def _forget(self, msg_id: str, outcome: Counter) -> _Pending | None:
        """Let go of a call.

        :param outcome: where it is counted.
        """
        self._deadlines.live.pop(msg_id, None)
        pending = self._pending.pop(msg_id, None)
        if pending is not None:
            outcome.value += 1
            pending.figures.seconds.observe(self._clock.seconds() - pending.began)
            self._called_now.value -= 1
        return pending

    def _end(self, msg_id: str, reason: Exception | Failure, outcome: Counter) -> None:
        pending = self._forget(msg_id, outcome)
        if pending is not None:
            pending.waiter.errback(reason)

    def _drop(self, msg_id: str, outcome: Counter) -> _Pending | None:
        """Let go of a call that nobody waits for; a message that is not sent yet will not be."""
        pending = self._forget(msg_id, outcome)
        if pending is not None and pending.sending is not None:
            pending.sending.cancel()
        return pending

    def _expire(self, msg_id: str) -> None:
        pending = self._pending[msg_id]
        if self._explain is not None and not pending.is_sending and pending.questionable:
            self._ask(msg_id, pending, self._explain)
            return
        if pending.unconfirmed is not None and not pending.is_sending:
            self._end(msg_id, pending.unconfirmed, pending.figures.unconfirmed)
            return
        silent = self._clock.seconds() < pending.deadline
        waited = pending.keepalive if silent else pending.timeout
        unconfirmed = ""
        if pending.is_sending and not pending.begun:
            unconfirmed = self._transport.problem() or "the broker has not confirmed it yet"
        known = UndeliverableError("") if pending.known is None else pending.known
        error = RPCTimeoutError(
            str(pending.target), pending.method, float(waited or 0), silent, unconfirmed, known.registered, known.up
        )
        self._drop(msg_id, pending.figures.timed_out)
        pending.waiter.errback(error)

    def _ask(self, msg_id: str, pending: _Pending, explain: Explain) -> None:
        """Ask the registry about the target of a call that is about to time out."""

        def note(known: UndeliverableError) -> None:
            pending.known = known

        pending.asked = True
        self._be_patient(msg_id, pending)
        explain(pending.target).addCallbacks(note, lambda _: None)  # without an answer, the error has none

    def _fail_all(self, reason: Callable[[], Exception | Failure]) -> None:
        for msg_id, waiting in list(self._pending.items()):
            pending = self._drop(msg_id, waiting.figures.unsent)
            if pending is not None:
                pending.waiter.errback(reason())


def _confirmed(_: None, pending: _Pending) -> None:
    """Note that the broker has the message: it is not sent again."""
    pending.sending = pending.body = pending.unconfirmed = None
