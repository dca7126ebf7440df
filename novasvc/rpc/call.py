"""A request that a server has admitted."""

from contextvars import Context
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from novasvc.interfaces import IDelivery
from novasvc.rpc.endpoint import Method
from novasvc.rpc.message import Request


@attrs.define(eq=False)
class Call:
    """A request that was admitted.

    :param delivery: what is settled when the time has come; another one if the first became void.
    :param scope: the context variables in which its method runs; its own.
    :param deliveries: how often it was delivered before, when it was admitted.
    :param expires_at: seconds on the clock after which it is not to be begun; None if unknown.
    :param deadline: seconds on the clock after which nobody waits for the answer; None if unknown.
    :param delivered: seconds on the clock: when its delivery came.
    :param began: seconds on the clock.
    :param request_id: known when it has begun.
    :param running: what the method returned, if it takes its time.
    :param answered: no answer is to follow.
    :param held: a copy of its message is on its way to this process; see IDelivery.hold.
    :param missed: its message seems to be nowhere but here.
    :param backlog_slot: where it is recorded as not begun; None if it is not.
    :param placed: a place among the redelivered calls is kept for it.
    """

    delivery: IDelivery
    request: Request
    method: Method
    scope: Context
    deliveries: int
    expires_at: float | None
    deadline: float | None
    delivered: float
    began: float = attrs.field(default=0.0, init=False)
    request_id: str = attrs.field(default="", init=False)
    running: Deferred[Any] | None = attrs.field(default=None, init=False)
    keepalive: IDelayedCall | None = attrs.field(default=None, init=False)
    answered: bool = attrs.field(default=False, init=False)
    held: bool = attrs.field(default=False, init=False)
    missed: bool = attrs.field(default=False, init=False)
    backlog_slot: int | None = attrs.field(default=None, init=False)
    placed: bool = attrs.field(default=False, init=False)
