"""The state of one admitted request."""

from collections.abc import Mapping
from contextvars import Context
from math import inf
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from novasvc.interfaces import IDelivery
from novasvc.rpc.endpoint import Method
from novasvc.rpc.message import Progress, Request


@attrs.define(eq=False)
class Call:
    """Hold the state of an admitted request, from its admission to its settlement.

    :param delivery: the delivery to settle; replaced by the redelivery if it becomes void.
    :param request: what the message says.
    :param method: the exposed method to run.
    :param scope: the context variables in which the method runs, owned by this call.
    :param deliveries: earlier deliveries of the message, when the call was admitted.
    :param expires_at: seconds on the clock after which the method must not begin; None if unknown.
    :param deadline: seconds on the clock after which the caller no longer waits for a reply; None if unknown.
    :param delivered: seconds on the clock when the latest delivery arrived.
    :ivar args: the arguments for the method, as its contract converts them.
    :ivar began: seconds on the clock when the method began; 0.0 before that.
    :ivar request_id: the request id of the method's context; "" before the method begins.
    :ivar running: the method's Deferred, if it has not fired when the method returned.
    :ivar keepalive: the timer of the next keepalive, if the caller asked for keepalives.
    :ivar answered: the reply was sent, or no reply must be sent.
    :ivar held: another copy of the message will be delivered to this process; see
        :meth:`novasvc.interfaces.IDelivery.hold`.
    :ivar message_lost: the broker seems to have lost the message; see Note [Void deliveries] in
        novasvc.rpc.server.awaiting_redelivery.
    :ivar reporter: what the method's context reports its progress to.
    :ivar progress: what the method has reported last; see :mod:`novasvc.rpc.progress`.
    :ivar progress_timer: publishes the progress when the next message is due.
    :ivar progress_at: seconds on the clock when the progress was last published.
    :ivar progress_due: a report will be published, or looked at, soon: another one only replaces it.
    :ivar record_slot: the call's slot in the shared record of requests not begun; None without an entry.
    """

    delivery: IDelivery
    request: Request
    method: Method
    scope: Context
    deliveries: int
    expires_at: float | None
    deadline: float | None
    delivered: float
    args: Mapping[str, Any] = attrs.field(init=False)
    began: float = attrs.field(default=0.0, init=False)
    request_id: str = attrs.field(default="", init=False)
    running: Deferred[Any] | None = attrs.field(default=None, init=False)
    keepalive: IDelayedCall | None = attrs.field(default=None, init=False)
    answered: bool = attrs.field(default=False, init=False)
    held: bool = attrs.field(default=False, init=False)
    message_lost: bool = attrs.field(default=False, init=False)
    reporter: Any = attrs.field(default=None, init=False)
    progress: Progress | None = attrs.field(default=None, init=False)
    progress_timer: IDelayedCall | None = attrs.field(default=None, init=False)
    progress_at: float = attrs.field(default=-inf, init=False)
    progress_due: bool = attrs.field(default=False, init=False)
    record_slot: int | None = attrs.field(default=None, init=False)
