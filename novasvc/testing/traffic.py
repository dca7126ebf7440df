"""What the nodes of a fleet send each other, as a test reads it."""

from collections import deque
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import attrs

from novasvc.context import RequestContext
from novasvc.errors import MessageFormatError
from novasvc.rpc.message import read_context, read_reply, unwrap
from novasvc.rpc.payload import loads
from novasvc.rpc.target import Target

MOST_MESSAGES = 100_000
"""Messages that are remembered; the oldest are forgotten first."""


@attrs.define(eq=False, repr=False, kw_only=True)
class SentMessage:
    """A request or a notification that was sent.

    :param kind: "call", "cast", "fanout" or "event".
    :param topic: the topic; of an event the notification topic.
    :param server: the host that it was addressed to; None for any host of the topic.
    :param method: the method's name; of an event its type, such as "order.placed"; "" if the message is malformed.
    :param args: the arguments by name, JSON values; of an event the payload.
    :param context: the context that was sent with it.
    :param sender: the host that sent it.
    :param sent_at: seconds on the fleet's clock.
    :ivar received_by: the hosts that it was delivered to, in order; more than one for a fanout or after a fault.
    :ivar faults: the faults that were applied to it, or to its reply, as text.
    :ivar answered_by: the host that answered it; None without an answer. The answer may be lost on its way.
    :ivar result: the result, JSON values.
    :ivar error: the error that it was answered with, as "OutOfStockError: no tea"; None if with a result.
    """

    kind: str
    topic: str
    server: str | None
    method: str
    args: Any
    context: RequestContext
    sender: str
    sent_at: float
    received_by: list[str] = attrs.field(factory=list, init=False)
    faults: list[str] = attrs.field(factory=list, init=False)
    answered_by: str | None = attrs.field(default=None, init=False)
    result: Any = attrs.field(default=None, init=False)
    error: str | None = attrs.field(default=None, init=False)

    def __str__(self) -> str:
        place = self.topic if self.server is None else f"{self.topic} at {self.server}"
        return f"{self.kind} {self.method!r} to {place}, sent by {self.sender} at {self.sent_at:g} s"

    def __repr__(self) -> str:
        return f"<{self}, {self.fate}>"

    @property
    def fate(self) -> str:
        """What became of it, in words."""
        fate = f"received by {', '.join(self.received_by)}" if self.received_by else "received by no host"
        if self.answered_by is not None:
            outcome = "a result" if self.error is None else f"an error ({self.error})"
            fate += f", answered by {self.answered_by} with {outcome}"
        elif self.kind == "call":
            fate += ", not answered"
        faults = "".join(f", fault {fault}" for fault in dict.fromkeys(self.faults))
        return fate + faults


@attrs.define(eq=False)
class Traffic:
    """The messages of a fleet, the oldest first.

    :param seconds: returns the time.
    """

    _seconds: Callable[[], float]
    _messages: deque[tuple[SentMessage, tuple[str, ...]]] = attrs.field(factory=deque, init=False)
    _known: dict[str, SentMessage] = attrs.field(factory=dict, init=False)

    def __iter__(self) -> Iterator[SentMessage]:
        return iter([message for message, _ in self._messages])

    def select(self, topic: str | None, method: str | None, kinds: tuple[str, ...]) -> list[SentMessage]:
        """Return the messages of some kinds whose topic and method match a pattern; None matches all."""
        return [
            message
            for message, _ in self._messages
            if message.kind in kinds and matches(topic, message.topic) and matches(method, message.method)
        ]

    def note_request(self, sender: str, target: Target, body: bytes) -> SentMessage:
        """Remember a request."""
        fields = _fields(body)
        kind = "fanout" if target.fanout else "call" if "_msg_id" in fields else "cast"
        method, args = fields.get("method"), fields.get("args")
        return self._note(fields, sender, kind=kind, topic=target.topic, server=target.server, method=method, args=args)

    def note_event(self, sender: str, queue: str, body: bytes) -> SentMessage:
        """Remember a notification."""
        fields = _fields(body)
        kind, payload = fields.get("event_type"), fields.get("payload")
        topic = queue.rpartition(".")[0] or queue
        return self._note(fields, sender, kind="event", topic=topic, server=None, method=kind, args=payload)

    def note_reply(self, sender: str, body: bytes) -> SentMessage | None:
        """Remember the reply to a request; return the request, or None for a keepalive or an unknown one."""
        try:
            reply = read_reply(unwrap(body))
        except MessageFormatError:
            return None
        message = self._known.get(reply.msg_id)
        if message is None or not reply.final:
            return None
        message.answered_by, message.result = sender, reply.result
        message.error = None if reply.failure is None else _describe_failure(reply.failure)
        return message

    def find(self, body: bytes) -> SentMessage | None:
        """Return the request or notification with this body, or None if it is not known."""
        unique_id = _fields(body).get("_unique_id")
        return self._known.get(unique_id) if isinstance(unique_id, str) else None

    def _note(self, fields: dict[str, Any], sender: str, *, method: object, **given: Any) -> SentMessage:
        message = SentMessage(
            method=method if isinstance(method, str) else "",
            context=RequestContext.from_wire(read_context(fields)),
            sender=sender,
            sent_at=self._seconds(),
            **given,
        )
        keys = tuple(key for key in (fields.get("_unique_id"), fields.get("_msg_id")) if isinstance(key, str))
        self._messages.append((message, keys))
        self._known.update(dict.fromkeys(keys, message))
        if len(self._messages) > MOST_MESSAGES:
            _, keys = self._messages.popleft()
            for key in keys:
                self._known.pop(key, None)
        return message


def matches(pattern: str | None, text: str) -> bool:
    """Return whether a text matches a pattern of :mod:`fnmatch`; None matches all."""
    return pattern is None or fnmatchcase(text, pattern)


def _describe_failure(text: str) -> str:
    try:
        fields = loads(text)
    except ValueError:
        return text
    return f"{fields.get('class')}: {fields.get('message')}" if isinstance(fields, dict) else text


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return unwrap(body)
    except MessageFormatError:
        return {}
