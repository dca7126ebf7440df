"""One run of a handler: its arguments, its context, the middleware around it, and its timeout."""

from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IReactorTime

from novasvc.middleware import Chain, Invocation
from novasvc.middleware.invocation import EVENT
from novasvc.reactor.abandon import abandon_on_cancel
from novasvc.rpc.around import run_in_current_context
from novasvc.rpc.errors import EventTimeoutError, InvalidArgumentsError
from novasvc.rpc.events.declare import EventHandler
from novasvc.rpc.events.notification import Notification
from novasvc.telemetry import metrics
from novasvc.telemetry.flight import note


class InvalidPayloadError(InvalidArgumentsError):
    """The event is not what the handler's annotations say; a call that a handler makes raises the base class."""


@attrs.frozen(eq=False)
class HandlerRunner:
    """Runs the handlers of one topic.

    :param topic: of the node.
    :param clock: measures the timeouts.
    :param run_blocking: runs a function in a thread and returns a Deferred of its result.
    :param chain: the middleware around handlers; None without any.
    """

    _topic: str
    _clock: IReactorTime
    _run_blocking: Callable[..., Deferred[Any]]
    _chain: Chain | None

    def run(self, handler: EventHandler, notification: Notification, scope: Context) -> Deferred[Any]:
        """Run a handler within its timeout.

        :param scope: the context variables in which it runs; owned by this run.
        :return: Deferred that fires when the handler has ended, or its time is up. Fails with what it raised, with
            EventTimeoutError, or with InvalidPayloadError before it runs. Cancelling it cancels the handler.
        """
        timeout = handler.subscription.timeout
        try:
            args = handler.arguments(notification)
        except InvalidArgumentsError as error:
            return fail(InvalidPayloadError(error.method, error.problem))
        invocation = Invocation(
            kind=EVENT,
            name=notification.event_type,
            # The calls that the handler makes have no more time than it has.
            context=attrs.evolve(notification.context, deadline=self._clock.seconds() + timeout),
            args=args,
            topic=self._topic,
            message_id=notification.message_id,
        )
        end = partial(
            run_in_current_context, handler.function, self._run_blocking if handler.subscription.blocking else None
        )
        began = self._clock.seconds()
        note("event", f"{handler.name} began {notification.event_type[:100]} {notification.context.request_id}")
        running: Deferred[Any]
        if self._chain is None:
            running = scope.run(maybeDeferred, end, invocation)
        else:
            running = scope.run(self._chain.run, invocation, end)

        def time_out(_result: object, _timeout: float) -> None:
            raise EventTimeoutError(handler.name, timeout)

        def ended(result: Any) -> Any:
            metrics.events_seconds.at(self._topic, handler.name).observe(self._clock.seconds() - began)
            return result

        return abandon_on_cancel(running).addTimeout(timeout, self._clock, onTimeoutCancel=time_out).addBoth(ended)
