"""Middleware around calls, casts, methods and handlers: their deadlines, and the context at the end of a chain."""

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from types import CoroutineType
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from novasvc.context import current_context
from novasvc.middleware import Chain, Invocation
from novasvc.middleware.invocation import CALL
from novasvc.reactor.abandon import abandon_on_cancel
from novasvc.rpc.errors import RPCTimeoutError
from novasvc.rpc.target import Target

ONE_WAY_TIMEOUT = 60.0
"""Seconds for a cast or an event to pass through the middleware and to be confirmed."""

_GRACE = 0.25
"""Seconds beyond the timeout, in which the call itself times out first: its error says more."""


def target_fields(target: Target | None) -> dict[str, Any]:
    """Return the fields of an Invocation that a client's target gives."""
    if target is None:
        return {}
    server = None if target.fanout else target.server
    return {"topic": target.topic, "server": server, "namespace": target.namespace}


def send_through(
    chain: Chain,
    invocation: Invocation,
    send: Callable[[Invocation], Deferred[Any]],
    clock: IReactorTime,
    timeout: float | None = None,
) -> Deferred[Any]:
    """Send a message through the middleware, within the time that its sender has.

    :param send: sends what the last middleware passes on.
    :param timeout: seconds for a call, unless the context's deadline is earlier; None for no limit. A cast or an event
        has no deadline, and gets ONE_WAY_TIMEOUT.
    :return: Deferred of the reply; also fails with RPCTimeoutError, even if a middleware ignores its cancellation.
    """
    context, why = invocation.context, ""
    assert context is not None  # of a call
    if invocation.kind != CALL:
        timeout, why = ONE_WAY_TIMEOUT, "it has not passed the middleware, or the broker has not confirmed it"
    elif context.deadline is not None:
        left = context.deadline - clock.seconds()
        timeout = left if timeout is None else min(timeout, left)
    if timeout is None:
        return chain.run(invocation, send)
    if invocation.kind == CALL:
        # What the middleware has used up is taken from the time of the call.
        invocation = attrs.evolve(invocation, context=attrs.evolve(context, deadline=clock.seconds() + timeout))

    def time_out(_result: object, _timeout: float) -> None:
        raise RPCTimeoutError(invocation.topic, invocation.name, timeout, unconfirmed=why)

    running = abandon_on_cancel(chain.run(invocation, send))
    return running.addTimeout(max(0.0, timeout) + _GRACE, clock, onTimeoutCancel=time_out)


def run_in_current_context(
    function: Callable[..., Any], run_blocking: Callable[..., Deferred[Any]] | None, invocation: Invocation
) -> Any:
    """Call a method or a handler at the end of a chain, in the context variables that the middleware has set.

    :param function: takes the invocation's context and arguments.
    :param run_blocking: runs a function in a thread; None to call it here.
    :return: its result, or a Deferred of that.
    """
    context, args = invocation.context, invocation.args
    variables = copy_context()
    variables.run(current_context.set, context)
    if run_blocking is not None:
        return run_blocking(partial(variables.run, function, context, **args))
    result = variables.run(function, context, **args)
    return variables.run(Deferred.fromCoroutine, result) if isinstance(result, CoroutineType) else result
