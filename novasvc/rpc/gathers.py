"""The gathers of one client: their messages, and the reply address of their own."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from novasvc.interfaces import ITransport
from novasvc.rpc.errors import (
    MessageFormatError,
    RPCError,
    RPCTimeoutError,
    TooManyCallsError,
    TransportClosedError,
    UnconfirmedError,
)
from novasvc.rpc.gather import Gathering, HostsFunction, OnError
from novasvc.rpc.ids import new_id
from novasvc.rpc.message import ReplyTo, read_reply, unwrap
from novasvc.rpc.target import Target
from novasvc.telemetry.metrics import CallMetrics

_log = Logger()

MAX_GATHERS = 1000
"""The most gathers of a client at a time."""

DEADLINE_PASSED = "its deadline has passed"
NO_ADDRESS = "the reply queue of this process is not open yet; check the broker"
"""Why a call or a gather was not sent."""
REPLY_GRACE = 0.25
"""Seconds to wait for a reply that was received already, after the publishing connection is lost."""
_UNCHECKED = "its version is not checked yet, because the services of the topic have not said what they serve"


class _Encode(Protocol):
    def __call__(self, *, reply_to: ReplyTo) -> bytes: ...


@attrs.define(eq=False)
class _Pending:
    """A gather that takes answers.

    :param target: the topic, as a fanout.
    :param until: seconds on the clock.
    :param timer: ends it then.
    :param unsent: why the message is not given to the transport yet.
    :param sending: the transport's Deferred, or that of REPLY_GRACE; cancelled at the end. None if the message was not
        given to the transport.
    """

    gathering: Gathering
    target: Target
    method: str
    request_id: str
    began: float
    until: float
    timer: IDelayedCall | None = None
    unsent: str = NO_ADDRESS
    sending: Deferred[Any] | None = None


class Gathers:
    """Send gathers and match their answers, for a client and all clients prepared from it.

    :param transport: sends the messages, and opens the reply address at the first gather.
    :param clock: measures the timeouts.
    :param hosts: asks the registry; None without one.
    :param tell_cancelled: tells the servers of a target that a call was cancelled: its message id, and the seconds that
        it had left.
    :ivar unmatched: answers that no gather takes: late ones, second ones of a host, and malformed ones.
    """

    # A reply address of their own, because the calls' replies must not pay for a second look-up.

    def __init__(
        self,
        transport: ITransport,
        clock: IReactorTime,
        hosts: HostsFunction | None,
        tell_cancelled: Callable[[Target, str, float], None],
    ) -> None:
        self.unmatched = 0
        self._transport = transport
        self._clock = clock
        self._hosts = hosts
        self._tell_cancelled = tell_cancelled
        self._pending: dict[str, _Pending] = {}
        self._address: str | None = None
        self._opening: Deferred[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._pending)

    def request_ids(self) -> set[str]:
        """Return the request ids of the gathers."""
        return {pending.request_id for pending in self._pending.values()}

    def gather(
        self,
        target: Target,
        method: str,
        encode: _Encode,
        timeout: float,
        request_id: str,
        *,
        cancels: bool,
        checking: Deferred[RPCError | None] | None = None,
        failed: OnError | None = None,
    ) -> Gathering:
        """Send a gather.

        :param target: a fanout.
        :param encode: encodes the message, once the reply address is known.
        :param timeout: seconds.
        :param cancels: cancelling it cancels the methods, too.
        :param checking: a check of the target that is under way; the gather is sent when that allows it.
        :param failed: called with each error that a server answers.
        """
        msg_id, now = new_id(), self._clock.seconds()
        gathering = Gathering(partial(self._ended, msg_id, cancels=cancels), failed)
        error: Exception | None = None
        if self._closed:
            error = TransportClosedError("sending")
        elif timeout <= 0:
            error = RPCTimeoutError(str(target), method, 0.0, unsent=DEADLINE_PASSED)
        elif len(self._pending) >= MAX_GATHERS:
            error = TooManyCallsError(MAX_GATHERS)
        if error is not None:
            gathering.end("unsent", Failure(error))
            return gathering
        pending = self._pending[msg_id] = _Pending(gathering, target, method, request_id, now, now + timeout)
        pending.timer = self._clock.callLater(timeout, self._timed_out, pending, timeout)
        Deferred.fromCoroutine(self._send(msg_id, pending, encode, checking)).addErrback(self._not_sent, gathering)
        if self._hosts is not None:
            asking = self._hosts(target.topic)
            asking.addCallbacks(
                gathering.expect,
                lambda failure: _log.debug("the registry does not say who is up: {error}", error=failure.value),
            )
            asking.addErrback(lambda failure: _log.failure("who is up is not known", failure))
        return gathering

    def close(self) -> Deferred[None]:
        """End all gathers with TransportClosedError, and close the reply address.

        :return: Deferred[None], fired when it is closed.
        """
        self._closed = True
        for pending in list(self._pending.values()):
            pending.gathering.end("cancelled", Failure(TransportClosedError("waiting for a reply")))
        address, self._address = self._address, None
        closed: Deferred[None] = succeed(None) if address is None else self._transport.close_replies(address)
        return closed

    async def _send(
        self, msg_id: str, pending: _Pending, encode: _Encode, checking: Deferred[RPCError | None] | None
    ) -> None:
        if checking is not None:
            pending.unsent = _UNCHECKED
            error = await checking
            if error is not None:
                raise error
            pending.unsent = NO_ADDRESS
        address = self._address or await self._open()
        body = encode(reply_to=ReplyTo(msg_id, address))
        left = pending.until - self._clock.seconds()
        if msg_id in self._pending:  # It may have ended while the address was opened.
            pending.sending = self._transport.send(pending.target, body, left, True)
            try:
                await pending.sending
            except UnconfirmedError:
                if not pending.gathering.answered:
                    pending.sending = deferLater(self._clock, REPLY_GRACE)
                    await pending.sending
                if not pending.gathering.answered:
                    raise  # else the broker has the message, whatever became of the confirm

    async def _open(self) -> str:
        address: str = await self._transport.open_replies(self._receive)
        if self._closed:
            await self._transport.close_replies(address)
            raise TransportClosedError("sending")
        if self._address is not None:  # Another gather has opened one meanwhile.
            await self._transport.close_replies(address)
        else:
            self._address = address
        return self._address

    def _timed_out(self, pending: _Pending, timeout: float) -> None:
        if pending.sending is not None:
            pending.gathering.end("timed_out")
            return
        why = self._transport.problem() or pending.unsent
        error = RPCTimeoutError(str(pending.target), pending.method, timeout, unsent=why)
        pending.gathering.end("unsent", Failure(error))

    def _not_sent(self, failure: Failure, gathering: Gathering) -> None:
        known = failure.check(RPCError)
        if not known and not gathering.ended:
            _log.failure("a gather was not sent", failure)
        gathering.end("unconfirmed" if failure.check(UnconfirmedError) else "unsent", failure)

    def _receive(self, message: bytes) -> None:
        """Receive an answer; called by the transport."""
        try:
            reply = read_reply(unwrap(message))
        except MessageFormatError as error:
            self.unmatched += 1
            _log.warn("an answer to a gather was dropped: {error}", error=error)
            return
        pending = self._pending.get(reply.msg_id)
        if pending is None or not pending.gathering.receive(reply):
            self.unmatched += 1
            _log.debug("an answer to a gather was dropped: it is late, or its host has answered before")

    def _ended(self, msg_id: str, _: Gathering, outcome: str, *, cancels: bool) -> None:
        pending = self._pending.pop(msg_id, None)
        if pending is None:
            return
        if pending.timer is not None and pending.timer.active():
            pending.timer.cancel()
        if pending.sending is not None:
            pending.sending.cancel()
        metrics = CallMetrics.of(pending.target.topic, pending.method)
        metrics.count(outcome)
        now = self._clock.seconds()
        metrics.seconds.observe(now - pending.began)
        if outcome == "cancelled" and cancels and not self._closed and self._address is not None:
            self._tell_cancelled(pending.target, msg_id, pending.until - now)
