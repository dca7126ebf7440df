"""Cancellation: when a caller cancels its call, the server that has the request cancels the method.

The client sends one message to the servers of the target. The server that runs the method cancels it; a server whose
request still waits drops it; all remember the call's id for a while, because the request may be in a queue yet.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from novasvc.interfaces import IDelivery, ITransport
from novasvc.rpc.endpoint import Method
from novasvc.rpc.message import NAME_LIMIT, Request, encode_request
from novasvc.rpc.server.awaiting_redelivery import AwaitingRedelivery
from novasvc.rpc.server.call import Call
from novasvc.rpc.server.execution import Execution
from novasvc.rpc.server.ledger import Ledger
from novasvc.rpc.target import Target
from novasvc.telemetry.metrics import DeliveryMetrics

_log = Logger()

NAMESPACE = "novasvc"
"""The namespace of internal messages; no endpoint can serve it."""

MAX_REMEMBERED = 10_000
"""The most cancelled calls that a server remembers."""
REMEMBERED_FOR = 600.0
"""Seconds for which a server remembers a cancelled call whose request has no TTL."""
GRACE = 5.0
"""Seconds in which a cancelled method should end; later the log says that it ignores its cancellation."""

# Note [Where a cancellation goes]
#
# The caller does not know which server, and which of its workers, has the request, so the message goes to all servers
# of the target. It is a fanout that only servers of novasvc receive (Target.internal): one of oslo.messaging would log
# a traceback for a namespace that it does not serve. It is read as soon as it is received: it waits neither for a slot
# nor, in any transport, for the prefetch of other messages.
#
# It is sent once, and not confirmed to the caller. A server that drains has stopped to receive fanouts, and one that
# starts later has not received it; there the method runs until its deadline, as it does if the caller's host dies.
#
# Nobody can cancel the calls of others: a message id is random, and known to its caller and to its server only.


def send_cancellation(transport: ITransport, target: Target, msg_id: str, seconds: float | None) -> Deferred[None]:
    """Tell the servers of a target that a call was cancelled.

    :param seconds: for which the request may still be in a queue; None if unknown.
    :return: Deferred[None], fired when the transport has the message; fails as :meth:`ITransport.send`.
    """
    args = {"msg_id": msg_id, "seconds": seconds}
    body = encode_request("cancel", args, {}, namespace=NAMESPACE, version="1.0")
    sending: Deferred[None] = transport.send(attrs.evolve(target, fanout=True, internal=True), body, None, False)
    return sending


class Cancellations:
    """Handle the cancellations that one server receives.

    :param clock: measures how long calls are remembered, and GRACE.
    :param ledger: the unsettled calls.
    :param awaiting: the calls that await their redelivery.
    :param execution: the running calls.
    :param withdraw: takes a call out of the queue; returns whether it waited there.
    :param metrics: counts the requests that never begin.
    :param changed: called when a waiting call was dropped.
    :ivar cancelled: the message ids of cancelled calls, with the time on the clock until which each is remembered.
    """

    def __init__(
        self,
        clock: IReactorTime,
        ledger: Ledger,
        awaiting: AwaitingRedelivery,
        execution: Execution,
        *,
        withdraw: Callable[[Call], bool],
        metrics: DeliveryMetrics,
        changed: Callable[[], None],
    ) -> None:
        self.cancelled: OrderedDict[str, float] = OrderedDict()
        self._clock = clock
        self._ledger = ledger
        self._awaiting = awaiting
        self._execution = execution
        self._withdraw = withdraw
        self._metrics = metrics
        self._changed = changed
        self._watched: dict[Call, IDelayedCall] = {}
        self._told: set[Method] = set()

    def receive(self, delivery: IDelivery, request: Request) -> None:
        """Receive an internal message; a malformed one is dropped."""
        delivery.ack()
        msg_id, seconds = request.args.get("msg_id"), request.args.get("seconds")
        known = request.method == "cancel" and isinstance(msg_id, str) and len(msg_id) <= NAME_LIMIT
        if not known or not isinstance(msg_id, str):
            self._metrics.malformed.value += 1
            return
        self._remember(msg_id, seconds)
        for call in list(self._execution.running):
            if _is_of(call, msg_id):
                self._cancel_running(call)
                return
        for call in self._ledger:
            if _is_of(call, msg_id) and self._withdraw(call):
                self._drop(call)
                return
        for call in list(self._awaiting.calls.values()):
            if _is_of(call, msg_id) and call.request.unique_id is not None:
                # Its message comes again, and is dropped then.
                self._awaiting.remove(call.request.unique_id)
                self._changed()

    def drop(self, delivery: IDelivery, request: Request) -> bool:
        """Drop a request whose call was cancelled before; return whether it was."""
        if request.reply_to is None or self._ledger.get(request.unique_id) is not None:
            return False
        until = self.cancelled.get(request.reply_to.msg_id)
        if until is None or until <= self._clock.seconds():
            return False
        self._metrics.cancelled.value += 1
        self._ledger.acknowledge(delivery, request.unique_id)
        return True

    def close(self) -> None:
        """Stop the timers. Called when the running calls were cut short."""
        for timer in self._watched.values():
            timer.cancel()
        self._watched.clear()

    def _remember(self, msg_id: str, seconds: Any) -> None:
        now, cancelled = self._clock.seconds(), self.cancelled
        bounded = isinstance(seconds, int | float) and 0 <= seconds <= REMEMBERED_FOR
        cancelled[msg_id] = now + (seconds if bounded else REMEMBERED_FOR)
        while cancelled and (len(cancelled) > MAX_REMEMBERED or next(iter(cancelled.values())) <= now):
            cancelled.popitem(last=False)

    def _drop(self, call: Call) -> None:
        self._metrics.cancelled.value += 1
        call.scope.copy().run(
            _log.debug, "{method} was cancelled by its caller before it began", method=call.method.name
        )
        self._ledger.settle(call)
        self._changed()

    def _cancel_running(self, call: Call) -> None:
        method = call.method
        if not method.exposure.cancellable:
            call.scope.copy().run(
                _log.debug,
                "{method} goes on although its caller has cancelled it: it is not cancellable",
                method=method.name,
            )
            return
        self._execution.cancel(call)
        if call not in self._execution.running or method in self._told:
            return
        if method.exposure.blocking:
            self._tell(call, "is a blocking method, which cannot be cancelled once its thread has begun")
        else:
            self._watched[call] = self._clock.callLater(GRACE, self._grace_passed, call)

    def _grace_passed(self, call: Call) -> None:
        del self._watched[call]
        if call in self._execution.running and call.method not in self._told:
            self._tell(call, f"ignores its cancellation: it still runs {GRACE:g} s after its caller has cancelled it")

    def _tell(self, call: Call, problem: str) -> None:
        """Log a problem of a method, once."""
        self._told.add(call.method)
        call.scope.copy().run(
            _log.warn,
            "{method} ({where}) {problem}; it keeps its slot until it ends. This is logged once for each method",
            method=call.method.name,
            where=call.method.where,
            problem=problem,
        )


def _is_of(call: Call, msg_id: str) -> bool:
    return call.request.reply_to is not None and call.request.reply_to.msg_id == msg_id
