"""Emit events, for whoever handles them."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from novasvc.context import RequestContext
from novasvc.interfaces import ITransport
from novasvc.middleware import Chain, Invocation
from novasvc.middleware.invocation import EMIT
from novasvc.rpc.around import send_through
from novasvc.rpc.errors import InvalidArgumentsError, UnconfirmedError, UndeliverableError
from novasvc.rpc.events.notification import PRIORITIES, Notification, encode_notification, utc_now, wire_time
from novasvc.rpc.failures.origin import mark_outgoing
from novasvc.rpc.message import NAME_LIMIT
from novasvc.rpc.resend import send_until_confirmed
from novasvc.telemetry import metrics


@attrs.define(eq=False)
class EventEmitter:
    """Publishes events; a manager has one as ``self.attachments.events``.

    :param transport: an open transport.
    :param publisher_id: the publisher: "stock.host1".
    :param topic: the notification topic.
    :param clock: measures the time that middleware takes.
    :param chain: the middleware around emissions; None without any.
    :param now: returns the current time, with a time zone.
    """

    _transport: ITransport
    publisher_id: str = attrs.field(kw_only=True)
    topic: str = attrs.field(default="notifications", kw_only=True)
    _clock: IReactorTime = attrs.field(kw_only=True)
    _chain: Chain | None = attrs.field(default=None, kw_only=True)
    _now: Callable[[], datetime] = attrs.field(default=utc_now, kw_only=True)

    def emit(
        self, context: RequestContext, event_type: str = "", payload: Any = None, *, priority: str = "info"
    ) -> Deferred[None]:
        """Publish an event. Each subscribed topic gets a copy, and so does each listener of oslo.messaging.

        An event without a subscriber's queue is dropped, and counted: nobody has ever subscribed, or the broker has
        lost the queues, which are not durable by default, and no subscriber has been back yet. For 5 s after the
        connection was lost, the event waits for subscribers to come back.

        :param context: sent with the event.
        :param event_type: dotted name of the event: "order.placed".
        :param payload: data of the event; JSON types, dataclasses, attrs objects, datetimes.
        :param priority: one of :data:`novasvc.rpc.events.notification.PRIORITIES`.
        :return: Deferred[None], fired when the broker has confirmed the message. It may arrive twice: a message whose
            connection was lost before the confirm is sent again. The Deferred fails with:
        :raises InvalidArgumentsError: the type or the priority is invalid, JSON cannot hold the payload, or the message
            is over the limit.
        :raises RPCError: as :meth:`novasvc.interfaces.ITransport.send`.
        :raises TypeError: at once: the first parameter is no context.
        """
        _check_context(context)
        problem = _problem(event_type, priority)
        if problem is not None:
            error = InvalidArgumentsError("emit", problem)
            mark_outgoing(error)
            return fail(error)
        if self._chain is None:
            return Deferred.fromCoroutine(self._emit(context, event_type, payload, priority))
        args = {"payload": payload, "priority": priority}
        invocation = Invocation(kind=EMIT, name=event_type, context=context, args=args, topic=self.topic)

        def emit(passed: Invocation) -> Any:
            return self._emit(passed.context or context, passed.name, passed.args["payload"], passed.args["priority"])

        return send_through(self._chain, invocation, emit, self._clock)

    async def _emit(self, context: RequestContext, event_type: str, payload: Any, priority: str) -> None:
        body = encode_notification(
            Notification(
                event_type=event_type,
                payload=payload,
                publisher_id=self.publisher_id,
                priority=priority,
                context=context,
                timestamp=wire_time(self._now()),
            )
        )
        try:
            await send_until_confirmed(lambda: self._transport.publish(f"{self.topic}.{priority}", body))
        except BaseException as error:
            # An event whose first copy was not confirmed may have no subscribers either.
            unrouted = isinstance(error.__cause__ if isinstance(error, UnconfirmedError) else error, UndeliverableError)
            metrics.events_emitted.at("unrouted" if unrouted else "failed").value += 1
            if not unrouted:
                raise
        else:
            metrics.events_emitted.at("sent").value += 1


def _check_context(context: object) -> None:
    if not isinstance(context, RequestContext):
        example = 'write emit(context, "order.placed", payload)'
        raise TypeError(f"emit() takes a RequestContext first, not {context!r:.80}; {example}")


def _problem(event_type: object, priority: object) -> str | None:
    if not isinstance(event_type, str) or not event_type or any(map(str.isspace, event_type)):
        return f"event_type is {event_type!r:.100}; give a dotted name such as 'order.placed'"
    if len(event_type) > NAME_LIMIT:
        return f"event_type has {len(event_type)} characters; the limit is {NAME_LIMIT}"
    if priority not in PRIORITIES:
        return f"priority is {priority!r:.100}; give one of {', '.join(PRIORITIES)}"
    return None
