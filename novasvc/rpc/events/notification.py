"""Notifications: messages about events, for any consumer, now or later.

Each waits in the queue of a topic and a priority ("notifications.info") until it is consumed. The format
is that of OpenStack's services.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partialmethod
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail

from novasvc import identifiers
from novasvc.context import RequestContext
from novasvc.interfaces import ITransport
from novasvc.rpc.errors import InvalidArgumentsError, MessageFormatError
from novasvc.rpc.failures.origin import mark_outgoing
from novasvc.rpc.ids import new_id
from novasvc.rpc.message import read_context, wrap
from novasvc.rpc.payload import dumps

PRIORITIES = ("audit", "debug", "info", "warn", "error", "critical", "sample")
TOPICS = ("notifications",)
"""The default topic."""


@attrs.frozen(kw_only=True)
class Notification:
    """One notification.

    :param event_type: dotted name of the event: "compute.instance.create.end".
    :param payload: data of the event, JSON types.
    :param publisher_id: the publisher: "compute.host1".
    :param priority: one of PRIORITIES.
    :param context: the context of the request that caused the event.
    :param message_id: a UUID, the same in every topic; "" if the message had none.
    :param timestamp: when it was published, as the publisher wrote it: UTC without a zone; "" if the message
        had none.
    """

    event_type: str
    payload: Any
    publisher_id: str
    priority: str
    context: RequestContext
    message_id: str = attrs.field(factory=identifiers.new_uuid)
    timestamp: str = ""

    def __str__(self) -> str:
        # For logs, so bounded and in one line: a peer may send anything.
        event_type, publisher_id, message_id = self.event_type, self.publisher_id, self.message_id
        return f"{event_type[:100]!r} from {publisher_id[:100]!r} ({message_id[:100]!r})"


def encode_notification(notification: Notification) -> bytes:
    """Encode a notification.

    :raises InvalidArgumentsError: JSON cannot hold the payload, or the message is over the limit.
    """
    body = {
        "message_id": notification.message_id,
        "publisher_id": notification.publisher_id,
        "event_type": notification.event_type,
        "priority": notification.priority.upper(),
        "payload": notification.payload,
        "timestamp": notification.timestamp,
        "_unique_id": new_id(),
        **{f"_context_{name}": value for name, value in notification.context.to_wire().items()},
    }
    try:
        return wrap(dumps(body, "the notification"))
    except ValueError as error:
        invalid = InvalidArgumentsError("notify", str(error))
        mark_outgoing(invalid)
        raise invalid from None


def read_notification(fields: Mapping[str, Any]) -> Notification:
    """Decode a notification. Every field but the priority is optional; unknown fields are ignored.

    :param fields: the fields that :func:`novasvc.rpc.message.unwrap` returned.
    :raises MessageFormatError: the priority is not one of PRIORITIES.
    """

    def text(name: str) -> str:
        value = fields.get(name)
        return value if isinstance(value, str) else ""

    priority = text("priority").lower()
    if priority not in PRIORITIES:
        problem = f"'priority' is none of {', '.join(PRIORITIES)}"
        raise MessageFormatError(problem)
    return Notification(
        event_type=text("event_type"),
        payload=fields.get("payload"),
        publisher_id=text("publisher_id"),
        priority=priority,
        context=RequestContext.from_wire(read_context(fields)),
        message_id=text("message_id"),
        timestamp=text("timestamp"),
    )


def wire_time(time: datetime) -> str:
    """Return a time as publishers write it: in UTC, without a zone."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def utc_now() -> datetime:
    """Read the wall clock."""
    return datetime.now(UTC)


@attrs.define(eq=False)
class Notifier:
    """Publish notifications.

    :param transport: an open transport.
    :param publisher_id: the publisher: "compute.host1".
    :param topics: topics to publish to; each gets a copy.
    :param now: returns the current time, with a time zone.
    Source: oslo_messaging.Notifier, whose messagingv2 driver writes the same.
    """

    _transport: ITransport
    publisher_id: str = attrs.field(kw_only=True)
    topics: Sequence[str] = attrs.field(default=TOPICS, kw_only=True)
    _now: Callable[[], datetime] = attrs.field(default=utc_now, kw_only=True)

    def notify(self, priority: str, context: RequestContext, event_type: str, payload: Any) -> Deferred[None]:
        """Publish a notification. Each priority also has a method of its name, such as :meth:`info`.

        :param priority: one of PRIORITIES.
        :param context: sent with the notification.
        :param event_type: dotted name of the event: "compute.instance.create.end".
        :param payload: data of the event; see :func:`novasvc.rpc.payload.dumps` for the types.
        :return: Deferred[None], fired when the broker has confirmed the message in every topic. A confirm
            does not mean that a consumer exists.
        :raises ValueError: the priority is not one of PRIORITIES.
        :raises InvalidArgumentsError: JSON cannot hold the payload, or the message is over the limit.
        :raises RPCError: as :meth:`novasvc.interfaces.ITransport.send`.
        """
        if priority not in PRIORITIES:
            raise ValueError(f"priority is {priority!r}; give one of {', '.join(PRIORITIES)}")
        notification = Notification(
            event_type=event_type,
            payload=payload,
            publisher_id=self.publisher_id,
            priority=priority,
            context=context,
            timestamp=wire_time(self._now()),
        )
        try:
            body = encode_notification(notification)
        except InvalidArgumentsError as error:
            return fail(error)
        return Deferred.fromCoroutine(self._post(priority, body))

    async def _post(self, priority: str, body: bytes) -> None:
        for topic in self.topics:
            await self._transport.post(f"{topic}.{priority}", body)

    audit = partialmethod(notify, "audit")
    debug = partialmethod(notify, "debug")
    info = partialmethod(notify, "info")
    warn = partialmethod(notify, "warn")
    error = partialmethod(notify, "error")
    critical = partialmethod(notify, "critical")
    sample = partialmethod(notify, "sample")
