"""Pending calls: calls that wait for their replies, and the shared reply address."""

from math import inf
from threading import get_ident
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python import threadable
from twisted.python.failure import Failure

from novasvc.errors import ProblemError
from novasvc.interfaces import ITransport
from novasvc.reactor.abandon import completion
from novasvc.rpc.cancellation import send_cancellation
from novasvc.rpc.errors import (
    MessageFormatError,
    RPCError,
    RPCTimeoutError,
    TooManyCallsError,
    TransportClosedError,
    UnconfirmedError,
    UndeliverableError,
)
from novasvc.rpc.failures.failure import decode_error
from novasvc.rpc.failures.origin import Origin
from novasvc.rpc.gather import HostsFunction
from novasvc.rpc.gathers import DEADLINE_PASSED, NO_ADDRESS, REPLY_GRACE, Gathers
from novasvc.rpc.ids import new_id
from novasvc.rpc.message import ReplyTo, read_reply, unwrap
from novasvc.rpc.progress import OnProgress, pass_on
from novasvc.rpc.resend import MAX_RESENDS
from novasvc.rpc.server.deadline import Deadlines
from novasvc.rpc.target import Target
from novasvc.telemetry import metrics
from novasvc.telemetry.instruments import MAX_LABEL_SETS, Counter
from novasvc.telemetry.metrics import CallMetrics

_log = Logger()

MAX_PENDING = 10_000
"""The most calls that may wait for a reply at a time."""

LOOKUP_TIMEOUT = 0.5
"""Seconds before a call's deadline at which the registry is asked about its target, for the text of the error."""
_CANCEL_PATIENCE = 1.0
"""Seconds that a client waits at its close until the transport has its cancellations."""


_reactor: Any = threadable
"""Its ioThread is the thread in which the reactor runs; None before the reactor runs."""


class EncodeCall(Protocol):
    """Encode the message of a call."""

    def __call__(self, *, reply_to: ReplyTo) -> bytes:
        """Return the encoded message, with the given message id and reply address.

        :raises Exception: the message cannot be encoded: the call fails with this error.
        """


@attrs.define(eq=False)
class _Pending:
    """A call that waits for its reply.

    :param waiter: the caller's Deferred.
    :param encode: encodes the message.
    :param timeout: seconds to wait for the reply; None to wait for as long as keepalives arrive.
    :param keepalive: seconds to wait for each keepalive; None if the call asks for none.
    :param deadline: seconds on the clock; infinite without a timeout.
    :param until: seconds on the clock at which the call fails unless a reply arrives; see
        :meth:`PendingCalls._wait`.
    :param began: seconds on the clock when the call was made.
    :param metrics: the method's metrics.
    :param idempotent: whether the message may be sent again.
    :param request_id: the request id of the call's context.
    :param result: the result of a non-final reply; older peers send the result first, then an empty final reply.
    :param sent: whether the message was given to the transport.
    :param waiting_on: Deferred of the broker's confirm, or of the registry's answer for the text of an error. It may
        have fired; see :attr:`awaits_confirm_or_lookup`.
    :param body: the encoded message, while it may have to be sent again.
    :param resent: how often the message was sent again.
    :param unconfirmed: the error of a connection lost before the broker confirmed the message or its first copy.
    :param keepalive_received: whether a keepalive has arrived, so a server has the message.
    :param looked_up: whether the registry was asked about the target.
    :param on_progress: takes the reports of the method.
    :param services: the registry's answer: the number of services registered for the target, and of those that are up;
        None if it was not asked or has not answered.
    """

    waiter: Deferred[Any]
    target: Target
    method: str
    encode: EncodeCall
    timeout: float | None
    keepalive: int | None
    deadline: float
    began: float
    metrics: CallMetrics
    idempotent: bool
    request_id: str = ""
    until: float = 0.0
    result: Any = None
    sent: bool = False
    waiting_on: Deferred[Any] | None = None
    body: bytes | None = None
    resent: int = 0
    unconfirmed: UnconfirmedError | None = None
    keepalive_received: bool = False
    looked_up: bool = False
    services: tuple[int | None, int] = (None, 0)
    on_progress: OnProgress | None = None

    @property
    def awaits_confirm_or_lookup(self) -> bool:
        """Whether the call still waits for the broker's confirm or the registry's answer."""
        return self.waiting_on is not None and not self.waiting_on.called

    @property
    def may_look_up(self) -> bool:
        """Whether to ask the registry before the call times out: no keepalive has arrived, and there is time."""
        asked_or_answered = self.looked_up or self.keepalive_received
        return not asked_or_answered and self.timeout is not None and self.timeout >= 2 * LOOKUP_TIMEOUT


class ServiceLookupFunction(Protocol):
    """Look an unreachable target up in the registry; see :class:`novasvc.registry.lookup.ServiceLookup`."""

    def __call__(self, target: Target) -> Deferred[UndeliverableError]:
        """Return a Deferred of the error to raise. It fires within a bound of its own, and may fail."""


class PendingCalls:
    """Send calls and match their replies, for a client and all clients prepared from it.

    :param transport: sends the messages, and opens the reply address at the first call.
    :param clock: measures the timeouts.
    :param hosts: asks the registry which hosts serve a topic, for gathers; None without a registry.
    :param explain: looks up the target of a call that is undeliverable or unanswered, for the text of its error;
        None to raise the error without the registry's answer.
    :ivar gathers: the gathers, which have replies of many servers.
    :ivar unmatched: replies that no pending call matches, and malformed ones.
    """

    # Note [A message that was not confirmed]
    #
    # The broker confirms each message. A lost connection leaves some messages unconfirmed: the broker
    # may have them or not. An idempotent call is then sent again unchanged, with the same _msg_id and
    # _unique_id, and the transport buffers it until there is a connection. If the first copy arrived too,
    # a server that has received both drops the second. Two servers may both run the call, which
    # idempotent allows; the first reply ends it.
    #
    # Any other call must not be sent again, and waiting for its timeout would give no more information.
    # It fails with UnconfirmedError after REPLY_GRACE, in which a reply that is already in this
    # process's buffers is read: replies arrive on the consuming connection, which may be alive.

    def __init__(
        self,
        transport: ITransport,
        clock: IReactorTime,
        explain: ServiceLookupFunction | None = None,
        hosts: HostsFunction | None = None,
    ) -> None:
        self.gathers = Gathers(transport, clock, hosts, self._tell_cancelled)
        self.unmatched = 0
        self._transport = transport
        self._clock = clock
        self._explain = explain
        self._pending: dict[str, _Pending] = {}
        self._deadlines = Deadlines[str](clock, self._expire)
        self._address: str | None = None
        self._opening: Deferred[Any] | None = None
        self._closed = False
        self._method_metrics: dict[tuple[str, str], CallMetrics] = {}
        self._in_flight = metrics.calls_in_flight.at()
        self._telling: dict[Deferred[None], None] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def check_open(self) -> None:
        """Check that :meth:`close` was not called.

        :raises TransportClosedError: it was called.
        """
        self.check_thread()
        if self._closed:
            raise TransportClosedError("sending")

    @staticmethod
    def check_thread() -> None:
        """Check that this is the reactor's thread.

        :raises ProblemError: it is not.
        """
        # A message sent from another thread would wait until the reactor happens to wake up.
        if _reactor.ioThread is not None and _reactor.ioThread != get_ident():
            raise _in_other_thread()

    def request_ids(self) -> set[str]:
        """Return the request ids of the pending calls."""
        return {pending.request_id for pending in self._pending.values()} | self.gathers.request_ids()

    def call(
        self,
        target: Target,
        method: str,
        encode: EncodeCall,
        timeout: float | None,
        keepalive: int | None = None,
        request_id: str = "",
        *,
        idempotent: bool = False,
        cancels: bool = True,
        on_progress: OnProgress | None = None,
    ) -> Deferred[Any]:
        """Send a call and wait for its reply.

        :param encode: encodes the message, once the reply address is known.
        :param timeout: seconds; None for no limit. With 0 or less the call fails and sends nothing.
        :param keepalive: seconds to wait for each keepalive; None to ask for none.
        :param idempotent: whether the message may be sent again; see Note [A message that was not confirmed].
        :param request_id: the request id of the call's context.
        :param cancels: cancelling the Deferred cancels the method, too.
        :param on_progress: takes the reports of the method.
        :return: Deferred of the result; see :meth:`novasvc.rpc.Client.call`.
        """
        # A message sent from another thread would wait until the reactor happens to wake up.
        if _reactor.ioThread is not None and _reactor.ioThread != get_ident():
            raise _in_other_thread()
        if self._closed:
            return fail(TransportClosedError("sending"))
        if timeout is not None and timeout <= 0:
            return fail(RPCTimeoutError(str(target), method, 0.0, unsent=DEADLINE_PASSED))
        if len(self._pending) >= MAX_PENDING:
            return fail(TooManyCallsError(MAX_PENDING))
        msg_id = new_id()
        now = self._clock.seconds()
        deadline = inf if timeout is None else now + timeout
        call_metrics = self._method_metrics.get((target.topic, method)) or self._metrics_of(target.topic, method)

        def cancelled(_: object) -> None:
            self._cancelled(msg_id, call_metrics.cancelled, cancels=cancels)

        waiter: Deferred[Any] = Deferred(cancelled)
        pending = _Pending(
            waiter, target, method, encode, timeout, keepalive, deadline, now, call_metrics, idempotent, request_id
        )
        if on_progress is not None:
            pending.on_progress = on_progress
        self._pending[msg_id] = pending
        self._in_flight.value += 1
        self._wait(msg_id, pending, keepalive)
        if self._address is not None:
            self._send(msg_id, pending, self._address)
        elif self._opening is None:
            self._open()
        return waiter

    def refuse(self, target: Target, method: str, error: RPCError) -> Deferred[Any]:
        """Fail a call that must not be sent, and count it."""
        self._metrics_of(target.topic, method).unsent.value += 1
        return fail(error)

    def _metrics_of(self, topic: str, method: str) -> CallMetrics:
        """Return a method's metrics; cache up to MAX_LABEL_SETS, because the number of names has no bound."""
        call_metrics = CallMetrics.of(topic, method)
        if len(self._method_metrics) < MAX_LABEL_SETS:
            self._method_metrics[topic, method] = call_metrics
        return call_metrics

    def _wait(self, msg_id: str, pending: _Pending, seconds: float | None) -> None:
        """Let a call fail after some seconds, and at its timeout at the latest, unless a reply arrives before.

        :param seconds: to the next keepalive, or for the reply to an unconfirmed message; None for the timeout only.
        """
        when = pending.deadline if seconds is None else min(pending.deadline, self._clock.seconds() + seconds)
        pending.until = when
        if when == pending.deadline and self._explain is not None and pending.may_look_up:
            # A queue may outlive its consumers, so a call without a reply may have no server: ask the registry in
            # time for its answer to be in the error.
            when -= LOOKUP_TIMEOUT
        self._deadlines.add(msg_id, when)

    def close(self) -> Deferred[None]:
        """Fail the pending calls with TransportClosedError, accept no more, and close the reply address.

        :return: Deferred[None], fired when the address is closed. An address that is still being opened is
            closed later, when it is open.
        """
        self._closed = True
        self._deadlines.close()
        for msg_id, pending in list(self._pending.items()):
            self._discard_and_fail(msg_id, TransportClosedError("waiting for a reply"), pending.metrics.cancelled)
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        closing = self.gathers.close()
        address, self._address = self._address, None
        if self._telling:
            # A cancellation must be with the transport before that is closed, because the caller may end now.
            told = DeferredList([completion(telling) for telling in self._telling], consumeErrors=True)
            await told.addTimeout(_CANCEL_PATIENCE, self._clock, onTimeoutCancel=lambda *_: None)
        await closing
        if address is not None:
            await self._transport.close_replies(address)

    # -- sending -------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the reply address, then send the calls that wait for it."""
        opening = self._opening = self._transport.open_replies(self._receive)
        opening.addCallback(self._opened).addErrback(self._not_opened)

    def _opened(self, address: str) -> Deferred[None] | None:
        self._opening = None
        if self._closed:
            closed: Deferred[None] = self._transport.close_replies(address)
            return closed
        self._address = address
        for msg_id, pending in list(self._pending.items()):
            if msg_id in self._pending:  # A caller whose call has just failed may have cancelled it.
                self._send(msg_id, pending, address)
        return None

    def _not_opened(self, failure: Failure) -> None:
        self._opening = None
        for msg_id, pending in list(self._pending.items()):
            # Each waiter gets its own Failure: an errback changes the Failure it handles.
            self._discard_and_fail(msg_id, Failure(failure.value), pending.metrics.unsent)

    def _send(self, msg_id: str, pending: _Pending, address: str) -> None:
        body = pending.body
        try:
            if body is None:
                body = pending.encode(reply_to=ReplyTo(msg_id, address))
        except Exception as error:  # noqa: BLE001 - an error of this call must not end the other calls
            self._fail(msg_id, error, pending.metrics.unsent)
            return
        pending.sent = True
        # A server that begins later can send neither a reply nor its first keepalive before the caller gives up.
        ttl = pending.until - self._clock.seconds()
        sending: Deferred[None] = self._transport.send(pending.target, body, ttl, True)
        if sending.called and sending.result is None:
            # Confirmed synchronously, as by the in-memory transport: save the cost of a callback per call.
            return
        pending.waiting_on = sending
        if pending.idempotent:
            pending.body = body
            sending.addCallback(_confirmed, pending)
        sending.addErrback(self._send_failed, msg_id)

    def _send_failed(self, failure: Failure, msg_id: str) -> None:
        pending = self._pending.get(msg_id)
        if pending is None:
            return  # The reply has arrived already, or the call was cancelled or timed out.
        pending.waiting_on = None
        error = failure.value
        if isinstance(error, UnconfirmedError):
            self._handle_unconfirmed(msg_id, pending, error)
        elif pending.unconfirmed is not None:
            # The first copy may have arrived, so the error of the second one alone would mislead.
            problem = f"{pending.unconfirmed.problem}; it could not be sent again: {error}"
            self._fail(msg_id, UnconfirmedError(str(pending.target), problem), pending.metrics.unconfirmed)
        elif isinstance(error, UndeliverableError) and self._explain is not None:
            self._deadlines.live.pop(msg_id, None)  # The call has failed already.
            explaining = pending.waiting_on = self._explain(pending.target)
            if pending.deadline < inf:
                # The lookup has a bound of its own, but the call has perhaps less time.
                explaining.addTimeout(max(0.0, pending.deadline - self._clock.seconds()), self._clock)
            explaining.addBoth(self._explained_failure, failure, msg_id)
        else:
            self._fail(msg_id, failure, pending.metrics.unsent)

    def _explained_failure(self, result: UndeliverableError | Failure, failure: Failure, msg_id: str) -> None:
        pending = self._pending.get(msg_id)
        if pending is not None:
            self._fail(msg_id, failure if isinstance(result, Failure) else result, pending.metrics.unsent)

    def _handle_unconfirmed(self, msg_id: str, pending: _Pending, error: UnconfirmedError) -> None:
        """Send an unconfirmed message again if its call is idempotent; else let the call fail after REPLY_GRACE.

        See Note [A message that was not confirmed].
        """
        if pending.keepalive_received:
            return  # A server has the message, whatever became of the confirm.
        pending.unconfirmed = pending.unconfirmed or error
        if pending.idempotent and pending.resent < MAX_RESENDS and self._address is not None:
            pending.resent += 1
            metrics.resent.at().value += 1
            self._wait(msg_id, pending, pending.keepalive)
            self._send(msg_id, pending, self._address)
        else:
            self._wait(msg_id, pending, REPLY_GRACE)

    # -- the end of a call ---------------------------------------------------------------------

    def _receive(self, message: bytes) -> None:
        """Receive a reply or a keepalive; called by the transport."""
        try:
            reply = read_reply(unwrap(message))
        except MessageFormatError as error:
            self.unmatched += 1
            _log.warn("a reply was dropped: {error}", error=error)
            return
        msg_id, pending = reply.msg_id, self._pending.get(reply.msg_id)
        if pending is None:
            self.unmatched += 1
            _log.debug("a reply was dropped: no call waits for it; the call has ended, or the reply is a duplicate")
            return
        if reply.failure is not None:
            self._fail(msg_id, decode_error(reply.failure, _called(pending)), pending.metrics.failed)
            return
        if reply.result is not None:
            pending.result = reply.result
        if reply.final:
            self._remove(msg_id, pending.metrics.replied)
            pending.waiter.callback(pending.result)
        else:
            pending.keepalive_received, pending.unconfirmed = True, None
            self._wait(msg_id, pending, pending.keepalive)
            if pending.on_progress is not None and reply.extra is not None:
                pass_on(reply.extra.get("progress"), pending.on_progress)

    def _remove(self, msg_id: str, outcome: Counter) -> _Pending | None:
        """Remove a call and count its outcome; return it, or None if it was removed before.

        :param outcome: the counter to increment.
        """
        self._deadlines.live.pop(msg_id, None)
        pending = self._pending.pop(msg_id, None)
        if pending is not None:
            outcome.value += 1
            pending.metrics.seconds.observe(self._clock.seconds() - pending.began)
            self._in_flight.value -= 1
        return pending

    def _fail(self, msg_id: str, reason: Exception | Failure, outcome: Counter) -> None:
        pending = self._remove(msg_id, outcome)
        if pending is not None:
            pending.waiter.errback(reason)

    def _discard(self, msg_id: str, outcome: Counter) -> _Pending | None:
        """Remove a call without firing its Deferred; cancel its message if it is not sent yet."""
        pending = self._remove(msg_id, outcome)
        if pending is not None and pending.waiting_on is not None:
            pending.waiting_on.cancel()
        return pending

    def _cancelled(self, msg_id: str, outcome: Counter, *, cancels: bool) -> None:
        """Discard a call that its caller has cancelled, and tell the servers, which may run it."""
        pending = self._pending.get(msg_id)
        # With a problem and without a confirm the request may not have been sent, and the buffer is to have room for
        # other messages.
        buffered = pending is not None and pending.awaits_confirm_or_lookup and self._transport.problem() is not None
        self._discard(msg_id, outcome)
        if pending is None or not pending.sent or not cancels or buffered:
            return
        left = pending.deadline - self._clock.seconds()
        self._tell_cancelled(pending.target, msg_id, None if left == inf else left)

    def _tell_cancelled(self, target: Target, msg_id: str, left: float | None) -> None:
        telling = send_cancellation(self._transport, target, msg_id, left)
        if not telling.called:
            self._telling[telling] = None
        telling.addErrback(lambda failure: _log.debug("a cancellation was not sent: {error}", error=failure.value))
        telling.addBoth(lambda _: self._telling.pop(telling, None))

    def _discard_and_fail(self, msg_id: str, reason: Exception | Failure, outcome: Counter) -> None:
        """Fail a call, and cancel its message if it is not sent yet; do nothing if the call has ended."""
        pending = self._discard(msg_id, outcome)
        if pending is not None:
            pending.waiter.errback(reason)

    def _expire(self, msg_id: str) -> None:
        """Fail a call that has waited until its time; before that, ask the registry about it. See :meth:`_wait`."""
        pending = self._pending[msg_id]
        if self._clock.seconds() < pending.until:
            pending.looked_up = True
            self._deadlines.add(msg_id, pending.until)
            # Without a confirm, it is the broker that the error is about.
            if self._explain is not None and pending.sent and not pending.awaits_confirm_or_lookup:
                _look_up(pending, self._explain)
        elif pending.unconfirmed is not None and not pending.awaits_confirm_or_lookup:
            self._fail(msg_id, pending.unconfirmed, pending.metrics.unconfirmed)
        else:
            outcome = pending.metrics.timed_out if pending.sent else pending.metrics.unsent
            self._discard_and_fail(msg_id, self._timeout_error(pending), outcome)

    def _timeout_error(self, pending: _Pending) -> RPCTimeoutError:
        keepalive_missed = pending.until < pending.deadline
        unconfirmed = unsent = ""
        if not pending.sent:
            unsent = self._transport.problem() or NO_ADDRESS
        elif pending.awaits_confirm_or_lookup and not pending.keepalive_received:
            unconfirmed = self._transport.problem() or "the broker has not confirmed it yet"
        waited = pending.keepalive if keepalive_missed else pending.timeout
        return RPCTimeoutError(
            str(pending.target),
            pending.method,
            float(waited or 0),
            keepalive_missed,
            unconfirmed,
            *pending.services,
            unsent,
        )


def _look_up(pending: _Pending, explain: ServiceLookupFunction) -> None:
    """Ask the registry about the target of a call that is about to time out."""

    def remember(answer: UndeliverableError) -> None:
        pending.services = answer.registered, answer.up

    # A failed lookup only leaves the error without the registry's answer.
    explain(pending.target).addCallbacks(remember, lambda _: None)


def _in_other_thread() -> ProblemError:
    problem = "it was used in another thread than the reactor's, such as that of a method with blocking=True"
    remedy = "call from there with manager.attachments.blocking, or with a client of novasvc.blocking"
    return ProblemError("RPC client", problem, remedy)


def _confirmed(_: None, pending: _Pending) -> None:
    """Record the broker's confirm: the message is never sent again."""
    pending.waiting_on = pending.body = pending.unconfirmed = None


def _called(pending: _Pending) -> Origin:
    """Return what the caller knows about the service that replies."""
    target = pending.target
    return Origin(topic=target.topic, host=target.server, method=pending.method, request_id=pending.request_id)
