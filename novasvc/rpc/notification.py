"""Notifications: what happened, told to whoever wants to know, now or later.

They wait in queues of a topic and a priority ("notifications.info") until somebody consumes them,
and say what OpenStack's services say in theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partialmethod
from typing import Any
from uuid import uuid4

import attrs
from twisted.internet.defer import Deferred, fail

from novasvc.context import RequestContext
from novasvc.errors import InvalidArgumentsError, MessageFormatError
from novasvc.interfaces import ITransport
from novasvc.rpc.ids import new_id
from novasvc.rpc.message import read_context, wrap
from novasvc.rpc.payload import dumps

PRIORITIES = ("audit", "debug", "info", "warn", "error", "critical", "sample")
TOPICS = ("notifications",)
"""The topic that is usual."""


@attrs.frozen(kw_only=True)
class Notification:
    """What happened.

    :param event_type: dotted: "compute.instance.create.end".
    :param payload: what there is to know of it, JSON types.
    :param publisher_id: who tells it: "compute.host1".
    :param priority: one of PRIORITIES.
    :param context: of the request that it happened in.
    :param message_id: a UUID, the same in all topics that it was sent to; "" if it came without.
    :param timestamp: when it was told, as its publisher wrote it; UTC without a zone; "" if it came without.
    """

    event_type: str
    payload: Any
    publisher_id: str
    priority: str
    context: RequestContext
    message_id: str = attrs.field(factory=lambda: str(uuid4()))
    timestamp: str = ""


def encode_notification(notification: Notification) -> bytes:
    """Write a notification.

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
        raise InvalidArgumentsError("notify", str(error)) from None


def read_notification(fields: Mapping[str, Any]) -> Notification:
    """Read a notification's fields. All but the priority may be missing; those that are not known are passed over.

    :param fields: what :func:`novasvc.rpc.message.unwrap` returned.
    :raises MessageFormatError: the priority is none of ours.
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


def _utc_now() -> datetime:
    return datetime.now(UTC)


@attrs.define(eq=False)
class Notifier:
    """Tells what happened.

    :param transport: open.
    :param publisher_id: who tells it: "compute.host1".
    :param topics: each gets a copy.
    :param now: tells the time, with a zone.
    Source: oslo_messaging.Notifier, whose messagingv2 driver writes the same.
    """

    _transport: ITransport
    publisher_id: str = attrs.field(kw_only=True)
    topics: Sequence[str] = attrs.field(default=TOPICS, kw_only=True)
    _now: Callable[[], datetime] = attrs.field(default=_utc_now, kw_only=True)

    def notify(self, priority: str, context: RequestContext, event_type: str, payload: Any) -> Deferred[None]:
        """Tell something. There is a method for each priority, too: :meth:`info`, and so on.

        :param priority: one of PRIORITIES.
        :param context: travels with it.
        :param event_type: dotted: "compute.instance.create.end".
        :param payload: see :func:`novasvc.rpc.payload.dumps` for what can be sent.
        :return: Deferred[None], fired when the broker has it. Nobody may listen yet.
        :raises ValueError: there is no such priority.
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
            timestamp=self._now().astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds"),
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
